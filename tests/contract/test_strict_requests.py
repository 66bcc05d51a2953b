"""Requests that two readers could take for different things are refused, and a token is never given back."""

from __future__ import annotations

import hashlib
import json
import socket
import uuid
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from tests.contract.conftest import Service, Site

PATH = "/api/v1/charging-session"
JSON = {"content-type": "application/json"}
KEY = "cg_admin_" + "k" * 43


@pytest.fixture(scope="module")
def gate(shared_service: Callable[..., Service]) -> Service:
    return shared_service(server__request_timeout_ms=1000)


@pytest.fixture(scope="module")
def locked(shared_service: Callable[..., Service]) -> Service:
    return shared_service(security__api_keys=[f"admin:sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"])


def refused(answer: httpx.Response, *fields: str) -> None:
    assert (answer.status_code, answer.json()["status"]) == (400, "validation_error"), answer.text
    assert set(answer.json().get("details", ())) >= set(fields)


BEARER = ("authorization", f"Bearer {KEY}")
API_KEY = ("x-api-key", KEY)


@pytest.mark.parametrize(
    ("headers", "names"),
    [
        ([BEARER, BEARER], ["Authorization"]),
        ([("authorization", "Basic eA=="), BEARER], ["Authorization"]),
        ([BEARER, ("Authorization", "Bearer x")], ["Authorization"]),
        ([API_KEY, API_KEY], ["X-API-Key"]),
        ([API_KEY, ("X-Api-Key", "")], ["X-API-Key"]),
        ([BEARER, API_KEY], ["Authorization", "X-API-Key"]),
        ([API_KEY, ("authorization", "Basic eA==")], ["Authorization", "X-API-Key"]),
        ([BEARER, ("idempotency-key", "a"), ("idempotency-key", "a")], ["Idempotency-Key"]),
        ([BEARER, ("idempotency-key", "a"), ("Idempotency-Key", "b")], ["Idempotency-Key"]),
    ],
)
def test_a_header_that_identifies_stands_once(
    gate: Service, locked: Service, receiver: Site, headers: list[tuple[str, str]], names: list[str]
) -> None:
    for each in (gate, locked):
        refused(each.client.post(PATH, json=each.body(receiver.url()), headers=[*JSON.items(), *headers]), *names)
        refused(each.client.get("/api/v1/acl", headers=headers), *names)
        refused(each.client.get(f"{PATH}/{uuid.uuid4()}", headers=headers), *names)


def test_one_key_is_enough(locked: Service, receiver: Site) -> None:
    for header in (BEARER, API_KEY):
        answer = locked.client.post(PATH, json=locked.body(receiver.url()), headers=[header])
        assert answer.status_code == 202


@pytest.mark.parametrize(
    "added",
    [
        b'"more":"\xff"',
        b'"more":"\xc3("',
        b'"more":"\xed\xa0\x80"',
        b'"more":"\xc0\xaf"',
        b'"more":{"deep":["\x80"]}',
        b'"m\xff":1',
        b'"more":"' + "ü".encode("latin-1") + b'"',
    ],
)
def test_a_body_is_utf_8_everywhere(gate: Service, receiver: Site, added: bytes) -> None:
    for method, path, body in targets(gate, receiver):
        content = json.dumps(body).encode()[:-1] + b"," + added + b"}"
        refused(gate.client.request(method, path, content=content, headers=JSON))


def test_other_languages_are_fine(gate: Service, receiver: Site) -> None:
    for text in ("ü", "充電", "🔌", "\u0000"):
        body = gate.body(receiver.url(), more={text: text})
        for content in (json.dumps(body), json.dumps(body, ensure_ascii=False)):
            assert gate.client.post(PATH, content=content.encode(), headers=JSON).status_code == 202


def targets(gate: Service, receiver: Site) -> list[tuple[str, str, dict[str, Any]]]:
    """Requests that read a body, each with a good one."""
    body = gate.body(receiver.url())
    question = {"station_id": body["station_id"], "driver_token": body["driver_token"]}
    return [
        ("POST", PATH, body),
        ("POST", "/api/v1/acl/check", question),
        ("PUT", "/api/v1/acl", {"driver_token": body["driver_token"]}),
    ]


def escaped(name: str) -> str:
    return name.replace("_", "\\u005f").replace("d", "\\u0064", 1)


