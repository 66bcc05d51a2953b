"""Requests that are decided as they come in: when they are, and what is left where one cannot be. What a kill leaves is
in ``tests/contract/test_kill.py``."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from tests.test_worker import HELD, LIMITS, STATION, TOKEN

from chargegate.at_once import AtOnce
from chargegate.authorizers.acl import AclAuthorizer
from chargegate.authorizers.cache import Cached, DecisionCache
from chargegate.authorizers.decider import Decider
from chargegate.delivering.sender import Sender
from chargegate.delivering.signing import Signer
from chargegate.delivering.states import CallbackLimits
from chargegate.engines.sqlite.access_list import SqliteAccessList
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.queue import SqliteQueue
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.engines.sqlite.together import SqliteTogether
from chargegate.http1 import HttpClient
from chargegate.keys import Keyring
from chargegate.ledger.records import AccessEntry, AuditRow, RequestRecord
from chargegate.model import ChargingRequest, RequestStatus, Status, new_request_id, now_ms, parse_callback_url
from chargegate.observe import Metrics
from chargegate.queues.base import QueueUnavailable
from chargegate.queues.envelope import carry
from chargegate.worker import Worker
from outside import Reply, Site, sites

LIMIT_S = 20
KEYRING = Keyring([os.urandom(32)], os.urandom(32))
HASH = KEYRING.token_hash(TOKEN)


class Replies:
    """A receiver that answers with each of these in turn, and then with the last."""

    def __init__(self, *replies: Reply) -> None:
        self._left = list(replies)

    def __call__(self, _call: object) -> Reply:
        return self._left.pop(0) if len(self._left) > 1 else self._left[0]


class Scene:
    """One process: it accepts and works on one file."""

    def __init__(self, store: SqliteStore, queue: SqliteQueue, receiver: Site, concurrency: int) -> None:
        self.store = store
        self.queue = queue
        self.receiver = receiver
        self.audited: list[AuditRow] = []
        self.ledger = SqliteLedger(store, self.audited.extend)
        self.cache = DecisionCache(ttl_ms=60_000)
        self.access_list = SqliteAccessList(store)
        metrics = Metrics()
        authorizer = Cached(AclAuthorizer(self.access_list, self.cache), self.cache)
        decider = Decider(authorizer, KEYRING, metrics, max_age_ms=300_000, known=self.cache.known)
        self.client = HttpClient(max_connections=100)
        together = SqliteTogether(store, queue, self.ledger)
        self.worker = Worker(
            queue=queue,
            ledger=self.ledger,
            decider=decider,
            keyring=KEYRING,
            sender=Sender(self.client, Signer([]), metrics, timeout_ms=10_000),
            limits=CallbackLimits(**LIMITS),
            concurrency=concurrency,
            metrics=metrics,
            together=together,
        )
        self.at_once = AtOnce(together, decider, self.worker)
        self.answers: dict[str, Exception | None] = {}

    async def know(self, *, blocked: bool = False) -> None:
        """Have the driver's entry in memory, as after its first request."""
        entry = AccessEntry(HASH, blocked=blocked)
        await self.access_list.put([entry])
        self.cache.forget([HASH])
        self.cache.keep_entry(entry, self.cache.epoch)

    def put(self, *, url: str = "", traced: bool = False) -> str | None:
        """The id of a request that is decided at once; None where it is not."""
        target = parse_callback_url(url or self.receiver.url("/hook"))
        url = url or self.receiver.url("/hook")
        request = ChargingRequest(new_request_id(), STATION, TOKEN, url, now_ms(), client="somebody", traced=traced)

        def done(error: Exception | None) -> None:
            self.answers[request.request_id] = error

        return request.request_id if self.at_once.put_then(carry(KEYRING, request, target), done) else None

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.005)

    async def ended(self, request_id: str) -> RequestRecord:
        while True:
            found = await self.ledger.find(request_id)
            if found is not None and found.processed_at is not None and await self.queue.find(request_id) is None:
                return found
            await asyncio.sleep(0.005)

    def told(self) -> list[tuple[str, str]]:
        return [(call.headers["webhook-id"], call.json["status"]) for call in list(self.receiver.calls)]


