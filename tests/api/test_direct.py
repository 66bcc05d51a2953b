"""What comes whole and without a fault is answered past ASGI. A client must not be able to tell."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.api.conftest import BODY, SESSION, TOKEN, Raw, Service, eventually

from chargegate.engines.memory.queue import MemoryQueue
from chargegate.keys import new_access_key
from chargegate.queues.base import Message, QueueUnavailable, Stored, put_in_task

CONTENT = json.dumps(BODY).encode()
JSON = b"content-type: application/json\r\n"
HOST = b"host: localhost\r\n"
PARENT = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"


def request(*lines: bytes, content: bytes = CONTENT, version: bytes = b"1.1", target: str = SESSION) -> bytes:
    head = b"POST %b HTTP/%b\r\n" % (target.encode(), version) + b"".join(lines)
    return head + b"content-length: %d\r\n\r\n" % len(content) + content


def asgi_only(app: ASGIApp) -> ASGIApp:
    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return plain


@pytest.fixture
def both(serve: Callable[..., Service], tmp_path: Path) -> Callable[..., tuple[Service, Service]]:
    """The same service twice: with the direct way, and without it."""

    def start(**options: Any) -> tuple[Service, Service]:
        (tmp_path / "other").mkdir()
        return serve(**options), serve(wrap=asgi_only, folder=tmp_path / "other", **options)

    return start


def told(service: Service, *sent: bytes) -> list[Any]:
    """The answers to requests on one connection, without what is another each time."""
    raw = Raw(service.port)
    try:
        answers = []
        for each in sent:
            raw.send(each)
            status, headers, body = raw.answer()
            headers.pop("date")
            fields = json.loads(body)
            given = headers.pop("x-request-id") if headers["x-request-id"] != "mine" else ""
            if status == 202:
                assert given in ("", fields["request_id"]) or len(given) == 32
            answers.append((status, headers, {name: fields[name] for name in fields if name != "timestamp"}))
            answers[-1][2].pop("request_id", None)
        return answers
    finally:
        raw.close()


FIRST = request(HOST, JSON)  # it makes the host known


@pytest.mark.parametrize(
    "sent",
    [
        request(HOST, JSON),
        request(HOST, JSON, b"x-request-id: mine\r\n"),
        request(HOST, JSON, b"x-request-id: " + TOKEN.encode() + b"\r\n"),
        request(HOST, JSON, b"x-request-id: not visible\r\n"),
        request(HOST, JSON, PARENT),
        request(HOST, JSON, b"traceparent: nonsense\r\n"),
        request(HOST, JSON, b"connection: close\r\n"),
        request(HOST, JSON, b"connection: keep-alive\r\n", version=b"1.0"),
        request(JSON, version=b"1.0"),
        request(HOST, JSON, b"expect: 100-continue\r\n"),
        request(HOST, JSON, b"idempotency-key: one\r\n"),
        request(HOST, JSON, b"idempotency-key: one\r\n", b"idempotency-key: two\r\n"),
        request(HOST, JSON, JSON),
        request(HOST, JSON, b"accept: a\r\n", b"accept: b\r\n"),
        request(HOST, JSON, b"origin: http://evil.example\r\n"),
        request(HOST, JSON, b"sec-fetch-site: cross-site\r\n"),
        request(b"host: elsewhere.example\r\n", JSON),
        request(HOST, b"content-type: application/json; charset=utf-8\r\n"),
        request(HOST, b"content-type: text/plain\r\n"),
        request(HOST),
        request(HOST, JSON, content=b"{}"),
        request(HOST, JSON, content=b"[1]"),
        request(HOST, JSON, content=CONTENT[:-1] + b"," + CONTENT[1:]),
        request(HOST, JSON, content=CONTENT[:-1] + b',"more":"' + b"x" * 17_000 + b'"}'),
        request(HOST, JSON, content=json.dumps({**BODY, "callback_url": "http://10.0.0.1/"}).encode()),
        request(HOST, JSON, target=SESSION + "?query"),
        request(HOST, JSON, target="http://localhost" + SESSION),
    ],
)
def test_the_direct_way_answers_as_the_application_does(
    both: Callable[..., tuple[Service, Service]], sent: bytes
) -> None:
    direct, plain = both()
    assert told(direct, FIRST, sent) == told(plain, FIRST, sent)
    assert direct.accepted() == plain.accepted()


_, KEY = new_access_key("client", "one")


@pytest.mark.parametrize(
    "options",
    [{"queue_size": 1}, {"rate_limit_per_second": 0.001, "rate_limit_burst": 1}, {"keys": [KEY]}],
    ids=["full", "limited", "without a key"],
)
def test_refusals_are_the_same(both: Callable[..., tuple[Service, Service]], options: dict[str, Any]) -> None:
    direct, plain = both(**options)
    first, second = told(direct, FIRST, FIRST, FIRST), told(plain, FIRST, FIRST, FIRST)
    assert first == second
    assert first[-1][0] in (503, 429, 401)


class Refusing(MemoryQueue):
    async def put(self, message: Message) -> None:
        raise QueueUnavailable("gone")

    def put_then(self, message: Message, done: Stored) -> None:
        put_in_task(self.put(message), done)


def test_a_queue_that_fails_later_is_a_503(serve: Callable[..., Service]) -> None:
    service = serve(queue=Refusing(10))
    raw = Raw(service.port)
    raw.send(FIRST + FIRST)
    assert raw.statuses(2) == [503, 503]
    raw.close()
    assert service.counted("unavailable") == 2


class Gated(MemoryQueue):
    """Puts wait until the gate is open."""

    def __init__(self) -> None:
        super().__init__(100)
        self.open = False
        self.asked = 0

    async def put(self, message: Message) -> None:
        self.asked += 1
        while not self.open:
            await asyncio.sleep(0.01)
        await super().put(message)

    def put_then(self, message: Message, done: Stored) -> None:
        put_in_task(self.put(message), done)


def test_a_client_that_leaves_before_its_answer_does_no_harm(serve: Callable[..., Service]) -> None:
    queue = Gated()
    service = serve(queue=queue)
    queue.open = True
    stays, leaves = Raw(service.port), Raw(service.port)
    stays.send(FIRST)
    assert stays.answer()[0] == 202
    queue.open = False
    leaves.send(FIRST)
    eventually(lambda: queue.asked == 2)
    leaves.close()
    queue.open = True
    eventually(lambda: service.accepted() == 2)
    stays.send(FIRST)
    assert stays.answer()[0] == 202
    stays.close()


def test_a_pipeline_is_answered_in_order_and_one_at_a_time(serve: Callable[..., Service]) -> None:
    service = serve(queue=MemoryQueue(1000), queue_size=1000)
    raw = Raw(service.port)
    raw.send(b"".join(request(HOST, JSON, b"x-request-id: %d\r\n" % number) for number in range(300)))
    assert [raw.answer()[1]["x-request-id"] for _ in range(300)] == [f"{number}" for number in range(300)]
    raw.close()


def test_a_client_that_does_not_read_is_not_read_from_and_gets_all_its_answers(serve: Callable[..., Service]) -> None:
    count = 20_000
    service = serve(queue=MemoryQueue(count), queue_size=count)
    raw = Raw(service.port)
    sending = threading.Thread(target=raw.send, args=(FIRST * count,), daemon=True)
    sending.start()
    assert set(raw.statuses(count)) == {202}
    sending.join(30)
    raw.close()


BROKEN = CONTENT[:-1] + b"]"


@pytest.mark.parametrize("pieces", [1, 2, 3, 400])
def test_a_head_that_came_before_is_taken_as_the_first_time(
    both: Callable[..., tuple[Service, Service]], pieces: int
) -> None:
    bodies = [CONTENT, BROKEN, CONTENT, CONTENT[:10] + b"\xff" + CONTENT[11:], CONTENT]
    sent = b"".join(request(HOST, JSON, b"x-request-id: mine\r\n", content=body) for body in bodies)
    size = max(1, len(sent) // pieces)

    def answers(service: Service) -> list[tuple[int, dict[str, str]]]:
        told(service, FIRST, *[request(HOST, JSON, b"x-request-id: mine\r\n")] * 2)
        raw = Raw(service.port)
        for start in range(0, len(sent), size):
            raw.send(sent[start : start + size])
        found = []
        for _ in bodies:
            status, headers, _ = raw.answer()
            headers.pop("date")
            found.append((status, headers))
        raw.close()
        return found

    direct, plain = both()
    assert answers(direct) == answers(plain)
    assert direct.accepted() == plain.accepted() == 6


def test_a_head_that_came_before_still_needs_its_key_and_its_host(serve: Callable[..., Service]) -> None:
    secret, line = new_access_key("client", "one")
    service = serve(keys=[line])
    sent = request(HOST, JSON, b"x-api-key: " + secret.encode() + b"\r\n")
    raw = Raw(service.port)
    raw.send(sent + sent)
    assert raw.statuses(2) == [202, 202]
    service.parts.access_keys.replace([KEY])
    raw.send(sent)
    assert raw.statuses(1) == [401]
    raw.close()


def test_many_different_heads_are_not_all_remembered(serve: Callable[..., Service]) -> None:
    service = serve(queue=MemoryQueue(5000), queue_size=5000)
    raw = Raw(service.port)
    count = 1200
    raw.send(b"".join(request(HOST, JSON, b"x-request-id: %d\r\n" % number) for number in range(count)))
    assert set(raw.statuses(count)) == {202}
    assert len(service.server.heads) <= 512
    raw.close()
