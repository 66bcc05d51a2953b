"""Pages of allowed origins: what their browsers ask before, and what lets them read the answer (Fetch Standard)."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from tests.contract.conftest import Service, Site

PATH = "/api/v1/charging-session"
ORIGIN = "https://desk.example"
PATHS = {
    PATH: "POST",
    f"{PATH}/{uuid.UUID(int=0)}": "GET",
    "/api/v1/decisions": "GET",
    "/api/v1/acl": "PUT",
    f"/api/v1/acl/{'0' * 64}": "DELETE",
    "/api/v1/dead-letters/replay": "POST",
    "/health": "GET",
}


@pytest.fixture(scope="module")
def gate(shared_service: Callable[..., Service]) -> Service:
    return shared_service(server__allowed_origins=[ORIGIN, "http://desk.example:3000"])


def preflight(service: Service, path: str, method: str, origin: str = ORIGIN, **more: str) -> httpx.Response:
    marks = {"origin": origin, "access-control-request-method": method, "sec-fetch-site": "cross-site", **more}
    return service.client.options(path, headers=marks)


def words(answer: httpx.Response, name: str) -> set[str]:
    return {word.strip().lower() for word in answer.headers.get(name, "").split(",") if word.strip()}


def shows_nothing(answer: httpx.Response) -> bool:
    return not any(name.startswith("access-control-") for name in answer.headers)


def readable(answer: httpx.Response, origin: str = ORIGIN) -> bool:
    assert answer.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-credentials" not in answer.headers
    assert "origin" in words(answer, "vary")
    return words(answer, "access-control-expose-headers") >= {"x-request-id", "retry-after"}


@pytest.mark.parametrize(("path", "method"), PATHS.items())
def test_a_preflight_is_answered(gate: Service, path: str, method: str) -> None:
    asked = {"access-control-request-headers": "authorization,content-type,idempotency-key"}
    answer = preflight(gate, path, method, **asked)
    assert (answer.status_code, answer.content) == (204, b"")
    assert readable(answer)
    assert method.lower() in words(answer, "access-control-allow-methods")
    allowed = words(answer, "access-control-allow-headers")
    assert allowed >= {"authorization", "x-api-key", "content-type", "idempotency-key", "x-request-id", "traceparent"}
    assert int(answer.headers["access-control-max-age"]) > 0
    assert "*" not in answer.headers["access-control-allow-methods"] + answer.headers["access-control-allow-headers"]


def test_a_preflight_needs_no_key_but_the_request_does(service: Callable[..., Service]) -> None:
    gate = service(server__allowed_origins=[ORIGIN], security__api_keys=["admin:sha256:" + "0" * 64])
    assert preflight(gate, PATH, "POST").status_code == 204
    refused = gate.client.get("/api/v1/decisions", headers={"origin": ORIGIN})
    assert refused.status_code == 401
    assert readable(refused)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://desk.example", "https://desk.example:444", "*", "https://DESK"]
)
def test_the_preflight_of_another_page_is_refused(gate: Service, origin: str) -> None:
    for path, method in PATHS.items():
        answer = preflight(gate, path, method, origin)
        assert (answer.status_code, answer.json()["status"]) == (403, "forbidden")
        assert shows_nothing(answer)


def test_an_allowed_page_reads_every_answer(gate: Service, receiver: Site) -> None:
    for origin in (ORIGIN, "http://desk.example:3000"):
        marks = {"origin": origin, "sec-fetch-site": "cross-site"}
        answers = [
            (202, gate.client.post(PATH, json=gate.body(receiver.url()), headers=marks)),
            (400, gate.client.post(PATH, json={}, headers=marks)),
            (413, gate.client.post(PATH, json={"driver_token": "x" * 20_000}, headers=marks)),
            (415, gate.client.post(PATH, content=b"{}", headers={**marks, "content-type": "text/plain"})),
            (404, gate.client.get(f"{PATH}/{uuid.UUID(int=0)}", headers=marks)),
            (404, gate.client.get("/nothing", headers=marks)),
            (405, gate.client.delete(PATH, headers=marks)),
            (200, gate.client.get("/api/v1/decisions", headers=marks)),
            (200, gate.client.get("/health/live", headers=marks)),
            (405, gate.client.options(PATH, headers=marks)),
        ]
        for status, answer in answers:
            assert answer.status_code == status
            assert readable(answer, origin)


def test_others_see_no_sign_of_it(gate: Service, receiver: Site, service: Callable[..., Service]) -> None:
    assert shows_nothing(gate.client.get("/health/live"))
    assert shows_nothing(gate.post(gate.body(receiver.url())))
    foreign = gate.client.get("/health/live", headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403
    assert shows_nothing(foreign)
    closed = service()
    assert preflight(closed, PATH, "POST").status_code == 403
    own = preflight(closed, PATH, "POST", closed.url, **{"sec-fetch-site": "same-origin"})
    assert own.status_code == 405
    assert shows_nothing(own)