Scenario = Callable[[Scene], Coroutine[Any, Any, None]]
Run = Callable[..., None]


@asynccontextmanager
async def opened(folder: Path, receiver: Site, concurrency: int) -> AsyncIterator[Scene]:
    store = await SqliteStore.open(folder / "test.db", ALL_TABLES, exclusive=True)
    queue = await SqliteQueue.open(store, 100)
    scene = Scene(store, queue, receiver, concurrency)
    try:
        yield scene
    finally:
        await scene.worker.drain(0)
        await scene.client.close()
        await queue.close()
        await store.close()


@pytest.fixture
def make_site() -> Iterator[Callable[..., Site]]:
    with sites() as make:
        yield make


@pytest.fixture
def run(tmp_path: Path, make_site: Callable[..., Site]) -> Run:
    """Each run is another process on the same file; the receiver stays."""
    receivers: list[Site] = []

    def start(scenario: Scenario, *, replies: Sequence[Reply] = (), concurrency: int = 8) -> None:
        if not receivers:
            receivers.append(make_site(Replies(*replies or (Reply(),))))

        async def main() -> None:
            async with opened(tmp_path, receivers[0], concurrency) as scene, asyncio.timeout(LIMIT_S):
                await scenario(scene)

        uvloop.run(main())

    return start


