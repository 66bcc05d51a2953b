"""``POST /api/v1/charging-session``: what is accepted, and what is refused with which error."""

from __future__ import annotations

import json
import re
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from tests.contract.conftest import Reply, Service, Site

PATH = "/api/v1/charging-session"
MESSAGE = "Request is being processed asynchronously. The result will be sent to the provided callback URL."
STATION = "123e4567-e89b-12d3-a456-426614174000"
TOKEN = "0123456789-driver.token~x_Y"
LIMIT = 16 * 1024


@pytest.fixture(scope="module")
def gate(shared_service: Callable[..., Service]) -> Service:
    return shared_service()


def check_error(answer: httpx.Response, http: int, code: str, *fields: str) -> None:
    """The one shape of every error, with the fields at fault and nothing of what was sent."""
    assert (answer.status_code, answer.headers["content-type"]) == (http, "application/json")
    error = answer.json()
    assert error["status"] == code
    assert error.keys() - {"details"} == {"status", "message", "timestamp"}
    assert error["message"]
    assert abs(error["timestamp"] / 1000 - time.time()) < 60
    assert set(error.get("details", {})) == set(fields)
    assert all(isinstance(why, str) and why for why in error.get("details", {}).values())
    assert TOKEN not in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["x-request-id"]


def send(gate: Service, content: bytes, content_type: str = "application/json") -> httpx.Response:
    return gate.client.post(PATH, content=content, headers={"content-type": content_type})


def test_accepted(gate: Service, receiver: Site) -> None:
    before = int(time.time() * 1000)
    answer = gate.post(gate.body(receiver.url()))
    assert (answer.status_code, answer.headers["content-type"]) == (202, "application/json")
    assert answer.json().keys() == {"status", "message", "request_id", "timestamp"}
    assert (answer.json()["status"], answer.json()["message"]) == ("accepted", MESSAGE)
    assert str(uuid.UUID(answer.json()["request_id"])) == answer.json()["request_id"]
    assert before - 1000 <= answer.json()["timestamp"] <= time.time() * 1000 + 1000
    assert answer.headers["x-request-id"]


def test_x_request_id(gate: Service, receiver: Site) -> None:
    good, bad = gate.body(receiver.url()), gate.body(receiver.url(), driver_token="short")
    for body in (good, bad):
        assert gate.post(body, X_Request_ID="what-the-client/calls:it").headers["x-request-id"] == (
            "what-the-client/calls:it"
        )
        first, second = (gate.post(body).headers["x-request-id"] for _ in range(2))
        assert first != second
    assert gate.client.get("/nowhere", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"


@pytest.mark.parametrize(
    "camel", [("stationId",), ("driverToken",), ("callbackUrl",), ("stationId", "driverToken", "callbackUrl")]
)
def test_both_spellings(gate: Service, receiver: Site, camel: tuple[str, ...]) -> None:
    body = gate.body(receiver.url(), station_id=str(uuid.uuid4()))
    renamed = {name: re.sub("([A-Z])", lambda letter: "_" + letter[0].lower(), name) for name in camel}
    for other, name in renamed.items():
        both = {**body, other: body[name]}
        check_error(gate.post(both), 400, "validation_error", name)
        body[other] = body.pop(name)
    answer = gate.post(body)
    assert answer.status_code == 202


def test_unknown_fields_are_ignored(gate: Service, receiver: Site) -> None:
    body = gate.body(receiver.url(), priority="high", nested={"callback_url": ["x"]}, STATION_ID=1)
    assert gate.post(body).status_code == 202


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "application/json;charset=UTF-8", "Application/JSON ; a=b"],
)
def test_content_types_of_json(gate: Service, receiver: Site, content_type: str) -> None:
    assert send(gate, json.dumps(gate.body(receiver.url())).encode(), content_type).status_code == 202


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "application/ld+json", "", "json"],
)
def test_other_content_types(gate: Service, receiver: Site, content_type: str) -> None:
    answer = send(gate, json.dumps(gate.body(receiver.url())).encode(), content_type)
    check_error(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "station", [STATION, STATION.upper(), "123E4567-e89b-12D3-a456-426614174000", str(uuid.UUID(int=0))]
)
def test_stations(gate: Service, receiver: Site, station: str) -> None:
    asked = gate.ask(receiver.url(), station_id=station)
    assert gate.finished(asked)["station_id"] == station
    assert receiver.calls_to(asked.callback_url)[0].json["station_id"] == station


