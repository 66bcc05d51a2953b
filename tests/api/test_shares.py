"""Shares of the queue, without a socket: how well several processes agree, and how seldom the queue is asked."""

import asyncio
import hashlib
from collections import Counter, deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chargegate.api.shares import Shares, ShareUsedUp
from chargegate.engines.memory.queue import MemoryQueue
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.queue import SqliteQueue
from chargegate.engines.sqlite.statements import QUEUE_TABLES
from chargegate.keys import AccessKeys
from chargegate.queues.base import Capabilities, Depth, Message, QueueFull, QueueUnavailable
from messages import new_message

MESSAGE = Message("0198c0de-0000-7000-8000-000000000001", "station", 0, b"")
KEYS = AccessKeys([f"{name}:client:sha256:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("north", "south")])


class Line:
    """First in, first out, and who put what. ``owner`` is set before each put."""

    def __init__(self, size: int, *, shared: bool) -> None:
        self.capabilities = Capabilities(durable=True, shared=shared, find=True)
        self.waiting: deque[str] = deque()
        self.owner = ""
        self.size = size
        self.asked = 0
        self.away = False

    async def put(self, _message: Message) -> None:
        if len(self.waiting) >= self.size:
            raise QueueFull
        self.waiting.append(self.owner)

    async def depth(self) -> Depth:
        self.asked += 1
        if self.away:
            raise QueueUnavailable("away")
        await asyncio.sleep(0)
        return Depth(len(self.waiting), 0)


async def flood(line: Line, processes: list[Shares], client: str, count: int) -> int:
    """How many of so many puts were accepted."""
    accepted = 0
    for number in range(count):
        line.owner = client
        try:
            await processes[number % len(processes)].put(client, MESSAGE)
        except ShareUsedUp:
            continue
        accepted += 1
        await asyncio.sleep(0)
    return accepted


def shares(line: Line, share: float = 0.5, keys: AccessKeys = KEYS, processes: int = 1) -> list[Shares]:
    return [Shares(line, keys, line.size, share) for _ in range(processes)]  # type: ignore[arg-type]  # as much as it uses


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30),
    st.floats(0.01, 1),
    st.lists(st.sampled_from(["north", "south", "take", "replay"]), max_size=120),
    st.lists(st.just("old"), max_size=10),
)
def test_no_client_of_one_process_is_over_its_share_nor_refused_below_it(
    size: int, share: float, steps: list[str], old: list[str]
) -> None:
    async def scenario() -> None:
        line = Line(size, shared=False)
        line.waiting.extend(old[:size])
        [mine] = shares(line, share)
        limit = max(1, int(size * share))
        for step in steps:
            holds = Counter(line.waiting)[step]
            if step == "take":
                if line.waiting:
                    line.waiting.popleft()
            elif step == "replay":
                continue
            else:
                line.owner = step
                try:
                    await mine.put(step, MESSAGE)
                except ShareUsedUp:
                    assert holds >= limit
                except QueueFull:
                    assert len(line.waiting) == size
            assert all(Counter(line.waiting)[client] <= limit for client in ("north", "south"))

    asyncio.run(scenario())


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_that_share_a_queue_come_to_about_the_same_answer(processes: int) -> None:
    async def scenario() -> None:
        line = Line(2_000, shared=True)
        all_of_them = shares(line, processes=processes)
        assert 900 <= await flood(line, all_of_them, "north", 3_000) <= 1_100
        assert await flood(line, all_of_them, "south", 500) == 500
        for _ in range(600):
            line.waiting.popleft()
        assert await flood(line, all_of_them, "north", 50) == 50

    asyncio.run(scenario())


def test_what_another_process_left_is_nobodys() -> None:
    async def scenario() -> None:
        line = Line(1_000, shared=True)
        line.waiting.extend(["?"] * 800)
        assert await flood(line, shares(line), "north", 100) == 100

    asyncio.run(scenario())


def test_a_short_queue_is_hardly_ever_asked() -> None:
    async def scenario(*, shared: bool) -> int:
        line = Line(10_000, shared=shared)
        [mine] = shares(line)
        for _ in range(30_000):
            await mine.put("north", MESSAGE)
            line.waiting.clear()
        return line.asked

    assert asyncio.run(scenario(shared=False)) <= 6
    assert asyncio.run(scenario(shared=True)) <= 60


def test_many_that_are_refused_at_once_ask_once() -> None:
    async def scenario() -> None:
        line = Line(10, shared=False)
        [mine] = shares(line)
        assert await flood(line, [mine], "north", 5) == 5
        line.asked = 0
        outcomes = await asyncio.gather(*(mine.put("north", MESSAGE) for _ in range(100)), return_exceptions=True)
        assert all(isinstance(outcome, ShareUsedUp) for outcome in outcomes)
        assert line.asked == 1

    asyncio.run(scenario())


def test_puts_under_way_count() -> None:
    async def scenario() -> None:
        line = Line(10, shared=False)
        [mine] = shares(line)
        outcomes = await asyncio.gather(*(mine.put("north", MESSAGE) for _ in range(100)), return_exceptions=True)
        assert outcomes.count(None) == 5

    asyncio.run(scenario())


@pytest.mark.parametrize("way", ["put", "put_then"])
@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_many_at_once_get_the_whole_share_when_some_of_theirs_have_left_the_queue(
    tmp_path: Path, kind: str, way: str
) -> None:
    async def scenario() -> None:
        store = await SqliteStore.open(tmp_path / "queue.db", QUEUE_TABLES, exclusive=True)
        queue = await SqliteQueue.open(store, 100) if kind == "sqlite" else MemoryQueue(100)
        mine = Shares(queue, KEYS, 10, 0.5)

        async def put() -> bool:
            if way == "put_then" and mine.admits_at_once("north"):
                stored = asyncio.get_running_loop().create_future()
                mine.put_then("north", new_message(), stored.set_result)
                return await stored is None
            try:
                await mine.put("north", new_message())
            except ShareUsedUp:
                return False
            return True

        for _ in range(3):
            assert await put()
        assert len(await queue.receive(3)) == 3
        assert sum(await asyncio.gather(*(put() for _ in range(30)))) == 5
        await queue.close()
        await store.close()

    asyncio.run(scenario())


def test_a_put_that_failed_does_not_count() -> None:
    async def scenario() -> None:
        line = Line(0, shared=False)
        line_of_ten = shares(line)[0]
        for _ in range(20):
            with pytest.raises(QueueFull):
                await line_of_ten.put("north", MESSAGE)
        assert line_of_ten._counts == {"north": 0}

    asyncio.run(scenario())


def test_a_queue_that_cannot_be_asked_lets_puts_go_on_below_the_share() -> None:
    async def scenario() -> None:
        line = Line(10, shared=True)
        line.away = True
        assert await flood(line, shares(line), "north", 20) == 5

    asyncio.run(scenario())


def test_a_single_client_has_all_until_an_administrator_sends_too() -> None:
    async def scenario() -> None:
        line = Line(10, shared=False)
        one = AccessKeys([f"north:client:sha256:{'ab' * 32}", f"ops:admin:sha256:{'cd' * 32}"])
        [mine] = shares(line, keys=one)
        assert await flood(line, [mine], "north", 8) == 8
        assert await flood(line, [mine], "ops", 1) == 1
        assert await flood(line, [mine], "north", 1) == 0
        anonymous = shares(line := Line(10, shared=False), keys=AccessKeys([]))
        assert await flood(line, anonymous, "anonymous", 10) == 10

    asyncio.run(scenario())
