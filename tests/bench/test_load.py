"""The load generator: when requests are due, from when a latency counts, and what a percentile is."""

import asyncio
import itertools
import random
import statistics

import pytest

import load


def test_arrivals_are_as_many_as_the_rate_asks_for_and_in_order() -> None:
    due = load.arrivals(500, 4)
    assert len(due) == 2_000
    assert due == sorted(due)
    assert due[-1] == pytest.approx(4, rel=0.1)


def test_arrivals_know_nothing_of_each_other() -> None:
    due = load.arrivals(100, 100)
    gaps = [later - earlier for earlier, later in itertools.pairwise(due)]
    assert statistics.mean(gaps) == pytest.approx(0.01, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.01, rel=0.1)  # an exponential distribution: as much as its mean


def test_a_schedule_can_be_repeated() -> None:
    assert load.arrivals(50, 2, seed=3) == load.arrivals(50, 2, seed=3) != load.arrivals(50, 2, seed=4)


@pytest.mark.parametrize(
    ("count", "share", "rank"),
    [(1, 0.5, 1), (1, 0.999, 1), (2, 0.5, 1), (100, 0.5, 50), (100, 0.99, 99), (101, 0.99, 100), (1000, 0.999, 999)],
)
def test_a_percentile_is_the_nearest_rank(count: int, share: float, rank: int) -> None:
    ordered = sorted(random.Random(1).random() for _ in range(count))
    assert load.percentile(ordered, share) == ordered[rank - 1]


class Holding(asyncio.Protocol):
    """Answers nothing until it has so many requests, and then all of them."""

    wanted = 0
    waiting: list[asyncio.BaseTransport]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        Holding.waiting.append(self.transport)
        if len(Holding.waiting) == Holding.wanted:
            for transport in Holding.waiting:
                transport.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")


def test_a_service_that_stands_still_is_charged_with_all_that_became_due() -> None:
    """A generator that waited for answers would send no more here, and would see one slow request."""
    due = load.arrivals(400, 0.5)
    Holding.wanted, Holding.waiting = len(due), []
    assert len(due) <= load.POOL

    async def run() -> load.Open:
        server = await asyncio.get_running_loop().create_server(Holding, "127.0.0.1", 0)
        async with server:
            return await load.open_loop(server.sockets[0].getsockname()[1], due, load.tokens(3))

    times = asyncio.run(run())
    assert len(times.answered) == len(times.sent) == len(due)
    assert times.answered[-1] >= due[-1] - due[0]
    assert load.percentile(times.answered, 0.5) >= due[-1] - due[len(due) // 2]
    assert times.called_back == []


class Service(asyncio.Protocol):
    """Accepts each request, and calls every second one back at once."""

    sink = 0
    calls: list[asyncio.Task[None]]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
        number = data.decode().rpartition("/")[2].partition('"')[0]
        if int(number) % 2 == 0:
            Service.calls.append(asyncio.create_task(self.call(number)))

    async def call(self, number: str) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", Service.sink)
        writer.write(f"POST /callback/{number} HTTP/1.1\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def test_only_marked_callbacks_are_waited_for_and_measured() -> None:
    async def run() -> load.Open:
        url = await load.sink()
        Service.sink, Service.calls = int(url.rpartition(":")[2].partition("/")[0]), []
        server = await asyncio.get_running_loop().create_server(Service, "127.0.0.1", 0)
        async with server, load.listening[-1]:
            return await load.open_loop(
                server.sockets[0].getsockname()[1],
                load.arrivals(100, 0.4),
                load.tokens(3),
                (url + "/{}").format,
                called_back=lambda number: number % 2 == 0,
            )

    times = asyncio.run(run())
    assert (len(times.answered), len(times.called_back)) == (40, 20)
    assert times.called_back[0] >= 0
