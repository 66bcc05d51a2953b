"""The worker with real queues, a real ledger and a real receiver on a socket."""

import asyncio
import contextlib
import json
import os
import resource
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from chargegate import worker
from chargegate.authorizers.base import AuthorizationError, AuthorizationTimeout, CircuitOpen
from chargegate.delivering.retry import RetryPolicy
from chargegate.delivering.sender import Sender
from chargegate.delivering.signing import Signer
from chargegate.engines.memory.queue import MemoryQueue
from chargegate.engines.sqlite import queue as sqlite_queue
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.http1 import HttpClient
from chargegate.keys import Keyring
from chargegate.ledger.records import Recorded, RequestRecord
from chargegate.model import ChargingRequest, Decision, RequestStatus, Status, Verdict, new_request_id, now_ms
from chargegate.observe import Metrics
from chargegate.queues.base import Delivery, Message, Queue
from chargegate.queues.envelope import wrap
from chargegate.worker import Worker

LIMIT_S = 20
STATION = "123E4567-e89b-12d3-a456-426614174000"
TOKEN = "driver-token-0123456789~A"
TRACEPARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
WHERE_IT_STANDS = """
SELECT a.status, r.status FROM authorization_audit a JOIN charging_requests r USING (request_id) WHERE request_id = ?"""
KEYRING = Keyring([os.urandom(32)], os.urandom(32))

Answer = Callable[["Received"], Awaitable[tuple[int, str]]]


class Received:
    def __init__(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.path = path
        self.headers = headers
        self.body = body

    @property
    def status(self) -> str:
        return str(json.loads(self.body)["status"])


class Receiver:
    """A client's callback endpoint. ``answer`` gives the status and further header lines; it may take its time."""

    def __init__(self) -> None:
        self.calls: list[Received] = []
        self.answer: Answer = self.yes
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def yes(self, _call: Received) -> tuple[int, str]:
        return 200, ""

    def answers(self, *statuses: int, headers: str = "") -> None:
        """One after another; the last stays."""
        left = list(statuses)

        async def answer(_call: Received) -> tuple[int, str]:
            return left.pop(0) if len(left) > 1 else left[0], headers

        self.answer = answer

    def holds(self) -> asyncio.Event:
        """Every answer waits for the event."""
        gate = asyncio.Event()

        async def answer(_call: Received) -> tuple[int, str]:
            await gate.wait()
            return 200, ""

        self.answer = answer
        return gate

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?a=b"

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def move(self, port: int) -> None:
        """To where a receiver of an earlier life was."""
        await self.stop()
        await self.start(port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers["content-length"]))
                call = Received(first.split()[1], headers, body)
                self.calls.append(call)
                status, extra = await self.answer(call)
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n{extra}\r\n".encode())


class Authorizer:
    """Says what it is told to, or raises it; counts, and can be held."""

    def __init__(self, outcome: Verdict | Exception | None = None) -> None:
        self.outcome = outcome or Verdict(Status.ALLOWED)
        self.asked: list[str] = []
        self.hashes: list[str] = []
        self.gate: asyncio.Event | None = None
        self.busy = self.busiest = 0

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        self.asked.append(request.request_id)
        self.hashes.append(token_hash)
        self.busy += 1
        self.busiest = max(self.busy, self.busiest)
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
        finally:
            self.busy -= 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def check(self) -> None: ...

    async def close(self) -> None: ...


class CountingLedger(SqliteLedger):
    tries = 0

    async def record(self, decision: Decision, created_at: int) -> Recorded:
        self.tries += 1
        return await super().record(decision, created_at)


