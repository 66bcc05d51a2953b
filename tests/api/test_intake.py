"""POST /api/v1/charging-session, row by row of the contract."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.api.conftest import BODY, SESSION, STATION, TOKEN, Raw, Service, eventually

from chargegate.engines.memory.queue import MemoryQueue
from chargegate.keys import new_access_key
from chargegate.model import ACCEPTED_MESSAGE
from chargegate.queues.base import Message
from chargegate.queues.envelope import unwrap

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def refused(answer: httpx.Response, status: int, code: str, *fields: str) -> dict[str, Any]:
    """The error's one shape: nothing more, nothing less, and no token."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert TOKEN not in answer.text
    error: dict[str, Any] = answer.json()
    assert error["status"] == code
    assert error["message"]
    assert isinstance(error["timestamp"], int)
    assert set(error) == {"status", "message", "timestamp"} | ({"details"} if fields else set())
    assert set(error.get("details", ())) == set(fields)
    return error


def taken(service: Service) -> Message:
    [delivery] = service.run(service.queue.receive(10))
    return delivery.message


def test_accepts_and_queues_what_was_sent(service: Service, client: httpx.Client) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = client.post(SESSION, json={**BODY, "more": [1]}, headers={"traceparent": parent})
    assert answer.status_code == 202
    accepted = answer.json()
    assert list(accepted) == ["status", "message", "request_id", "timestamp"]
    assert accepted["status"] == "accepted"
    assert accepted["message"] == ACCEPTED_MESSAGE
    assert UUID.fullmatch(accepted["request_id"])
    message = taken(service)
    request, replayed_at = unwrap(service.keyring, message)
    assert TOKEN.encode() not in message.body
    assert replayed_at == 0
    assert (request.request_id, request.accepted_at) == (accepted["request_id"], accepted["timestamp"])
    assert (request.station_id, request.driver_token, request.callback_url) == tuple(BODY.values())
    assert request.traceparent == parent
    assert service.counted("accepted") == 1


def test_accepts_the_other_spelling_and_a_media_type_with_parameters(service: Service, client: httpx.Client) -> None:
    body = {"stationId": STATION, "driverToken": TOKEN, "callbackUrl": BODY["callback_url"]}
    content_type = {"content-type": 'Application/JSON ; charset="utf-8"', "traceparent": "00-nonsense"}
    answer = client.post(SESSION, content=json.dumps(body), headers=content_type)
    assert answer.status_code == 202
    request, _ = unwrap(service.keyring, taken(service))
    assert (request.station_id, request.driver_token, request.callback_url) == tuple(BODY.values())
    assert request.traceparent == ""


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["station_id", "driver_token", "callback_url"]),
        ({**BODY, "station_id": STATION[:-1]}, ["station_id"]),
        ({**BODY, "station_id": STATION.replace("-", "")}, ["station_id"]),
        ({**BODY, "station_id": 7, "driver_token": None}, ["station_id", "driver_token"]),
        ({**BODY, "driver_token": "x" * 19}, ["driver_token"]),
        ({**BODY, "driver_token": "x" * 81}, ["driver_token"]),
        ({**BODY, "driver_token": TOKEN + "\n"}, ["driver_token"]),
        ({**BODY, "driver_token": TOKEN + "é"}, ["driver_token"]),
        ({**BODY, "driverToken": TOKEN}, ["driver_token"]),
        ({**BODY, "callback_url": {}}, ["callback_url"]),
        ({**BODY, "callback_url": "/callback"}, ["callback_url"]),
        ({**BODY, "callback_url": "ftp://example.com/"}, ["callback_url"]),
        ({**BODY, "callback_url": "https://user@example.com/"}, ["callback_url"]),
        ({**BODY, "callback_url": "https://example.com/#part"}, ["callback_url"]),
        ({**BODY, "callback_url": "https://example.com/" + "x" * 2048}, ["callback_url"]),
        ({**BODY, "callback_url": "http://127.0.0.1/"}, ["callback_url"]),
        ({**BODY, "callback_url": "http://[::ffff:10.0.0.1]:99/"}, ["callback_url"]),
        ({**BODY, "callback_url": "http://0x7f.1/"}, ["callback_url"]),
        ({"callbackUrl": "http://127.0.0.1/"}, ["station_id", "driver_token", "callback_url"]),
        ({**BODY, "driver_token": "x", "callback_url": "http://[::1]/"}, ["driver_token", "callback_url"]),
    ],
)
def test_names_every_field_at_fault(client: httpx.Client, body: dict[str, Any], fields: list[str]) -> None:
    refused(client.post(SESSION, json=body), 400, "validation_error", *fields)


