"""The load generator and the sink, in one process: it sends charging requests, and receives their callbacks.

Both are plain asyncio protocols, without a client library, so that they never limit what is measured.
"""

import asyncio
import gc
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar, NamedTuple

STATIONS = 5_000
DRAIN_S = 60
POOL = 200
"""Connections of an open loop, as many as the pool of a large client. A request that finds none free waits for one, and
its latency counts all the same."""
LATE_S = 10
"""In an open loop, a request that is still not answered so long after the last due time ends the measurement."""


class Failed(Exception):
    """The measured service did not do its work. The message says what is missing."""


def tokens(count: int) -> list[str]:
    """Driver tokens for the access list."""
    return [f"bench-{number:010d}-{number * 7919 % 10**10:010d}" for number in range(count)]


def bodies(callback_url: str | Callable[[int], str], known: Sequence[str]) -> Iterator[bytes]:
    """Endless request bodies: random known drivers at random stations. Where the URL is a function, it gets the number
    of the request, from 0."""
    rng = random.Random(1)
    stations = [f"{rng.getrandbits(32):08x}-8b86-4011-b42d-{rng.getrandbits(48):012x}" for _ in range(STATIONS)]
    for number in itertools.count():
        url = callback_url if isinstance(callback_url, str) else callback_url(number)
        yield (
            f'{{"station_id":"{rng.choice(stations)}","driver_token":"{rng.choice(known)}","callback_url":"{url}"}}'
        ).encode()


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of these sorted values that is not exceeded by this share of them (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def arrivals(rate: float, seconds: float, seed: int = 1) -> list[float]:
    """When requests are due, in seconds from the start: ``rate * seconds`` of them, as from clients that know nothing
    of each other (exponential gaps). The same seed gives the same schedule."""
    rng = random.Random(seed)
    return list(itertools.accumulate(rng.expovariate(rate) for _ in range(round(rate * seconds))))


class Sink(asyncio.Protocol):
    """Answers 200 to every callback and counts it. ``arrived`` has the first time of each callback whose path ends with
    a number."""

    ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    received = 0
    room: ClassVar[asyncio.Semaphore]
    arrived: ClassVar[dict[int, float]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            at = self.data.lower().find(b"content-length:", 0, end)
            length = int(self.data[at + 15 : self.data.find(b"\r\n", at)])
            if len(self.data) < end + 4 + length:
                return
            number = self.data[: self.data.find(b" HTTP/")].rpartition(b"/")[2]
            if number.isdigit():
                Sink.arrived.setdefault(int(number), time.perf_counter())
            self.data = self.data[end + 4 + length :]
            self.transport.write(self.ANSWER)  # type: ignore[attr-defined]  # TCP transports can write
            Sink.received += 1
            Sink.room.release()


class Silent(asyncio.Protocol):
    """A receiver that takes connections and requests, and never answers."""


class Client(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self.data.lower().find(b"content-length:", 0, end)
        length = int(self.data[at + 15 : self.data.find(b"\r\n", at)])
        if len(self.data) >= end + 4 + length:
            status, self.data = int(self.data[9:12]), b""
            if self.answer is not None and not self.answer.done():  # It is done if the benchmark is being cancelled.
                self.answer.set_result(status)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionError("the service closed the connection"))

    async def post(self, body: bytes) -> int:
        """Send a request and wait for the status of the answer."""
        self.answer = asyncio.get_running_loop().create_future()
        head = (
            b"POST /api/v1/charging-session HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        self.transport.write(head + body)  # type: ignore[attr-defined]  # TCP transports can write
        return await self.answer


async def sink() -> str:
    """Start the sink. Returns its URL."""
    Sink.room = asyncio.Semaphore(0)
    return await _listen(Sink)


async def black_hole() -> str:
    """Start a receiver that never answers. Returns its URL."""
    return await _listen(Silent)


listening: list[asyncio.Server] = []
"""What listens. It ends with the process, or with whoever closes it."""


async def _listen(protocol: Callable[[], asyncio.Protocol]) -> str:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, backlog=1024)
    listening.append(server)
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/callback"


async def connect(port: int, count: int) -> list[Client]:
    """Open connections to a service."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(count)]


def accepted(status: int) -> None:
    """Raise ``Failed`` unless the status is 202."""
    if status != 202:
        raise Failed(f"the service answered {status}")


async def until(condition: Callable[[], bool], limit_s: float, missing: str) -> None:
    """Wait until the condition holds. Raises ``Failed`` after ``limit_s``."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise Failed(missing)
        await asyncio.sleep(0.01)


async def answered(port: int, source: Iterator[bytes], seconds: float, connections: int) -> int:
    """Send requests on all connections, one after the other on each, for so long. Returns how many were accepted."""
    clients = await connect(port, connections)
    end, count = time.perf_counter() + seconds, 0

    async def one(client: Client) -> None:
        nonlocal count
        while time.perf_counter() < end:
            accepted(await client.post(next(source)))
            count += 1

    await asyncio.gather(*map(one, clients))
    for client in clients:
        client.transport.close()
    return count


async def exactly(port: int, source: Iterator[bytes], count: int, connections: int, ahead: int | None) -> None:
    """Send so many requests. With ``ahead``, at most that many wait for a callback, and it ends with the last callback;
    without, with the last answer."""
    clients = await connect(port, connections)
    first, left = Sink.received, itertools.count()
    room = Sink.room = asyncio.Semaphore(count if ahead is None else ahead)

    async def one(client: Client) -> None:
        while next(left) < count:
            await room.acquire()
            accepted(await client.post(next(source)))

    async with asyncio.timeout(DRAIN_S * 2), asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(one(client))
    if ahead is not None:
        await until(lambda: Sink.received - first >= count, DRAIN_S, "callbacks are missing")
    for client in clients:
        client.transport.close()


@asynccontextmanager
async def pressed(port: int, source: Iterator[bytes], connections: int, ahead: int) -> AsyncIterator[None]:
    """During the ``with`` block, send requests as fast as they are accepted, with at most ``ahead`` without a callback.

    The block ends with the last callback. Raises ``Failed``, in an exception group, if a request is not accepted or a
    callback does not come.
    """
    clients = await connect(port, connections)
    first, sent, ended = Sink.received, 0, False
    room = Sink.room = asyncio.Semaphore(ahead)

    async def one(client: Client) -> None:
        nonlocal sent
        while await room.acquire() and not ended:
            sent += 1
            accepted(await client.post(next(source)))

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(one(client))
        yield
        ended = True
        for _ in clients:
            room.release()
        await until(lambda: Sink.received - first >= sent, DRAIN_S, "callbacks are missing")
    for client in clients:
        client.transport.close()


class Open(NamedTuple):
    """What an open loop saw: sorted seconds, each from the time at which a request was due."""

    sent: list[float]
    """To its sending: how late the generator was, or how long no connection was free. It is part of the other two."""
    answered: list[float]
    called_back: list[float]


async def open_loop(
    port: int,
    due: Sequence[float],
    known: Sequence[str],
    url: Callable[[int], str] = "http://127.0.0.1:1/{}".format,
    *,
    called_back: Callable[[int], bool] = lambda _: False,
    wait_ms: float = 0,
) -> Open:
    """Send each request when it is due, whatever became of the others.

    Latencies count from the due time and not from the sending, so that a service that stands still is charged with
    every request that would have come meanwhile. ``url`` gives the callback URL of each request, and must end with its
    number where ``called_back`` says that its callback is measured. With ``wait_ms`` the generator sleeps so long at a
    time, and the requests that became due meanwhile leave together; without, it waits busily, which takes a core.
    """
    source = bodies(url, known)
    idle: asyncio.LifoQueue[Client] = asyncio.LifoQueue()  # few connections are used where few are enough
    for client in await connect(port, POOL):
        idle.put_nowait(client)
    clock = time.perf_counter
    count = len(due)
    sent, done = [0.0] * count, [0.0] * count
    Sink.arrived.clear()
    numbers = [number for number in range(count) if called_back(number)]

    async def one(number: int, body: bytes) -> None:
        client = await idle.get()
        if client.transport.is_closing():  # the service closes those that are idle for long
            [client] = await connect(port, 1)
        sent[number] = clock()
        accepted(await client.post(body))
        done[number] = clock()
        idle.put_nowait(client)

    gc.collect()
    gc.disable()  # A collection of this process's objects would be counted as a latency of the service.
    try:
        async with asyncio.timeout(due[-1] + LATE_S), asyncio.TaskGroup() as group:
            started, number = clock(), 0
            while number < count:
                passed = clock() - started
                while number < count and due[number] <= passed:
                    group.create_task(one(number, next(source)))
                    number += 1
                await asyncio.sleep(wait_ms / 1e3)
        await until(lambda: all(each in Sink.arrived for each in numbers), DRAIN_S, "callbacks are missing")
    except TimeoutError:
        raise Failed("the service was overloaded: requests were not answered") from None
    finally:
        gc.enable()
    while not idle.empty():
        idle.get_nowait().transport.close()

    def since_due(times: Sequence[float]) -> list[float]:
        return sorted(at - started - planned for at, planned in zip(times, due, strict=True))

    return Open(
        since_due(sent),
        since_due(done),
        sorted(Sink.arrived[each] - started - due[each] for each in numbers),
    )
