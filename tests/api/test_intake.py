"""POST /api/v1/charging-session, row by row of the contract."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tests.api.conftest import BODY, SESSION, TOKEN, Raw, Service, eventually

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


def test_counts_what_it_refuses(serve: Callable[..., Service]) -> None:
    service = serve(queue_size=0)
    json_type = {"content-type": "application/json"}
    assert service.http.post(SESSION, json={}).status_code == 400
    assert service.http.post(SESSION, content=b"{").status_code == 415  # no content type at all
    assert service.http.post(SESSION, content=b"{" * 20_000, headers=json_type).status_code == 413
    assert service.http.post(SESSION, json=BODY).status_code == 503
    assert [service.counted(outcome) for outcome in ("invalid", "unsupported", "too_large", "unavailable")] == [1] * 4
    assert service.accepted() == 0


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


def test_says_that_https_is_required(serve: Callable[..., Service]) -> None:
    service = serve(require_https=True)
    answer = service.http.post(SESSION, json={**BODY, "station_id": "x", "callback_url": "http://example.com/"})
    details = refused(answer, 400, "validation_error", "station_id", "callback_url")["details"]
    assert details["callback_url"] == "must be an https URL"


def test_refuses_when_the_queue_is_unreachable(service: Service, client: httpx.Client) -> None:
    service.run(service.queue.close())
    answer = client.post(SESSION, json=BODY)
    refused(answer, 503, "service_unavailable")
    assert int(answer.headers["retry-after"]) >= 1


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


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE"])
def test_other_methods_are_not_allowed(client: httpx.Client, method: str) -> None:
    answer = client.request(method, SESSION)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    if method != "HEAD":
        refused(answer, 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/api/v1/%00", "/docs/"])
def test_other_paths_are_not_found(client: httpx.Client, path: str) -> None:
    refused(client.post(path, json=BODY), 404, "not_found")


def test_a_client_that_leaves_early_is_no_error(
    service: Service, raw: Callable[..., Raw], capfd: pytest.CaptureFixture[str]
) -> None:
    connection = raw()
    head = f"POST {SESSION} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99"
    connection.send(head.encode() + b"\r\n\r\n")
    eventually(lambda: service.server.under_way > 0)
    connection.close()
    eventually(lambda: service.server.under_way == 0)
    assert service.accepted() == 0
    assert "rror" not in "".join(capfd.readouterr())