def test_names_a_wrong_key_together_with_the_fields(client: httpx.Client) -> None:
    wrong = {"idempotency-key": "two words"}
    for body, fields in [
        (BODY, []),
        ({**BODY, "callback_url": "http://127.0.0.1/"}, ["callback_url"]),
        ({**BODY, "station_id": "x", "callback_url": "http://127.0.0.1/"}, ["station_id", "callback_url"]),
    ]:
        error = refused(
            client.post(SESSION, json=body, headers=wrong), 400, "validation_error", *fields, "Idempotency-Key"
        )
        assert all(field in error["message"] for field in (*fields, "Idempotency-Key"))
    content_type = {"content-type": "application/json", **wrong}
    answer = client.post(SESSION, content=b"[]", headers=content_type)
    assert "JSON object" in refused(answer, 400, "validation_error", "Idempotency-Key")["message"]


def test_says_that_an_address_is_blocked_unless_it_was_opened(client: httpx.Client) -> None:
    error = refused(
        client.post(SESSION, json={**BODY, "callback_url": "http://169.254.169.254/"}),
        400,
        "validation_error",
        "callback_url",
    )
    assert error["details"]["callback_url"] == "leads to a blocked network"
    assert client.post(SESSION, json={**BODY, "callback_url": "http://192.0.2.7/"}).status_code == 202


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 16000, b'{"a":1}x'])
def test_refuses_what_is_no_json_object(service: Service, client: httpx.Client, content: bytes) -> None:
    answer = client.post(SESSION, content=content, headers={"content-type": "application/json"})
    refused(answer, 400, "validation_error")
    assert service.counted("invalid") == 1


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/jsonx", "application/xml", ""])
def test_refuses_other_media_types(service: Service, client: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    refused(client.post(SESSION, content=json.dumps(BODY), headers=headers), 415, "unsupported_media_type")
    assert service.counted("unsupported") == 1


def padded(size: int) -> bytes:
    body = json.dumps(BODY).encode()
    return body + b" " * (size - len(body))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(16384, 202), (16385, 413), (400_000, 413)])
def test_limits_the_body_to_16_kib(client: httpx.Client, size: int, status: int, *, chunked: bool) -> None:
    def pieces() -> Iterator[bytes]:
        body = padded(size)
        yield from (body[start : start + 1000] for start in range(0, size, 1000))

    content = pieces() if chunked else padded(size)
    answer = client.post(SESSION, content=content, headers={"content-type": "application/json"})
    if status == 413:
        refused(answer, 413, "payload_too_large")
    else:
        assert answer.status_code == 202


def test_can_ask_for_https(serve: Callable[..., Service]) -> None:
    service = serve(require_https=True)
    answer = service.http.post(SESSION, json={**BODY, "callback_url": "http://example.com/"})
    assert refused(answer, 400, "validation_error", "callback_url")["details"]["callback_url"] == "must be an https URL"
    answer = service.http.post(SESSION, json={**BODY, "station_id": "x", "callback_url": "http://example.com/"})
    details = refused(answer, 400, "validation_error", "station_id", "callback_url")["details"]
    assert details["callback_url"] == "must be an https URL"
    assert service.http.post(SESSION, json=BODY).status_code == 202


