"""The worker with real queues, a real ledger and a real receiver: what cannot be seen from outside of the process, or
not be brought about from there. What a client sees is in ``tests/contract``."""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import uvloop

from chargegate.authorizers.base import AuthorizationError
from chargegate.authorizers.decider import Decider
from chargegate.delivering.retry import RetryPolicy
from chargegate.delivering.sender import Sender
from chargegate.delivering.signing import Signer
from chargegate.delivering.states import CallbackLimits
from chargegate.engines.memory.queue import MemoryQueue
from chargegate.engines.sqlite import queue as sqlite_queue
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.http1 import HttpClient
from chargegate.keys import Keyring
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.records import Recorded, RequestRecord
from chargegate.model import ChargingRequest, Decision, RequestStatus, Status, Verdict, new_request_id, now_ms
from chargegate.observe import Metrics
from chargegate.queues.base import Delivery, Message, Queue
from chargegate.queues.envelope import wrap
from chargegate.worker import Worker, working
from outside import Call, Reply, Site, sites

LIMIT_S = 20
STATION = "123E4567-e89b-12d3-a456-426614174000"
TOKEN = "driver-token-0123456789~A"
HOOK = "/hook?a=b"
HELD = Reply(how="held")
WHERE_IT_STANDS = """
SELECT a.status, r.status FROM authorization_audit a JOIN charging_requests r USING (request_id) WHERE request_id = ?"""
KEYRING = Keyring([os.urandom(32)], os.urandom(32))
LIMITS: dict[str, Any] = {
    "retries": RetryPolicy(3, 10, 1_000),
    "deadline_ms": 60_000,
    "max_parked": 1_000,
    "max_connections": 100,
    "max_connections_per_destination": 20,
    "circuit_failures": 5,
    "circuit_probe_ms": 30,
    "circuit_forget_ms": 30_000,
}


class Authorizer:
    """Answers with ``outcome``, or raises it; counts, and can be held."""

    def __init__(self) -> None:
        self.outcome: Verdict | Exception = Verdict(Status.ALLOWED)
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