@pytest.mark.parametrize("token", ["a" * 20, "Z" * 80, "ABCxyz0189.._~--~~..", "." * 20])
def test_tokens(gate: Service, receiver: Site, token: str) -> None:
    asked = gate.ask(receiver.url(), driver_token=token)
    gate.finished(asked)
    assert receiver.calls_to(asked.callback_url)[0].json["driver_token"] == token


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "HTTP://EXAMPLE.COM/a?b=c&d=%20",
        "http://example.com:65535/",
        "http://sub.example.com./x",
        "http://xn--bcher-kva.example/",
        "http://8.8.8.8/x",
        "http://[2001:4860:4860::8888]:8080/x",
        "http://example.com/" + "x" * 2029,
    ],
)
def test_callback_urls(gate: Service, url: str) -> None:
    assert gate.post(gate.body(url)).status_code == 202


@pytest.mark.parametrize(("field", "value"), [
    *[("station_id", value) for value in (
        "", "x", STATION[:-1], STATION + "0", STATION.replace("-", ""), f"{{{STATION}}}", f"urn:uuid:{STATION}",
        STATION.replace("1", "g"), STATION + "\n", " " + STATION, STATION.replace("1", "\u0661"), None, 1, True, [], {},
        [STATION],
    )],
    *[("driver_token", value) for value in (
        "", "a" * 19, "a" * 81, "a" * 20 + "\n", "a" * 20 + " ", "a" * 20 + "+", "a" * 20 + "\u00e9", "a" * 20 + "/",
        "a" * 20 + "\x00", "=" + "a" * 20, None, 12345678901234567890, ["a" * 20], {"a": 1},
    )],
    *[("callback_url", value) for value in (
        "", "example.com", "/path", "//example.com/", "ftp://example.com/", "file:///etc/passwd", "javascript:alert(1)",
        "http://", "http:///x", "http://:80/", "https:example.com", "http://user@example.com/",
        "http://user:pw@example.com/", "http://example.com/#part", "http://example.com#", "http://example.com:0/",
        "http://example.com:65536/", "http://example.com:x/", "http://exa mple.com/", "http://example.com/a b",
        "http://example.com/\n", "http://example.com/\r\nHost: x", "http://example.com\\@x/", "http://[::1/",
        "http://[x]/", "http://b\u00fccher.example/", "http://example.com/" + "x" * 2030, None, 5,
        ["http://a.example"], {},
    )],
])  # fmt: skip
def test_a_field_against_its_rule(gate: Service, field: str, value: Any) -> None:
    body = {"station_id": STATION, "driver_token": TOKEN, "callback_url": "http://example.com/"}
    check_error(gate.post({**body, field: value}), 400, "validation_error", field)
    del body[field]
    check_error(gate.post(body), 400, "validation_error", field)


def test_every_field_at_fault_is_named(gate: Service) -> None:
    check_error(gate.post({}), 400, "validation_error", "station_id", "driver_token", "callback_url")
    body = {"station_id": "x", "driver_token": f"{TOKEN}!", "callback_url": "http://u@example.com/"}
    check_error(gate.post(body), 400, "validation_error", "station_id", "driver_token", "callback_url")
    for blocked in ("http://10.0.0.1/", "http://[::ffff:169.254.169.254]/"):
        body = {"station_id": STATION, "callback_url": blocked}
        check_error(gate.post(body), 400, "validation_error", "driver_token", "callback_url")
        answer = gate.post(body, Idempotency_Key="two words")
        check_error(answer, 400, "validation_error", "driver_token", "callback_url", "Idempotency-Key")