class Scene:
    """One life of a service: its parts as the assembly joins them."""

    def __init__(self, folder: Path, store: SqliteStore, queue: Queue, receiver: Receiver) -> None:
        self.folder = folder
        self.store = store
        self.queue = queue
        self.receiver = receiver
        self.ledger = CountingLedger(store)
        self.authorizer = Authorizer()
        self.metrics = Metrics()
        self.client = HttpClient(max_connections=100)
        self.worker: Worker | None = None

    def work(self, **limits: Any) -> Worker:
        chosen: dict[str, Any] = {
            "retries": RetryPolicy(3, 10, 1_000),
            "concurrency": 8,
            "max_age_ms": 300_000,
            "deadline_ms": 60_000,
            "max_parked": 1_000,
            "max_connections": 100,
            "max_connections_per_destination": 20,
            "circuit_failures": 5,
            "circuit_probe_ms": 30,
        }
        timeout_ms = limits.pop("timeout_ms", 10_000)
        self.worker = Worker(
            queue=self.queue,
            ledger=self.ledger,
            authorizer=self.authorizer,
            keyring=KEYRING,
            sender=Sender(self.client, Signer([]), self.metrics, timeout_ms=timeout_ms),
            metrics=self.metrics,
            **(chosen | limits),
        )
        self.worker.start()
        return self.worker

    async def put(self, url: str = "", *, token: str = TOKEN, age_ms: int = 0, station: str = STATION) -> str:
        request_id, accepted_at = new_request_id(), now_ms() - age_ms
        request = ChargingRequest(request_id, station, token, url or self.receiver.url, accepted_at, TRACEPARENT)
        await self.queue.put(wrap(KEYRING, request))
        return request.request_id

    async def replay(self, request_id: str, url: str = "", at: int = 0) -> None:
        request = ChargingRequest(request_id, STATION, TOKEN, url or self.receiver.url, now_ms())
        await self.queue.put(wrap(KEYRING, request, replayed_at=at or now_ms() + 1))

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.005)

    async def record(self, request_id: str) -> RequestRecord:
        """The request once it has a decision."""
        while (found := await self.ledger.find(request_id)) is None:
            await asyncio.sleep(0.005)
        return found

    async def ended(self, request_id: str) -> RequestRecord:
        """The request once its callback has ended and it has left the queue."""
        while True:
            found = await self.ledger.find(request_id)
            if found is not None and found.processed_at is not None and await self.queue.find(request_id) is None:
                return found
            await asyncio.sleep(0.005)

    def count(self, metric: str, /, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(metric, labels) or 0.0

    async def close(self) -> None:
        if self.worker is not None:
            await self.worker.drain(0)
        await self.client.close()
        await self.receiver.stop()


Scenario = Callable[[Scene], Coroutine[Any, Any, None]]
Run = Callable[[Scenario], None]


@asynccontextmanager
async def opened(folder: Path, kind: str, receiver: Receiver) -> AsyncIterator[Scene]:
    store = await SqliteStore.open(folder / "test.db", ALL_TABLES, exclusive=True)
    queue: Queue = MemoryQueue(1_000) if kind == "memory" else await sqlite_queue.SqliteQueue.open(store, 1_000)
    scene = Scene(folder, store, queue, receiver)
    try:
        yield scene
    finally:
        await scene.close()
        await queue.close()
        await store.close()


def run_on(folder: Path, kind: str, scenario: Scenario) -> None:
    broken: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: broken.append(context))
        receiver = Receiver()
        await receiver.start()
        async with opened(folder, kind, receiver) as scene, asyncio.timeout(LIMIT_S):
            await scenario(scene)

    uvloop.run(main())
    assert not broken