def test_a_known_driver_is_decided_at_once_recorded_and_told(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.worker.start()
        await scene.know()
        ids = [scene.put() for _ in range(20)][:6]
        for request_id in filter(None, ids):
            record = await scene.ended(request_id)
            assert record.status is RequestStatus.COMPLETED
            assert record.client == "somebody"
            assert record.decision is not None
            assert record.decision.status == Status.ALLOWED
        answered = dict.fromkeys(scene.answers)
        assert None not in ids
        assert scene.answers == answered
        assert sorted(scene.told()) == sorted((request_id, "allowed") for request_id in answered)
        assert [row.decision.request_id for row in scene.audited] == list(answered)
        assert [row.sequence for row in scene.audited] == list(range(1, len(answered) + 1))

    run(scenario)


def test_what_is_promised_to_others_is_not_promised_twice(run: Run) -> None:
    """With room for so many steps, no more are taken at once, whatever is being committed."""

    async def scenario(scene: Scene) -> None:
        scene.worker.start()
        await scene.know()
        assert [scene.put() is not None for _ in range(5)] == [True, True, True, False, False]

    run(scenario, replies=[HELD], concurrency=3)


def test_who_waits_goes_first(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.worker.start()
        await scene.know()
        request = ChargingRequest(new_request_id(), STATION, TOKEN, scene.receiver.url("/hook"), now_ms())
        message = carry(KEYRING, request, parse_callback_url(request.callback_url))
        putting = asyncio.ensure_future(scene.queue.put(message))
        await asyncio.sleep(0)
        assert scene.put() is None
        await putting
        await scene.ended(request.request_id)
        assert scene.put() is not None

    run(scenario, concurrency=1)


@pytest.mark.parametrize("why", ["not started", "draining", "unknown", "traced"])
def test_the_queue_takes_what_cannot_be_decided_at_once(run: Run, why: str) -> None:
    async def scenario(scene: Scene) -> None:
        if why != "not started":
            scene.worker.start()
        if why != "unknown":
            await scene.know()
        if why == "draining":
            await scene.worker.drain(0)
        assert scene.put(traced=why == "traced") is None
        assert not scene.answers

    run(scenario)


def test_a_change_of_the_list_counts_for_the_next_request(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.worker.start()
        await scene.know()
        first = scene.put()
        scene.cache.forget([HASH])
        assert scene.put() is None
        await scene.know(blocked=True)
        second = scene.put()
        assert first is not None
        assert second is not None
        await scene.ended(first)
        await scene.ended(second)
        assert dict(scene.told()) == {first: "allowed", second: "not_allowed"}

    run(scenario)


def test_one_that_a_drain_overtakes_is_told_by_the_next_process(run: Run) -> None:
    left: list[str] = []

    async def before(scene: Scene) -> None:
        scene.worker.start()
        await scene.know()
        request_id = scene.put()
        assert request_id is not None
        await scene.worker.drain(0)
        await scene.until(lambda: request_id in scene.answers)
        assert scene.answers[request_id] is None
        left.append(request_id)

    async def after(scene: Scene) -> None:
        assert (await scene.queue.depth()).waiting == 1
        scene.worker.start()
        record = await scene.ended(left[0])
        assert record.status is RequestStatus.COMPLETED
        assert scene.told() == [(left[0], "allowed")]
        assert not scene.audited  # it was decided before

    run(before)
    run(after)


def test_where_the_file_is_gone_nothing_is_stored_and_the_place_is_free_again(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.worker.start()
        await scene.know()
        await scene.store.close()
        for _ in range(5):
            with pytest.raises(QueueUnavailable):
                scene.put()
        assert not scene.answers

    run(scenario, concurrency=1)


def test_what_others_put_meanwhile_is_taken_too(run: Run) -> None:
    """Another process's row lies between ours: no number is passed over."""

    async def scenario(scene: Scene) -> None:
        await scene.know()
        async with asyncio.timeout(LIMIT_S):
            other = await SqliteStore.open(scene.store.path, ALL_TABLES, exclusive=False)
            puts = await SqliteQueue.open(other, 100)
            request = ChargingRequest(new_request_id(), STATION, TOKEN, scene.receiver.url("/hook"), now_ms())
            await puts.put(carry(KEYRING, request, parse_callback_url(request.callback_url)))
            scene.worker.start()
            ours = scene.put()
            assert ours is not None
            await scene.ended(request.request_id)
            await scene.ended(ours)
            await puts.close()
            await other.close()
        assert sorted(scene.told()) == sorted([(request.request_id, "allowed"), (ours, "allowed")])
        assert (await scene.queue.depth()).waiting == 0

    run(scenario)


@pytest.mark.parametrize(
    ("replies", "attempts", "status"),
    [
        ([Reply(), Reply(500), Reply()], 2, RequestStatus.COMPLETED),
        ([Reply(), Reply(410)], 1, RequestStatus.FAILED),
        ([Reply(), Reply(500)], 3, RequestStatus.FAILED),
        ([Reply(), Reply(how="cut"), Reply()], 1, RequestStatus.COMPLETED),
    ],
    ids=["tried again", "gone", "given up", "closed without an answer"],
)
def test_a_kept_connection_serves_as_a_new_one_does(
    run: Run, replies: list[Reply], attempts: int, status: RequestStatus
) -> None:
    """The first callback leaves a connection, on which the second is sent without a task."""

    async def scenario(scene: Scene) -> None:
        scene.worker.start()
        await scene.know()
        first = scene.put()
        assert first is not None
        await scene.ended(first)
        second = scene.put()
        assert second is not None
        record = await scene.ended(second)
        assert record.status is status
        assert record.callback is not None
        assert record.callback.attempts == attempts
        assert len(record.callback.history) == attempts

    run(scenario, replies=replies)


def test_what_is_under_way_on_a_kept_connection_is_cut_off_by_the_end_of_a_drain(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.worker.start()
        await scene.know()
        first = scene.put()
        assert first is not None
        await scene.ended(first)
        second = scene.put()
        assert second is not None
        await scene.until(lambda: len(scene.receiver.calls) == 2)
        await scene.worker.drain(0)
        found = await scene.ledger.find(second)
        assert found is not None
        assert found.status is RequestStatus.PROCESSING
        assert await scene.queue.find(second) is not None

    run(scenario, replies=[Reply(), HELD])


def test_a_drain_waits_for_what_is_under_way_on_a_kept_connection(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.worker.start()
        await scene.know()
        first = scene.put()
        assert first is not None
        await scene.ended(first)
        second = scene.put()
        assert second is not None
        await scene.until(lambda: len(scene.receiver.calls) == 2)
        draining = asyncio.ensure_future(scene.worker.drain(LIMIT_S))
        await scene.until(lambda: not scene.worker.room)
        scene.receiver.release("/hook")
        await draining
        found = await scene.ledger.find(second)
        assert found is not None
        assert found.status is RequestStatus.COMPLETED

    run(scenario, replies=[Reply(), HELD])