def test_https_where_it_is_required(service: Callable[..., Service]) -> None:
    strict = service(callback__require_https=True)
    body = strict.body("http://example.com/")
    check_error(strict.post(body), 400, "validation_error", "callback_url")
    check_error(strict.post({**body, "station_id": "x"}), 400, "validation_error", "station_id", "callback_url")
    assert strict.post({**body, "callback_url": "https://example.com/"}).status_code == 202


@pytest.mark.parametrize(
    "content",
    [b"", b" ", b"{", b"[]", b"null", b'"text"', b"1", b"\xff\xfe", b'{"station_id": "\xff"}', b"{'a': 1}", b"{}x",
     b'{"a": NaN}', b'{"a":' * 3000, b"[" * 8000],
)  # fmt: skip
def test_what_is_no_json_object(gate: Service, content: bytes) -> None:
    check_error(send(gate, content), 400, "validation_error")


def test_no_path_and_no_method(gate: Service) -> None:
    for path in ("/", "/api/v1", "/api/v1/charging-sessions", PATH + "/", f"/api/v2/{TOKEN}"):
        check_error(gate.client.get(path), 404, "not_found")
    check_error(gate.client.get(f"{PATH}/{uuid.uuid4()}"), 404, "not_found")
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        answer = gate.client.request(method, PATH)
        check_error(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
    check_error(gate.client.post("/api/v1/decisions"), 405, "method_not_allowed")


def padded(gate: Service, url: str, size: int) -> bytes:
    body = json.dumps(gate.body(url, padding="")).encode()
    return body.replace(b'"padding": ""', b'"padding": "%b"' % (b"x" * (size - len(body))))


def test_the_limit_of_a_body(gate: Service, receiver: Site) -> None:
    largest = padded(gate, receiver.url(), LIMIT)
    assert len(largest) == LIMIT
    assert send(gate, largest).status_code == 202
    check_error(send(gate, padded(gate, receiver.url(), LIMIT + 1)), 413, "payload_too_large")
    check_error(send(gate, b"x" * 3_000_000), 413, "payload_too_large")


def test_the_limit_of_a_body_without_a_length(gate: Service, receiver: Site) -> None:
    def pieces(size: int) -> Any:
        body = padded(gate, receiver.url(), size)
        return (body[start : start + 1000] for start in range(0, size, 1000))

    headers = {"content-type": "application/json"}
    assert gate.client.post(PATH, content=pieces(LIMIT), headers=headers).status_code == 202
    for size in (LIMIT + 1, 200_000):
        answer = gate.client.post(PATH, content=pieces(size), headers=headers)
        check_error(answer, 413, "payload_too_large")


def spoken(gate: Service, request: bytes) -> bytes:
    """What comes back for bytes that no well-behaved client sends."""
    with socket.create_connection(("127.0.0.1", gate.port), 20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    "request_",
    [
        b"no HTTP at all\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
        b"POST /api/v1/charging-session HTTP/1.1\r\n\r\n",
        b"POST /api/v1/charging-session HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /api/v1/charging-session HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nhost: x\r\nbig: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_http(gate: Service, request_: bytes) -> None:
    head, _, body = spoken(gate, request_).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["status"] == "validation_error"


def test_a_client_that_leaves_in_the_middle(gate: Service, receiver: Site) -> None:
    request = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{{"
    assert not spoken(gate, request.encode()).startswith(b"HTTP/1.1 5")
    gate.finished(gate.ask(receiver.url()))


def test_a_key_is_one_request(gate: Service, receiver: Site, eventually: Callable[..., Any]) -> None:
    body, key = gate.body(receiver.url()), uuid.uuid4().hex
    with ThreadPoolExecutor(50) as clients:
        answers = list(clients.map(lambda _: gate.post(body, Idempotency_Key=key), range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert {answer.json()["message"] for answer in answers} == {MESSAGE}
    (request_id,) = {answer.json()["request_id"] for answer in answers}
    eventually(lambda: receiver.calls_to(body["callback_url"]))
    other = {**body, "station_id": STATION}
    check_error(gate.post(other, Idempotency_Key=key), 422, "idempotency_conflict")
    assert gate.post(body, Idempotency_Key=key).json()["request_id"] == request_id
    assert gate.post(body, Idempotency_Key=f"{key}2").json()["request_id"] != request_id
    assert gate.post(body).json()["request_id"] != request_id
    eventually(lambda: len(receiver.calls_to(body["callback_url"])) == 3)
    by_key = [call for call in receiver.calls_to(body["callback_url"]) if call.headers["webhook-id"] == request_id]
    assert len(by_key) == 1
    assert len([row for row in gate.csv_rows() if row[1] == request_id]) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "caf\xe9", "a\tb"])
def test_what_is_no_key(gate: Service, receiver: Site, key: str) -> None:
    answer = gate.client.post(
        PATH, json=gate.body(receiver.url()), headers=[(b"idempotency-key", key.encode("latin-1"))]
    )
    check_error(answer, 400, "validation_error", "Idempotency-Key")


@pytest.mark.parametrize("key", ["x" * 255, "!~#$%&'()*+,-./:;<=>?@[]^_`{|}", TOKEN])
def test_keys(gate: Service, receiver: Site, key: str) -> None:
    body = gate.body(receiver.url())
    first, second = (gate.post(body, Idempotency_Key=key) for _ in range(2))
    assert first.status_code == second.status_code == 202
    assert first.json()["request_id"] == second.json()["request_id"]
    assert TOKEN not in gate.log


def test_a_key_of_a_refused_body_is_free(gate: Service, receiver: Site) -> None:
    key = uuid.uuid4().hex
    good = gate.body(receiver.url())
    check_error(gate.post({**good, "driver_token": "x"}, Idempotency_Key=key), 400, "validation_error", "driver_token")
    assert gate.post(good, Idempotency_Key=key).status_code == 202


def test_a_key_across_restarts(service: Callable[..., Service], receiver: Site) -> None:
    gate = service()
    body, key = gate.body(receiver.url()), uuid.uuid4().hex
    request_id = gate.post(body, Idempotency_Key=key).json()["request_id"]
    gate.restart()
    assert gate.post(body, Idempotency_Key=key).json()["request_id"] == request_id
    gate.kill()
    gate.start()
    check_error(gate.post({**body, "station_id": STATION}, Idempotency_Key=key), 422, "idempotency_conflict")
    assert gate.post(body, Idempotency_Key=key).json()["request_id"] == request_id
    assert gate.stop() == 0
    assert [row[0] for row in gate.audit_rows()] == [request_id]


@pytest.mark.parametrize("queue", ["sqlite", "memory://"])
def test_a_full_queue(
    service: Callable[..., Service],
    receiver: Site,
    authorizer: Site,
    answer: Callable[..., Reply],
    eventually: Callable[..., Any],
    queue: str,
) -> None:
    gate = service(
        queue__url=queue,
        queue__max_size=3,
        queue__consumer_concurrency=1,
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
    )
    token = f"driver-{uuid.uuid4().hex}"
    authorizer.plan(token, answer("allowed", how="held"))
    taken = gate.ask(receiver.url(), driver_token=token)
    eventually(lambda: authorizer.calls_to(token))
    waiting = [gate.ask(receiver.url()) for _ in range(3)]
    assert gate.metrics()["queue_depth"] == 3
    key, body = uuid.uuid4().hex, gate.body(receiver.url())
    for headers in ({}, {"Idempotency_Key": key}):
        refused = gate.post(body, **headers)
        check_error(refused, 503, "service_unavailable")
        assert int(refused.headers["retry-after"]) > 0
    assert gate.ready() == 503
    assert gate.client.get("/health").status_code == 503
    authorizer.release(token)
    for asked in (taken, *waiting):
        assert gate.finished(asked)["status"] == "COMPLETED"
    assert gate.ready() == 200
    again = gate.post(body, Idempotency_Key=key)
    assert again.status_code == 202
    eventually(lambda: receiver.calls_to(body["callback_url"]))
    assert [call.headers["webhook-id"] for call in receiver.calls_to(body["callback_url"])] == [
        again.json()["request_id"]
    ]