@pytest.fixture(params=["memory", "sqlite"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    return lambda scenario: run_on(tmp_path, request.param, scenario)


@pytest.fixture
def run_durable(tmp_path: Path) -> Run:
    """Each run is another life of the same service."""
    return lambda scenario: run_on(tmp_path, "sqlite", scenario)


def test_a_request_is_decided_called_back_and_gone(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.work()
        request_id = await scene.put()
        record = await scene.ended(request_id)
        assert record.status is RequestStatus.COMPLETED
        assert record.decision is not None
        assert (record.decision.status, record.decision.reason) == (Status.ALLOWED, "")
        assert record.decision.driver_token_hash == KEYRING.token_hash(TOKEN)[:16]
        assert scene.authorizer.hashes == [KEYRING.token_hash(TOKEN)]
        assert record.callback is not None
        assert (record.callback.attempts, record.callback.last_status_code) == (1, 200)
        (call,) = scene.receiver.calls
        assert call.path == "/hook?a=b"
        assert call.body == f'{{"station_id":"{STATION}","driver_token":"{TOKEN}","status":"allowed"}}'.encode()
        assert call.headers["content-type"] == "application/json"
        assert call.headers["webhook-id"] == request_id
        assert call.headers["traceparent"] == TRACEPARENT
        assert scene.count("authorization_status_total", status="allowed") == 1
        assert scene.count("callback_deliveries_total", outcome="delivered") == 1
        assert scene.count("end_to_end_seconds_count") == 1
        assert scene.count("requests_in_flight") == 0

    run(scenario)


@pytest.mark.parametrize(
    ("outcome", "status", "reason", "ends"),
    [
        (Verdict(Status.NOT_ALLOWED, "token_blocked"), "not_allowed", "token_blocked", RequestStatus.COMPLETED),
        (Verdict(Status.INVALID), "invalid", "", RequestStatus.COMPLETED),
        (AuthorizationTimeout("late"), "unknown", "authorization_timeout", RequestStatus.TIMEOUT),
        (AuthorizationError("broken"), "unknown", "authorization_error", RequestStatus.COMPLETED),
        (CircuitOpen("open"), "unknown", "circuit_open", RequestStatus.COMPLETED),
    ],
    ids=["not_allowed", "invalid", "timeout", "error", "circuit"],
)
def test_whatever_the_authorizer_says_is_called_back(
    run: Run, outcome: Verdict | Exception, status: str, reason: str, ends: RequestStatus
) -> None:
    async def scenario(scene: Scene) -> None:
        scene.authorizer.outcome = outcome
        scene.work()
        record = await scene.ended(await scene.put())
        assert record.status is ends
        assert record.decision is not None
        assert (record.decision.status, record.decision.reason) == (status, reason)
        assert [call.status for call in scene.receiver.calls] == [status]

    run(scenario)


def test_a_cached_verdict_took_no_time(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.authorizer.outcome = Verdict(Status.ALLOWED, cached=True)
        scene.work()
        record = await scene.ended(await scene.put())
        assert record.decision is not None
        assert record.decision.processing_time_ms == 0

    run(scenario)


def test_one_at_a_time_is_strictly_one_after_another(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        answering = 0
        together: list[int] = []

        async def answer(_call: Received) -> tuple[int, str]:
            nonlocal answering
            answering += 1
            together.append(answering + scene.authorizer.busy)
            await asyncio.sleep(0.001)
            together.append(answering + scene.authorizer.busy)
            answering -= 1
            return 200, ""

        scene.receiver.answer = answer
        put = [await scene.put() for _ in range(30)]
        scene.work(concurrency=1)
        for request_id in put:
            await scene.ended(request_id)
        assert scene.authorizer.busiest == 1
        assert set(together) == {1}
        assert scene.authorizer.asked == put
        assert [call.headers["webhook-id"] for call in scene.receiver.calls] == put

    run(scenario)


def test_no_more_than_the_concurrency_is_under_way(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        gate = scene.authorizer.gate = asyncio.Event()
        put = [await scene.put() for _ in range(12)]
        scene.work(concurrency=3)
        await scene.until(lambda: scene.authorizer.busy == 3)
        assert (await scene.queue.depth()).waiting >= 12 - 6
        gate.set()
        for request_id in put:
            await scene.ended(request_id)
        assert scene.authorizer.busiest == 3

    run(scenario)


def test_a_decision_is_on_disk_before_its_callback(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        found: list[object] = []

        async def answer(call: Received) -> tuple[int, str]:
            with closing(sqlite3.connect(scene.folder / "test.db")) as connection:
                found.append(connection.execute(WHERE_IT_STANDS, (call.headers["webhook-id"],)).fetchone())
            return 200, ""

        scene.receiver.answer = answer
        scene.work()
        for request_id in [await scene.put() for _ in range(20)]:
            await scene.ended(request_id)
        assert found == [("allowed", "PROCESSING")] * 20

    run(scenario)


def test_after_a_death_the_same_decision_is_sent_and_nobody_is_asked_again(run_durable: Run) -> None:
    put: list[str] = []
    port: list[int] = []

    async def first_life(scene: Scene) -> None:
        scene.receiver.holds()
        port.append(scene.receiver.port)
        scene.work()
        put.append(await scene.put())
        await scene.until(lambda: scene.receiver.calls)

    async def second_life(scene: Scene) -> None:
        await scene.receiver.move(port[0])
        scene.authorizer.outcome = Verdict(Status.NOT_ALLOWED)
        scene.work()
        assert (await scene.ended(put[0])).status is RequestStatus.COMPLETED
        assert [call.status for call in scene.receiver.calls] == ["allowed"]
        assert scene.authorizer.asked == []

    run_durable(first_life)
    run_durable(second_life)


def test_what_was_delivered_before_a_death_is_not_sent_again(run_durable: Run) -> None:
    put: list[str] = []

    async def first_life(scene: Scene) -> None:
        scene.work()
        put.append(await scene.put())
        await scene.ended(put[0])
        message = wrap(KEYRING, ChargingRequest(put[0], STATION, TOKEN, scene.receiver.url, now_ms()))
        assert scene.worker is not None
        await scene.worker.drain(1)
        await scene.queue.put(message)  # as if its ack had been lost

    async def second_life(scene: Scene) -> None:
        scene.work()
        while await scene.queue.find(put[0]):
            await asyncio.sleep(0.005)
        assert scene.receiver.calls == []
        assert scene.authorizer.asked == []

    run_durable(first_life)
    run_durable(second_life)


def test_a_request_handed_out_again_while_it_is_under_way_is_sent_once(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        gate = scene.receiver.holds()
        scene.work()
        request_id = await scene.put()
        await scene.until(lambda: scene.receiver.calls)
        await scene.queue.put(wrap(KEYRING, ChargingRequest(request_id, STATION, TOKEN, scene.receiver.url, now_ms())))
        while (await scene.queue.depth()).waiting:
            await asyncio.sleep(0.005)
        gate.set()
        await scene.ended(request_id)
        await scene.until(lambda: scene.count("requests_in_flight") == 0)
        assert len(scene.receiver.calls) == 1
        assert scene.authorizer.asked == [request_id]

    run(scenario)


def test_a_request_that_waited_too_long_is_unknown_and_nobody_is_asked(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        old, young = await scene.put(age_ms=70_000), await scene.put(age_ms=50_000)
        scene.work(max_age_ms=60_000)
        record = await scene.ended(old)
        assert record.decision is not None
        assert (record.decision.status, record.decision.reason) == (Status.UNKNOWN, "expired_in_queue")
        assert record.status is RequestStatus.COMPLETED
        assert (await scene.ended(young)).decision.status is Status.ALLOWED  # type: ignore[union-attr]  # it has ended
        assert scene.authorizer.asked == [young]
        assert sorted(call.status for call in scene.receiver.calls) == ["allowed", "unknown"]

    run(scenario)


@pytest.mark.parametrize("fields", [{"token": "short"}, {"station": "nowhere"}, {"token": "x" * 81}])
def test_a_malformed_request_is_invalid_and_called_back_where_it_can_be(run: Run, fields: dict[str, str]) -> None:
    async def scenario(scene: Scene) -> None:
        scene.work()
        record = await scene.ended(await scene.put(**fields))  # type: ignore[arg-type]  # only texts are among them
        assert record.decision is not None
        assert (record.decision.status, record.decision.reason) == (Status.INVALID, "malformed_request")
        assert record.status is RequestStatus.COMPLETED
        assert [call.status for call in scene.receiver.calls] == ["invalid"]
        assert scene.authorizer.asked == []

    run(scenario)


def test_a_malformed_request_without_a_usable_url_is_a_dead_letter(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.work()
        request_id = await scene.put("ftp://client.example/")
        record = await scene.ended(request_id)
        assert record.status is RequestStatus.FAILED
        assert record.decision is not None
        assert (record.decision.status, record.decision.reason) == (Status.INVALID, "malformed_request")
        letter = await scene.ledger.dead_letter(request_id)
        assert letter is not None
        assert (letter.attempts, letter.last_error) == (0, "malformed_request")
        assert scene.receiver.calls == []

    run(scenario)


def test_a_sealed_body_that_is_no_request_is_a_dead_letter(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.work()
        request_id = new_request_id()
        await scene.queue.put(Message(request_id, STATION, now_ms(), KEYRING.seal(b"\xc1", request_id)))
        record = await scene.ended(request_id)
        assert record.status is RequestStatus.FAILED
        assert record.decision is not None
        assert record.decision.reason == "malformed_request"

    run(scenario)


@pytest.mark.parametrize(
    "body",
    [b"sealed by nobody", b"", KEYRING.seal(b"for another request", "another")],
    ids=["not sealed", "empty", "moved"],
)
def test_a_body_that_no_key_opens_is_invalid_and_nothing_to_send_again(run: Run, body: bytes) -> None:
    async def scenario(scene: Scene) -> None:
        worker = scene.work()
        request_id = new_request_id()
        await scene.queue.put(Message(request_id, STATION, now_ms(), body))
        record = await scene.ended(request_id)
        assert record.status is RequestStatus.FAILED
        assert record.decision is not None
        assert (record.decision.status, record.decision.reason) == (Status.INVALID, "malformed_request")
        assert await scene.ledger.dead_letter(request_id) is None
        assert worker.stuck == 0

    run(scenario)


def test_a_body_whose_key_is_missing_stays_and_holds_nobody_up(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        worker = scene.work(concurrency=1)
        request_id = new_request_id()
        sealed = Keyring([b"x" * 32], b"h" * 32).seal(b"plain", request_id)
        await scene.queue.put(Message(request_id, STATION, now_ms(), sealed))
        await scene.ended(await scene.put())
        assert worker.stuck == 1
        assert await scene.queue.find(request_id) is not None
        assert await scene.ledger.find(request_id) is None

    run(scenario)


def test_a_defect_of_a_queue_does_not_end_the_receiving(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(scene: Scene) -> None:
        whole = scene.queue.receive
        fail = True

        async def receive(limit: int) -> list[Delivery]:
            nonlocal fail
            if fail:
                fail = False
                raise IndexError("a client's defect")
            return await whole(limit)

        monkeypatch.setattr(scene.queue, "receive", receive)
        monkeypatch.setattr(worker, "_PAUSE_S", 0)
        scene.work()
        assert (await scene.ended(await scene.put())).status is RequestStatus.COMPLETED

    run(scenario)


def test_a_defect_of_an_authorizer_holds_nobody_up(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.authorizer.outcome = RuntimeError("defect")
        worker = scene.work(concurrency=1)
        stays = await scene.put()
        await scene.until(lambda: worker.stuck == 1)
        scene.authorizer.outcome = Verdict(Status.ALLOWED)
        await scene.ended(await scene.put())
        assert await scene.queue.find(stays) is not None

    run(scenario)


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    before = resource.prlimit(0, resource.RLIMIT_FSIZE)
    resource.prlimit(0, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(0, resource.RLIMIT_FSIZE, before)


def test_nothing_is_sent_while_the_ledger_is_away(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        for number in range(30):
            await scene.ledger.save_sink_position("room for what else is written", number)
        scene.work()
        with no_file_beyond((tmp_path / "test.db-wal").stat().st_size):
            request_id = await scene.put()
            await scene.until(lambda: scene.ledger.tries >= 2)
            assert scene.receiver.calls == []
        assert (await scene.ended(request_id)).status is RequestStatus.COMPLETED
        assert scene.authorizer.asked == [request_id]
        assert len(scene.receiver.calls) == 1

    run_on(tmp_path, "memory", scenario)


def test_a_failed_callback_is_tried_again_with_the_same_id_and_body(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.answers(500, 302, 204, headers="location: /elsewhere\r\n")
        scene.work()
        request_id = await scene.put()
        record = await scene.ended(request_id)
        assert record.status is RequestStatus.COMPLETED
        assert record.callback is not None
        assert (record.callback.attempts, record.callback.last_status_code, record.callback.last_error) == (
            3,
            204,
            None,
        )
        assert {call.headers["webhook-id"] for call in scene.receiver.calls} == {request_id}
        assert {call.path for call in scene.receiver.calls} == {"/hook?a=b"}
        assert len({call.body for call in scene.receiver.calls}) == 1
        assert len(scene.authorizer.asked) == 1
        assert scene.count("callback_deliveries_total", outcome="retry") == 2

    run(scenario)


def test_a_failed_attempt_is_seen_while_the_next_one_waits(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.answers(503)
        worker = scene.work(retries=RetryPolicy(3, 600_000, 600_000))
        request_id = await scene.put()
        await scene.until(lambda: worker.parked == 1)
        record = await scene.record(request_id)
        assert record.status is RequestStatus.PROCESSING
        assert record.callback is not None
        assert (record.callback.attempts, record.callback.last_error) == (1, "http_503")

    run(scenario)


def test_who_waits_for_a_retry_holds_no_slot(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.answers(503, 503, 503, 200)
        worker = scene.work(concurrency=1, retries=RetryPolicy(3, 600_000, 600_000))
        for _ in range(3):
            await scene.put()
        await scene.until(lambda: worker.parked == 3)
        await scene.ended(await scene.put())

    run(scenario)


def test_gone_ends_it_at_once(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.answers(410)
        scene.work()
        request_id = await scene.put()
        record = await scene.ended(request_id)
        assert record.status is RequestStatus.FAILED
        letter = await scene.ledger.dead_letter(request_id)
        assert letter is not None
        assert (letter.attempts, letter.last_status_code, letter.last_error) == (1, 410, "http_410")
        assert len(scene.receiver.calls) == 1
        assert scene.count("callback_deliveries_total", outcome="dead_letter") == 1

    run(scenario)


def test_retry_after_is_waited_for(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.answers(429, headers="retry-after: 600\r\n")
        worker = scene.work(retries=RetryPolicy(3, 1, 600_000))
        await scene.put()
        await scene.until(lambda: worker.parked == 1)
        scene.receiver.answers(200)
        await scene.ended(await scene.put())
        assert worker.parked == 1
        assert len(scene.receiver.calls) == 2

    run(scenario)


def test_a_dead_letter_is_replayed_with_the_decision_it_had(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.answers(503)
        scene.work()
        request_id = await scene.put()
        assert (await scene.ended(request_id)).status is RequestStatus.FAILED
        assert len(scene.receiver.calls) == 3
        assert await scene.ledger.count_dead_letters() == 1

        scene.authorizer.outcome = Verdict(Status.NOT_ALLOWED)
        scene.receiver.answers(500, 200)
        await scene.replay(request_id)
        while (await scene.ledger.count_dead_letters()) or (await scene.queue.find(request_id)):
            await asyncio.sleep(0.005)
        record = await scene.ended(request_id)
        assert record.status is RequestStatus.COMPLETED
        assert record.callback is not None
        assert record.callback.attempts == 2
        assert [call.status for call in scene.receiver.calls] == ["allowed"] * 5
        assert scene.authorizer.asked == [request_id]

    run(scenario)


def test_what_was_delivered_is_sent_again_with_the_decision_it_had(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.work()
        request_id = await scene.put()
        first = await scene.ended(request_id)
        scene.authorizer.outcome = Verdict(Status.NOT_ALLOWED)
        await scene.replay(request_id)
        await scene.until(lambda: len(scene.receiver.calls) == 2)
        again = await scene.ended(request_id)
        while again.processed_at == first.processed_at or again.status is not RequestStatus.COMPLETED:
            await asyncio.sleep(0.005)
            again = await scene.record(request_id)
        assert again.decision == first.decision
        assert [call.status for call in scene.receiver.calls] == ["allowed"] * 2
        assert {call.headers["webhook-id"] for call in scene.receiver.calls} == {request_id}
        assert scene.authorizer.asked == [request_id]

    run(scenario)


def test_a_message_that_was_moved_twice_is_delivered_once(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.work()
        request_id = await scene.put()
        await scene.ended(request_id)
        request = ChargingRequest(request_id, STATION, TOKEN, scene.receiver.url, now_ms())
        await scene.queue.put(wrap(KEYRING, request))
        await scene.put()
        await scene.until(lambda: len(scene.receiver.calls) == 2)
        while await scene.queue.find(request_id):
            await asyncio.sleep(0.005)
        assert [call.headers["webhook-id"] for call in scene.receiver.calls].count(request_id) == 1

    run(scenario)


def test_a_replay_of_what_was_delivered_meanwhile_sends_nothing(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        asked_at = now_ms()
        scene.work()
        request_id = await scene.put()
        await scene.ended(request_id)
        await scene.replay(request_id, at=asked_at)
        await scene.put()
        await scene.until(lambda: len(scene.receiver.calls) == 2)
        while await scene.queue.find(request_id):
            await asyncio.sleep(0.005)
        assert [call.headers["webhook-id"] for call in scene.receiver.calls].count(request_id) == 1

    run(scenario)


def test_a_deadline_ends_the_retries(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.answers(503)
        scene.work(deadline_ms=150, retries=RetryPolicy(100, 600_000, 600_000))
        request_id = await scene.put()
        assert (await scene.ended(request_id)).status is RequestStatus.FAILED
        letter = await scene.ledger.dead_letter(request_id)
        assert letter is not None
        assert (letter.attempts, letter.last_status_code) == (1, 503)
        assert letter.failed_at - (await scene.record(request_id)).decision.timestamp >= 150  # type: ignore[union-attr]  # it is decided

    run(scenario)


def test_a_receiver_that_never_answers_is_a_timeout(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.holds()
        scene.work(timeout_ms=50, retries=RetryPolicy(2, 1, 1))
        request_id = await scene.put()
        assert (await scene.ended(request_id)).status is RequestStatus.FAILED
        letter = await scene.ledger.dead_letter(request_id)
        assert letter is not None
        assert (letter.attempts, letter.last_status_code, letter.last_error) == (2, None, "timeout")

    run(scenario)


def test_a_slow_destination_does_not_delay_another(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        slow = Receiver()
        await slow.start()
        try:
            gate = slow.holds()
            worker = scene.work(concurrency=4, max_connections_per_destination=2)
            late = [await scene.put(slow.url) for _ in range(10)]
            await scene.until(lambda: worker.parked == 8)
            for request_id in [await scene.put() for _ in range(20)]:
                await scene.ended(request_id)
            assert len(slow.calls) == 2
            gate.set()
            for request_id in late:
                assert (await scene.ended(request_id)).status is RequestStatus.COMPLETED
        finally:
            await slow.stop()

    run(scenario)


def test_a_dead_destination_is_probed_and_its_callbacks_keep_their_attempts(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        dead = Receiver()
        await dead.start()
        await dead.stop()
        url, port = dead.url, dead.port
        worker = scene.work(circuit_failures=2, circuit_probe_ms=20)
        put = [await scene.put(url) for _ in range(5)]
        await scene.until(lambda: worker.open_circuits == 1 and worker.parked == 5)
        duration = scene.count("callback_duration_seconds_count")
        await scene.until(lambda: scene.count("callback_duration_seconds_count") >= duration + 4)
        await scene.ended(await scene.put())
        await dead.start(port)
        try:
            for request_id in put:
                record = await scene.ended(request_id)
                assert record.status is RequestStatus.COMPLETED
                assert record.callback is not None
                assert record.callback.attempts <= 3
            assert worker.open_circuits == 0
            assert scene.count("circuit_breaker_state", name="callbacks") == 0
        finally:
            await dead.stop()

    run(scenario)


def test_a_dead_destinations_callbacks_end_at_their_deadline(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        dead = Receiver()
        await dead.start()
        await dead.stop()
        worker = scene.work(circuit_failures=1, circuit_probe_ms=600_000, deadline_ms=300)
        put = [await scene.put(dead.url) for _ in range(5)]
        for request_id in put:
            assert (await scene.ended(request_id)).status is RequestStatus.FAILED
            letter = await scene.ledger.dead_letter(request_id)
            assert letter is not None
            assert letter.last_error in ("connection_refused", "deadline_exceeded")
        assert worker.parked == 0

    run(scenario)


def test_the_limit_in_all_is_shared_by_destinations_that_have_one_callback_each(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        others = [Receiver() for _ in range(4)]
        for other in others:
            await other.start()
        try:
            gate = others[0].holds()
            worker = scene.work(max_connections=1)
            put = [await scene.put(others[0].url)]
            await scene.until(lambda: others[0].calls)
            put += [await scene.put(other.url) for other in others[1:]]
            await scene.until(lambda: worker.parked == 3)
            gate.set()
            for request_id in put:
                assert (await scene.ended(request_id)).status is RequestStatus.COMPLETED
        finally:
            for other in others:
                await other.stop()

    run(scenario)


def test_past_so_many_parked_nothing_more_is_taken(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.answers(503)
        worker = scene.work(concurrency=1, max_parked=3, retries=RetryPolicy(2, 100, 100))
        put = [await scene.put() for _ in range(10)]
        await scene.until(lambda: worker.parked >= 3)
        assert worker.parked <= 4
        scene.receiver.answers(200)
        for request_id in put:
            await scene.ended(request_id)

    run(scenario)


def test_a_drain_ends_what_is_under_way_and_leaves_the_rest(run_durable: Run) -> None:
    put: list[str] = []
    port: list[int] = []

    async def first_life(scene: Scene) -> None:
        gate = scene.receiver.holds()
        port.append(scene.receiver.port)
        put.extend([await scene.put() for _ in range(6)])
        worker = scene.work(concurrency=2)
        await scene.until(lambda: len(scene.receiver.calls) == 2)
        draining = asyncio.ensure_future(worker.drain(LIMIT_S))
        await asyncio.sleep(0)
        gate.set()
        await draining
        assert len(scene.receiver.calls) == 2
        for call in scene.receiver.calls:
            assert (await scene.ended(call.headers["webhook-id"])).status is RequestStatus.COMPLETED

    async def second_life(scene: Scene) -> None:
        assert (await scene.queue.depth()).waiting == 4
        await scene.receiver.move(port[0])
        scene.work()
        for request_id in put:
            assert (await scene.ended(request_id)).status is RequestStatus.COMPLETED
        assert len(scene.receiver.calls) == 4

    run_durable(first_life)
    run_durable(second_life)


def test_a_drain_that_runs_out_of_time_leaves_what_is_under_way(run_durable: Run) -> None:
    async def first_life(scene: Scene) -> None:
        scene.receiver.holds()
        for _ in range(3):
            await scene.put()
        worker = scene.work(concurrency=2)
        await scene.until(lambda: len(scene.receiver.calls) == 2)
        await worker.drain(0)

    async def second_life(scene: Scene) -> None:
        assert (await scene.queue.depth()).waiting == 3

    run_durable(first_life)
    run_durable(second_life)


def test_a_delivery_that_ends_during_a_drain_is_recorded_though_others_wait_in_line(run_durable: Run) -> None:
    """One more slot is idle, and room for the next in line comes while nothing may start any more."""

    async def first_life(scene: Scene) -> None:
        gate = scene.receiver.holds()
        worker = scene.work(concurrency=3, max_connections_per_destination=1)
        first, second = await scene.put(), await scene.put()
        await scene.until(lambda: len(scene.receiver.calls) == 1 and worker.parked == 1)
        draining = asyncio.ensure_future(worker.drain(LIMIT_S))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gate.set()
        await draining
        delivered = scene.receiver.calls[0].headers["webhook-id"]
        assert {delivered} < {first, second}
        assert (await scene.record(delivered)).status is RequestStatus.COMPLETED
        assert worker.stuck == 0

    async def second_life(scene: Scene) -> None:
        assert (await scene.queue.depth()).waiting == 1

    run_durable(first_life)
    run_durable(second_life)


def test_a_retry_that_comes_due_during_a_drain_is_left(run_durable: Run) -> None:
    async def first_life(scene: Scene) -> None:
        scene.receiver.answers(503)
        worker = scene.work(concurrency=3, retries=RetryPolicy(3, 100, 100))
        await scene.put()
        await scene.put()
        await scene.until(lambda: worker.parked == 2)
        gate = scene.receiver.holds()
        await scene.put()
        await scene.until(lambda: len(scene.receiver.calls) == 3)
        draining = asyncio.ensure_future(worker.drain(LIMIT_S))
        await scene.until(lambda: worker.parked == 0)
        gate.set()
        await draining

    async def second_life(scene: Scene) -> None:
        assert (await scene.queue.depth()).waiting == 2

    run_durable(first_life)
    run_durable(second_life)


def test_the_log_holds_neither_token_nor_url(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.answers(503, 410)
        scene.authorizer.outcome = AuthorizationError("broken")
        scene.work()
        await scene.ended(await scene.put())
        await scene.ended(await scene.put(token="much-too-short"))
        await scene.ended(await scene.put("http://user:pass@client.example/"))

    run(scenario)
    logged = capfd.readouterr()
    assert "dead letter" in logged.err
    for secret in (TOKEN, "much-too-short", "/hook", "127.0.0.1", "client.example"):
        assert secret not in logged.err + logged.out
