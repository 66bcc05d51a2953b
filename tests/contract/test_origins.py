"""Web pages and foreign names: who may call a service that asks for no keys, and what a browser's marks mean."""

from __future__ import annotations

import json
import socket
import uuid
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

PATH = "/api/v1/charging-session"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def gate(shared_service: Callable[..., Service]) -> Service:
    return shared_service()


@pytest.fixture(scope="module")
def opened(shared_service: Callable[..., Service]) -> Service:
    """A service with names and origins that it answers."""
    return shared_service(
        server__allowed_hosts=["gate.example", "Depot.Example:8443", "192.0.2.7", "2001:db8::7"],
        server__allowed_origins=["https://desk.example", "http://desk.example:3000"],
    )


def with_host(service: Service, host: str, path: str = "/health/ready") -> httpx.Response:
    return service.client.get(path, headers={"host": host})


def forbidden(answer: httpx.Response) -> bool:
    if answer.status_code != 403:
        return False
    assert answer.json()["status"] == "forbidden"
    assert set(answer.json()) == {"status", "message", "timestamp"}
    return True


def own_address() -> str:
    """An address of this machine that is not loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "localhost.", "LocalHost.:1", "127.0.0.1", "127.0.0.1:65535", "127.1.2.3", "[::1]:80"],
)
def test_this_machine_is_answered(gate: Service, host: str) -> None:
    assert with_host(gate, host).status_code == 200


def test_every_address_of_this_machine_is_answered(gate: Service) -> None:
    try:
        address = own_address()
    except OSError:
        pytest.skip("this machine has no other address than loopback")
    assert with_host(gate, f"{address}:{gate.port}").status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "notlocalhost",
        "192.0.2.7",
        "0.0.0.0",
        "0",
        "127.1",
        "2130706433",
        "224.0.0.1",
        "255.255.255.255",
        "[2001:db8::7]",
        "[::]",
        "::1",
        "localhost:80:80",
    ],
)
def test_no_other_host_is_answered(gate: Service, host: str) -> None:
    answer = with_host(gate, host)
    assert forbidden(answer) or answer.status_code == 400


@pytest.mark.parametrize(
    "path", ["/health", "/health/live", "/metrics", "/api/v1/acl", "/docs", "/openapi.json", "/nothing", PATH]
)
def test_no_path_is_answered_under_a_foreign_name(gate: Service, path: str) -> None:
    assert forbidden(with_host(gate, "evil.example", path))


def test_a_foreign_name_changes_nothing(gate: Service, receiver: Site) -> None:
    before = gate.client.get("/api/v1/acl").json()
    entry = {"driver_token": f"listed-{uuid.uuid4().hex}"}
    foreign = {"host": "evil.example"}
    assert forbidden(gate.client.put("/api/v1/acl", json=entry, headers=foreign))
    assert forbidden(gate.post(gate.body(receiver.url()), **foreign))
    assert forbidden(gate.client.post("/api/v1/dead-letters/replay", headers=foreign))
    assert gate.client.get("/api/v1/acl").json() == before


def test_the_target_counts_more_than_the_header(gate: Service) -> None:
    for target, host, status in (
        ("http://evil.example/health/live", "localhost", 403),
        ("http://localhost/health/live", "evil.example", 200),
        ("HTTP://localhost:1?x", "evil.example", 404),
        ("http://user@localhost/health/live", "localhost", 400),
    ):
        with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as connection:
            connection.sendall(f"GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 %d " % status)


def test_http_1_0_without_a_host_is_no_browser(gate: Service) -> None:
    with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as connection:
        connection.sendall(b"GET /health/live HTTP/1.0\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("gate.example", True),
        ("GATE.example.:1", True),
        ("depot.example:8443", True),
        ("depot.example:80", False),
        ("depot.example", False),
        ("192.0.2.7:9", True),
        ("[2001:DB8:0::7]:9", True),
        ("localhost", True),
        ("sub.gate.example", False),
    ],
)
def test_hosts_that_are_allowed(opened: Service, host: str, *, allowed: bool) -> None:
    answer = with_host(opened, host)
    assert answer.status_code == 200 if allowed else forbidden(answer)


def test_with_keys_any_host_is_answered(service: Callable[..., Service]) -> None:
    gate = service(security__api_keys=["admin:sha256:" + "0" * 64])
    assert with_host(gate, "gate.example").status_code == 200
    assert with_host(gate, "gate.example", "/api/v1/acl").status_code == 401
    page = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
    assert forbidden(gate.client.get("/health/ready", headers=page))


FOREIGN: list[dict[str, str]] = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "something-new"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:1"},
    {"origin": "http://127.0.0.1.evil.example"},
    {"origin": "https://desk.example:444", "sec-fetch-site": "same-site"},
    {"origin": "https://evil.example", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
]


@pytest.mark.parametrize("marks", FOREIGN)
def test_another_page_is_refused(gate: Service, opened: Service, receiver: Site, marks: dict[str, str]) -> None:
    for each in (gate, opened):
        answers = [
            each.client.post(PATH, json=each.body(receiver.url()), headers=marks),
            each.client.put("/api/v1/acl", json={"driver_token": "listed-0123456789-abc"}, headers=marks),
            each.client.post("/api/v1/dead-letters/replay", headers=marks),
            each.client.get("/api/v1/decisions", headers=marks),
            each.client.get("/health", headers=marks),
        ]
        assert all(forbidden(answer) for answer in answers)


def test_its_own_page_is_answered(gate: Service, receiver: Site) -> None:
    for marks in (
        {"sec-fetch-site": "same-origin", "origin": gate.url},
        {"sec-fetch-site": "none"},
        {"origin": gate.url},
    ):
        assert gate.client.post(PATH, json=gate.body(receiver.url()), headers=marks).status_code == 202


def test_origins_that_are_allowed(opened: Service, receiver: Site) -> None:
    for origin in ("https://desk.example", "http://desk.example:3000", "https://DESK.example"):
        for site in ("cross-site", "same-site"):
            marks = {"origin": origin, "sec-fetch-site": site}
            assert opened.client.post(PATH, json=opened.body(receiver.url()), headers=marks).status_code == 202
    for origin in ("http://desk.example", "https://desk.example:444", "https://desk.example.evil.example"):
        assert forbidden(opened.client.get("/health", headers={"origin": origin}))


CHANGES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", PATH, {}),
    ("PUT", "/api/v1/acl", {"driver_token": "listed-0123456789-abc"}),
    ("POST", "/api/v1/dead-letters/replay", None),
    ("POST", f"/api/v1/dead-letters/{uuid.UUID(int=0)}/replay", None),
    ("POST", "/api/v1/acl/check", {}),
]


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json-seq",
        "text/plain; application/json",
    ],
)
@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_what_changes_something_wants_json(
    gate: Service, method: str, path: str, body: dict[str, Any] | None, media_type: str
) -> None:
    content = b"" if body is None else json.dumps(body).encode()
    answer = gate.client.request(method, path, content=content, headers={"content-type": media_type})
    assert (answer.status_code, answer.json()["status"]) == (415, "unsupported_media_type")


def test_a_replay_may_have_no_body(gate: Service) -> None:
    for content, status in ((b"", 202), (b"{}", 202), (b" { } ", 202), (b"[]", 400), (b"{", 400), (b'"\xff"', 400)):
        answer = gate.client.post("/api/v1/dead-letters/replay", content=content, headers=JSON)
        assert answer.status_code == status