class Scene:
    """One run of a service: its parts, joined as the application joins them."""

    def __init__(self, folder: Path, store: SqliteStore, queue: Queue, receiver: Site) -> None:
        self.folder = folder
        self.queue = queue
        self.receiver = receiver
        self.ledger = SqliteLedger(store)
        self.authorizer = Authorizer()
        self.metrics = Metrics()
        self.client = HttpClient(max_connections=100)
        self.worker: Worker | None = None
        self.known: Verdict | None = None
        """What is known of every driver without asking the authorizer."""

    def work(self, *, concurrency: int = 8, **limits: Any) -> Worker:
        self.worker = Worker(
            queue=self.queue,
            ledger=self.ledger,
            decider=Decider(
                self.authorizer, KEYRING, self.metrics, max_age_ms=300_000, known=lambda _hash, _station: self.known
            ),
            keyring=KEYRING,
            sender=Sender(self.client, Signer([]), self.metrics, timeout_ms=10_000),
            limits=CallbackLimits(**(LIMITS | limits)),
            concurrency=concurrency,
            metrics=self.metrics,
        )
        self.worker.start()
        return self.worker

    async def put(self, url: str = "", *, token: str = TOKEN, station: str = STATION) -> str:
        request_id = new_request_id()
        await self.put_again(request_id, url, token=token, station=station)
        return request_id

    async def put_again(
        self, request_id: str, url: str = "", *, token: str = TOKEN, station: str = STATION, replayed_at: int = 0
    ) -> None:
        """Into the queue, as it is where an ack was lost or, with ``replayed_at``, a replay was asked for."""
        request = ChargingRequest(request_id, station, token, url or self.receiver.url(HOOK), now_ms())
        await self.queue.put(wrap(KEYRING, request, replayed_at))

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.005)

    async def gone(self, request_id: str) -> None:
        """Until the request has left the queue."""
        while await self.queue.find(request_id):
            await asyncio.sleep(0.005)

    async def ended(self, request_id: str) -> RequestRecord:
        """The request once its callback has ended and it has left the queue."""
        while True:
            found = await self.ledger.find(request_id)
            if found is not None and found.processed_at is not None and await self.queue.find(request_id) is None:
                return found
            await asyncio.sleep(0.005)

    def told(self) -> list[str]:
        """The request ids of the calls that the receiver got."""
        return [call.headers["webhook-id"] for call in list(self.receiver.calls)]

    def count(self, metric: str, /, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(metric, labels) or 0.0

    async def close(self) -> None:
        if self.worker is not None:
            await self.worker.drain(0)
        await self.client.close()


Scenario = Callable[[Scene], Coroutine[Any, Any, None]]
Run = Callable[[Scenario], None]
MakeSite = Callable[..., Site]


@asynccontextmanager
async def opened(folder: Path, kind: str, receiver: Site) -> AsyncIterator[Scene]:
    store = await SqliteStore.open(folder / "test.db", ALL_TABLES, exclusive=True)
    queue: Queue = MemoryQueue(1_000) if kind == "memory" else await sqlite_queue.SqliteQueue.open(store, 1_000)
    scene = Scene(folder, store, queue, receiver)
    try:
        yield scene
    finally:
        await scene.close()
        await queue.close()
        await store.close()


def run_on(folder: Path, kind: str, receiver: Site, scenario: Scenario) -> None:
    complaints: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        async with opened(folder, kind, receiver) as scene, asyncio.timeout(LIMIT_S):
            await scenario(scene)

    uvloop.run(main())
    assert not complaints


@pytest.fixture
def site() -> Iterator[MakeSite]:
    with sites() as make:
        yield make


@pytest.fixture(params=["memory", "sqlite"])
def run(request: pytest.FixtureRequest, tmp_path: Path, site: MakeSite) -> Run:
    return lambda scenario: run_on(tmp_path, request.param, site(), scenario)


@pytest.fixture
def run_durable(tmp_path: Path, site: MakeSite) -> Run:
    """Each run is another process of the same service; the receiver stays."""
    receiver = site()
    return lambda scenario: run_on(tmp_path, "sqlite", receiver, scenario)


def test_a_request_is_decided_called_back_counted_and_gone(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.work()
        request_id = await scene.put()
        record = await scene.ended(request_id)
        assert record.decision is not None
        assert record.decision.driver_token_hash == KEYRING.token_hash(TOKEN)[:16]
        assert scene.authorizer.hashes == [KEYRING.token_hash(TOKEN)]
        assert scene.told() == [request_id]
        assert scene.count("authorization_status_total", status="allowed") == 1
        assert scene.count("callback_deliveries_total", outcome="delivered") == 1
        assert scene.count("end_to_end_seconds_count") == 1
        assert scene.count("requests_in_flight") == 0

    run(scenario)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_driver_who_is_known_is_decided_without_asking(run: Run, concurrency: int) -> None:
    async def scenario(scene: Scene) -> None:
        scene.known = Verdict(Status.NOT_ALLOWED)
        put = [await scene.put() for _ in range(30)]
        scene.work(concurrency=concurrency)
        for request_id in put:
            record = await scene.ended(request_id)
            assert record.decision is not None
            assert record.decision.status is Status.NOT_ALLOWED
        assert scene.authorizer.asked == []
        assert sorted(scene.told()) == sorted(put)
        if concurrency == 1:
            assert scene.receiver.most_connected == 1
            assert scene.told() == put
        assert scene.count("authorization_status_total", status="not_allowed") == 30
        assert scene.count("callback_deliveries_total", outcome="delivered") == 30
        assert scene.count("requests_in_flight") == 0

    run(scenario)


@pytest.mark.parametrize("written", [False, True])
def test_a_database_that_fails_a_known_drivers_decision_gets_it_again(
    run: Run, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been written, and the answer was lost."""

    async def scenario(scene: Scene) -> None:
        record_then = scene.ledger.record_then

        def fail(decision: Decision, at: int, client: str, done: Callable[[Recorded | Exception], None]) -> None:
            if written:
                record_then(decision, at, client, lambda _: done(LedgerUnavailable("no answer")))
            else:
                asyncio.get_running_loop().call_soon(done, LedgerUnavailable("away"))

        monkeypatch.setattr(scene.ledger, "record_then", fail)
        scene.known = Verdict(Status.ALLOWED)
        worker = scene.work()
        request_id = await scene.put()
        await scene.ended(request_id)
        assert scene.told() == [request_id]
        assert scene.count("authorization_status_total", status="allowed") == 1
        assert scene.count("decision_cache_total", outcome="miss") == 1
        assert worker.stuck == 0

    run(scenario)


def test_a_known_drivers_request_that_somebody_decided_keeps_its_decision(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        request_id = new_request_id()
        hashed = KEYRING.token_hash(TOKEN)[:16]
        earlier = Decision(request_id, STATION, hashed, Status.NOT_ALLOWED, "", 7, now_ms() - 1_000)
        await scene.ledger.record(earlier, now_ms())
        scene.known = Verdict(Status.ALLOWED)
        scene.work()
        await scene.put_again(request_id)
        record = await scene.ended(request_id)
        assert record.decision == earlier
        assert scene.told() == [request_id]
        assert scene.count("authorization_status_total", status="allowed") == 0

    run(scenario)


def test_what_is_being_recorded_when_a_drain_begins_is_delivered_in_its_time(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(scene: Scene) -> None:
        record_then = scene.ledger.record_then
        recorded: list[Callable[[], None]] = []

        def hold(decision: Decision, at: int, client: str, done: Callable[[Recorded | Exception], None]) -> None:
            record_then(decision, at, client, lambda answer: recorded.append(lambda: done(answer)))

        monkeypatch.setattr(scene.ledger, "record_then", hold)
        scene.known = Verdict(Status.ALLOWED)
        worker = scene.work()
        put = [await scene.put() for _ in range(2)]
        await scene.until(lambda: len(recorded) == 2)
        draining = asyncio.ensure_future(worker.drain(LIMIT_S))
        await asyncio.sleep(0)
        for go_on in recorded:
            go_on()
        await draining
        assert sorted(scene.told()) == sorted(put)
        assert (await scene.queue.depth()).waiting == 0
        assert scene.count("requests_in_flight") == 0

    run(scenario)


def test_a_defect_after_a_known_drivers_decision_holds_nobody_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(scene: Scene) -> None:
        scene.known = Verdict(Status.ALLOWED)
        worker = scene.work(concurrency=1)
        with monkeypatch.context() as broken:
            broken.setattr(worker, "_callback", lambda *_: 1 / 0)
            await scene.put()
            await scene.until(lambda: worker.stuck == 1)
        request_id = await scene.put()
        await scene.ended(request_id)
        assert scene.told() == [request_id]

    run(scenario)


def test_one_at_a_time_is_strictly_one_after_another(run: Run, site: MakeSite) -> None:
    async def scenario(scene: Scene) -> None:
        deciding: list[int] = []

        def answered(_call: Call) -> Reply:
            deciding.append(scene.authorizer.busy)
            time.sleep(0.001)
            deciding.append(scene.authorizer.busy)
            return Reply()

        scene.receiver = site(answered)
        put = [await scene.put() for _ in range(30)]
        scene.work(concurrency=1)
        for request_id in put:
            await scene.ended(request_id)
        assert scene.authorizer.busiest == 1
        assert set(deciding) == {0}
        assert scene.receiver.most_connected == 1
        assert scene.authorizer.asked == put
        assert scene.told() == put

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


def test_a_decision_is_on_disk_before_its_callback(run: Run, site: MakeSite) -> None:
    async def scenario(scene: Scene) -> None:
        found: list[object] = []

        def answered(call: Call) -> Reply:
            with closing(sqlite3.connect(scene.folder / "test.db")) as connection:
                found.append(connection.execute(WHERE_IT_STANDS, (call.headers["webhook-id"],)).fetchone())
            return Reply()

        scene.receiver = site(answered)
        scene.work()
        for request_id in [await scene.put() for _ in range(20)]:
            await scene.ended(request_id)
        assert found == [("allowed", "PROCESSING")] * 20

    run(scenario)


def test_a_failed_attempt_is_on_disk_before_its_wait_begins(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.plan(HOOK, Reply(503))
        worker = scene.work(retries=RetryPolicy(3, 600_000, 600_000))
        request_id = await scene.put()
        await scene.until(lambda: worker.parked == 1)
        record = await scene.ledger.find(request_id)
        assert record is not None
        assert record.status is RequestStatus.PROCESSING
        assert record.callback is not None
        assert (record.callback.attempts, record.callback.last_error) == (1, "http_503")

    run(scenario)


def test_what_was_delivered_before_a_death_is_not_sent_again(run_durable: Run) -> None:
    put: list[str] = []

    async def first(scene: Scene) -> None:
        worker = scene.work()
        put.append(await scene.put())
        await scene.ended(put[0])
        await worker.drain(1)
        await scene.put_again(put[0])  # as if its ack had been lost

    async def second(scene: Scene) -> None:
        scene.work()
        await scene.gone(put[0])
        assert scene.told() == put
        assert scene.authorizer.asked == []

    run_durable(first)
    run_durable(second)


def test_a_request_handed_out_again_while_it_is_in_flight_is_sent_once(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.plan(HOOK, HELD)
        scene.work()
        request_id = await scene.put()
        await scene.until(scene.told)
        await scene.put_again(request_id)
        while (await scene.queue.depth()).waiting:
            await asyncio.sleep(0.005)
        scene.receiver.release(HOOK)
        await scene.ended(request_id)
        await scene.until(lambda: scene.count("requests_in_flight") == 0)
        assert scene.told() == [request_id]
        assert scene.authorizer.asked == [request_id]

    run(scenario)


@pytest.mark.parametrize("fields", [{"token": "short"}, {"station": "nowhere"}, {"token": "x" * 81}])
def test_a_malformed_request_is_invalid_and_called_back_where_it_can_be(run: Run, fields: dict[str, str]) -> None:
    async def scenario(scene: Scene) -> None:
        scene.work()
        record = await scene.ended(await scene.put(**fields))
        assert record.decision is not None
        assert (record.decision.status, record.decision.reason) == (Status.INVALID, "malformed_request")
        assert record.status is RequestStatus.COMPLETED
        assert [call.json["status"] for call in scene.receiver.calls] == ["invalid"]
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


def test_a_sealed_body_that_is_no_request_is_nothing_to_send_again(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.work()
        request_id, at = new_request_id(), now_ms()
        sealed = KEYRING.seal(b"\xc1", request_id, "message", STATION, str(at))
        await scene.queue.put(Message(request_id, STATION, at, sealed))
        record = await scene.ended(request_id)
        assert record.status is RequestStatus.FAILED
        assert record.decision is not None
        assert record.decision.reason == "malformed_request"
        assert await scene.ledger.dead_letter(request_id) is None

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
        monkeypatch.setattr(working, "PAUSE_S", 0)
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


def test_what_was_delivered_is_sent_again_with_the_decision_it_had(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.work()
        request_id = await scene.put()
        first = await scene.ended(request_id)
        scene.authorizer.outcome = Verdict(Status.NOT_ALLOWED)
        await scene.put_again(request_id, replayed_at=now_ms() + 1)
        await scene.until(lambda: len(scene.told()) == 2)
        again = await scene.ended(request_id)
        while again.processed_at == first.processed_at or again.status is not RequestStatus.COMPLETED:
            await asyncio.sleep(0.005)
            again = await scene.ended(request_id)
        assert again.decision == first.decision
        assert [call.json["status"] for call in scene.receiver.calls] == ["allowed"] * 2
        assert scene.told() == [request_id] * 2
        assert scene.authorizer.asked == [request_id]

    run(scenario)


@pytest.mark.parametrize("replayed", [False, True], ids=["moved", "replayed"])
def test_a_message_whose_callback_ended_meanwhile_sends_nothing(run: Run, replayed: bool) -> None:
    """It was moved between queues twice, or its replay was asked for before it was delivered."""

    async def scenario(scene: Scene) -> None:
        replayed_at = now_ms() if replayed else 0
        scene.work()
        request_id = await scene.put()
        await scene.ended(request_id)
        await scene.put_again(request_id, replayed_at=replayed_at)
        await scene.put()
        await scene.until(lambda: len(scene.told()) == 2)
        await scene.gone(request_id)
        assert scene.told().count(request_id) == 1

    run(scenario)


def test_a_replay_of_what_is_no_longer_known_decides_nothing(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.work()
        forgotten = new_request_id()
        await scene.put_again(forgotten, replayed_at=now_ms())
        await scene.ended(await scene.put())
        await scene.gone(forgotten)
        assert forgotten not in scene.authorizer.asked
        assert forgotten not in scene.told()
        assert await scene.ledger.find(forgotten) is None

    run(scenario)


def test_past_so_many_parked_some_are_given_up_and_work_goes_on(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.plan(HOOK, Reply(503))
        worker = scene.work(concurrency=1, max_parked=3, retries=RetryPolicy(2, 600_000, 600_000))
        waiting = [await scene.put() for _ in range(10)]
        await scene.until(lambda: len({*scene.told()}) == 10)
        await scene.ended(await scene.put(scene.receiver.url("/other")))
        assert worker.parked <= 3
        records = [await scene.ledger.find(request_id) for request_id in waiting]
        given_up = [each for each in records if each is not None and each.status is RequestStatus.FAILED]
        assert len(given_up) >= 7

    run(scenario)


def test_a_drain_that_runs_out_of_time_leaves_the_callbacks_that_are_under_way(run_durable: Run) -> None:
    async def first(scene: Scene) -> None:
        scene.receiver.plan(HOOK, HELD)
        for _ in range(3):
            await scene.put()
        worker = scene.work(concurrency=2)
        await scene.until(lambda: len(scene.told()) == 2)
        await worker.drain(0)

    async def second(scene: Scene) -> None:
        assert (await scene.queue.depth()).waiting == 3

    run_durable(first)
    run_durable(second)


def test_a_delivery_that_ends_during_a_drain_is_recorded_though_others_wait_in_line(run_durable: Run) -> None:
    """One more task is idle, and a connection for the next in line is free while nothing may start any more."""

    async def first(scene: Scene) -> None:
        scene.receiver.plan(HOOK, HELD)
        worker = scene.work(concurrency=3, max_connections_per_destination=1)
        put = {await scene.put(), await scene.put()}
        await scene.until(lambda: len(scene.told()) == 1 and worker.parked == 1)
        draining = asyncio.ensure_future(worker.drain(LIMIT_S))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        scene.receiver.release(HOOK)
        await draining
        (delivered,) = scene.told()
        assert {delivered} < put
        record = await scene.ledger.find(delivered)
        assert record is not None
        assert record.status is RequestStatus.COMPLETED
        assert worker.stuck == 0

    async def second(scene: Scene) -> None:
        assert (await scene.queue.depth()).waiting == 1

    run_durable(first)
    run_durable(second)


def test_a_retry_that_comes_due_during_a_drain_is_left(run_durable: Run) -> None:
    async def first(scene: Scene) -> None:
        scene.receiver.plan(HOOK, Reply(503), Reply(503), HELD)
        worker = scene.work(concurrency=3, retries=RetryPolicy(3, 500, 500))
        await scene.put()
        await scene.put()
        await scene.until(lambda: worker.parked == 2)
        await scene.put()
        await scene.until(lambda: len(scene.told()) == 3)
        draining = asyncio.ensure_future(worker.drain(LIMIT_S))
        await scene.until(lambda: worker.parked == 0)
        scene.receiver.release(HOOK)
        await draining

    async def second(scene: Scene) -> None:
        assert (await scene.queue.depth()).waiting == 2

    run_durable(first)
    run_durable(second)


def test_the_log_holds_neither_token_nor_url(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.plan(HOOK, Reply(503), Reply(410))
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