def test_refuses_when_the_queue_is_full(serve: Callable[..., Service]) -> None:
    service = serve(queue_size=1)
    assert service.http.post(SESSION, json=BODY).status_code == 202
    answer = service.http.post(SESSION, json=BODY)
    refused(answer, 503, "service_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert service.accepted() == 1
    assert service.counted("unavailable") == 1


def test_refuses_when_the_queue_is_unreachable(service: Service, client: httpx.Client) -> None:
    service.run(service.queue.close())
    answer = client.post(SESSION, json=BODY)
    refused(answer, 503, "service_unavailable")
    assert int(answer.headers["retry-after"]) >= 1


def test_refuses_while_draining(service: Service, client: httpx.Client) -> None:
    service.draining = True
    answer = client.post(SESSION, json=BODY)
    refused(answer, 503, "service_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert service.accepted() == 0


class Broken(MemoryQueue):
    async def put(self, message: Message) -> None:
        raise KeyError(message.body.hex() + TOKEN)


def test_a_defect_is_answered_counted_and_shows_nothing(
    serve: Callable[..., Service], capfd: pytest.CaptureFixture[str]
) -> None:
    service = serve(queue=Broken(1))
    answer = service.http.post(SESSION, json=BODY)
    refused(answer, 500, "internal_error")
    assert "Traceback" not in answer.text
    assert service.counted("internal_error") == 1
    out, err = capfd.readouterr()
    assert "KeyError" in out + err
    assert TOKEN not in out + err


@pytest.mark.parametrize("value", ["a", "!" * 128, "0f-9.trace~id"])
def test_echoes_a_request_id(client: httpx.Client, value: str) -> None:
    for answer in (
        client.post(SESSION, json=BODY, headers={"x-request-id": value}),
        client.post(SESSION, json={}, headers={"x-request-id": value}),
        client.get("/nowhere", headers={"x-request-id": value}),
        client.get("/health/live", headers={"x-request-id": value}),
    ):
        assert answer.headers["x-request-id"] == value


@pytest.mark.parametrize("value", [b"", b"two words", b"!" * 129, "schön".encode()])
def test_makes_a_request_id_where_the_client_has_no_good_one(client: httpx.Client, value: bytes) -> None:
    for answer in (client.post(SESSION, json=BODY, headers={"x-request-id": value}), client.get("/health")):
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


@pytest.mark.parametrize("body", [BODY, {**BODY, "callback_url": "nothing"}, {"driverToken": TOKEN}])
def test_never_echoes_a_token(client: httpx.Client, body: dict[str, str]) -> None:
    answer = client.post(SESSION, json=body, headers={"x-request-id": "id-" + TOKEN})
    assert TOKEN not in str(answer.headers) + answer.text
    assert answer.headers["x-request-id"]


def test_every_answer_has_the_security_headers(serve: Callable[..., Service]) -> None:
    service = serve(keys=[new_access_key("client")[1]])
    for answer in (
        service.http.post(SESSION, json=BODY),
        service.http.get("/nowhere"),
        service.http.get("/docs"),
        service.http.put("/health"),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"]
        assert "date" in answer.headers
        assert "server" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_not_allowed(client: httpx.Client, method: str) -> None:
    answer = client.request(method, SESSION)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    if method != "HEAD":
        refused(answer, 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/", SESSION + "/", "/api/v1", "/api/v2/charging-session", "/api/v1/%00", "/docs/"])
def test_other_paths_are_not_found(client: httpx.Client, path: str) -> None:
    refused(client.post(path, json=BODY), 404, "not_found")


def test_a_client_that_leaves_early_is_no_error(
    service: Service, raw: Callable[..., Raw], capfd: pytest.CaptureFixture[str]
) -> None:
    connection = raw()
    connection.send(
        f"POST {SESSION} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n".encode()
    )
    eventually(lambda: bool(service.server._state.tasks))
    connection.close()
    eventually(lambda: not service.server._state.tasks)
    assert service.accepted() == 0
    assert "rror" not in "".join(capfd.readouterr())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*BODY, "driverToken"]) | st.text(), inner),
        max_leaves=8,
    )
)
def test_no_json_at_all_gives_a_server_error(client: httpx.Client, value: Any) -> None:
    content = json.dumps(value)
    answer = client.post(SESSION, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["status"] == "validation_error"