@pytest.mark.parametrize("spelled", [str, escaped], ids=["plain", "escaped"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_field_stands_once(gate: Service, receiver: Site, spelled: Callable[[str], str], *, first: bool) -> None:
    for method, path, body in targets(gate, receiver):
        for name, value in body.items():
            for other in (value, "x", None):
                again = f'"{spelled(name)}":{json.dumps(other)}'
                rest = json.dumps(body)[1:-1]
                content = "{" + (f"{again},{rest}" if first else f"{rest},{again}") + "}"
                refused(gate.client.request(method, path, content=content.encode(), headers=JSON), name)


def test_unknown_fields_stand_once_too(gate: Service, receiver: Site) -> None:
    body = gate.body(receiver.url())
    for added, name in (
        ('"more":1,"more":1', "more"),
        ('"more":1,"mor\\u0065":2', "more"),
        ('"more":{"deep":[{"x":1,"x":1}]}', "x"),
    ):
        content = f"{json.dumps(body)[:-1]},{added}}}"
        refused(gate.client.post(PATH, content=content.encode(), headers=JSON), name)
    token = body["driver_token"]
    content = f'{json.dumps(body)[:-1]},"{token}":1,"{token}":2}}'
    answer = gate.client.post(PATH, content=content.encode(), headers=JSON)
    refused(answer)
    assert token not in answer.text
    assert gate.post({**body, "more": {"station_id": 1}, "other": [{"x": 1}, {"x": 1}]}).status_code == 202


def test_a_field_may_be_spelled_with_escapes(gate: Service, receiver: Site) -> None:
    body = gate.body(receiver.url())
    content = json.dumps(body)
    for name in body:
        content = content.replace(f'"{name}"', f'"{escaped(name)}"')
    assert gate.client.post(PATH, content=content.encode(), headers=JSON).status_code == 202


def broken_bodies(body: dict[str, Any]) -> list[bytes]:
    whole = json.dumps(body).encode()
    token = str(body["driver_token"]).encode()
    return [
        whole,
        whole[:-1],
        whole[: whole.index(token) + len(token)],
        whole.replace(b"{", b"{{"),
        b"[" + whole + b"]",
        whole[:-1] + b',"x":"\xff"}',
        whole.replace(b"driver_token", b"driver-token"),
        whole.replace(b"station_id", b"station"),
        whole.replace(b'"driver_token": "d', b'"driver_token": "\\u0064'),
        whole + b" " * 20_000,
        b"",
    ]


@pytest.mark.parametrize("decoration", ["{}", "id-{}", "{}-1", "a/{}/b"])
@pytest.mark.parametrize("media_type", ["application/json", "text/plain"])
def test_a_token_is_never_given_back(gate: Service, receiver: Site, media_type: str, decoration: str) -> None:
    for method, path in (("POST", PATH), ("PUT", "/api/v1/acl"), ("POST", "/api/v1/acl/check"), ("POST", "/nothing")):
        body = gate.body(receiver.url())
        token = body["driver_token"]
        headers = {"content-type": media_type, "x-request-id": decoration.format(token)}
        for content in broken_bodies(body):
            answer = gate.client.request(method, path, content=content, headers=headers)
            assert token not in answer.text + str(answer.headers)
            assert answer.headers["x-request-id"]
        assert token not in gate.log


@pytest.mark.parametrize("end", ["close", "wait"])
@pytest.mark.parametrize("framing", ["content-length: 900\r\n\r\n", "transfer-encoding: chunked\r\n\r\n140\r\n"])
def test_a_token_is_not_given_back_where_its_body_is_cut_off(
    gate: Service, receiver: Site, framing: str, end: str
) -> None:
    for token in (f"driver-{uuid.uuid4().hex}", str(uuid.uuid4()), uuid.uuid4().hex):
        body = json.dumps(gate.body(receiver.url(), driver_token=token))
        for cut in (0, body.index(token) + 10, body.index(token) + len(token) + 2):
            with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as connection:
                head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                connection.sendall(f"{head}x-request-id: {token}\r\n{framing}{body[:cut]}".encode())
                if end == "close":
                    connection.shutdown(socket.SHUT_WR)
                received = b""
                while data := connection.recv(4096):
                    received += data
            assert token.encode() not in received
        assert token not in gate.log


@pytest.mark.parametrize(
    "given",
    [
        "1",
        "my-trace-1",
        "0af7651916cd43dd8448eb211c80319c",
        "123E4567-e89b-12d3-a456-426614174000",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "service/2026/part:7",
    ],
)
def test_ordinary_ids_come_back(gate: Service, receiver: Site, given: str) -> None:
    headers = {"x-request-id": given}
    body = gate.body(receiver.url())
    for answer in (
        gate.client.post(PATH, json=body, headers=headers),
        gate.client.post(PATH, json={**body, "station_id": "x"}, headers=headers),
        gate.client.post(PATH, content=b"{", headers={**JSON, **headers}),
        gate.client.post(PATH, content=b"", headers=headers),
        gate.client.put("/api/v1/acl", json={"driver_token": body["driver_token"]}, headers=headers),
        gate.client.get("/health/live", headers=headers),
        gate.client.get("/nothing", headers=headers),
        gate.client.get("/health", headers={"host": "evil.example", **headers}),
    ):
        assert answer.headers["x-request-id"] == given


def test_any_id_comes_back_where_the_request_is_accepted(gate: Service, receiver: Site) -> None:
    given = "a.long.id.of.the.clients.own-" + uuid.uuid4().hex
    assert gate.post(gate.body(receiver.url()), x_request_id=given).headers["x-request-id"] == given
