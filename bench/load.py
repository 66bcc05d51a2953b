"""The load generator and the sink, in one process: it sends charging requests, and receives their callbacks.

Both are plain asyncio protocols, without a client library, so that they never limit what is measured.
"""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import ClassVar

STATIONS = 5_000
DRAIN_S = 60


class Failed(Exception):
    """The measured service did not do its work. The message says what is missing."""


def tokens(count: int) -> list[str]:
    """Driver tokens for the access list."""
    return [f"bench-{number:010d}-{number * 7919 % 10**10:010d}" for number in range(count)]


def bodies(callback_url: str, known: list[str], *, numbered: bool = False) -> Iterator[bytes]:
    """Endless request bodies: random known drivers at random stations. With ``numbered``, the path of the callback URL
    ends with the number of the request, from 0."""
    rng = random.Random(1)
    stations = [f"{rng.getrandbits(32):08x}-8b86-4011-b42d-{rng.getrandbits(48):012x}" for _ in range(STATIONS)]
    for number in itertools.count():
        path = f"/{number}" if numbered else ""
        yield (
            f'{{"station_id":"{rng.choice(stations)}","driver_token":"{rng.choice(known)}",'
            f'"callback_url":"{callback_url}{path}"}}'
        ).encode()


class Sink(asyncio.Protocol):
    """Answers 200 to every callback and counts it. ``arrived`` has the first time of each numbered callback."""

    ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    received = 0
    wanted = 0
    enough: asyncio.Event
    room: asyncio.Semaphore
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
            if Sink.received >= Sink.wanted:
                Sink.enough.set()


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
    Sink.enough, Sink.room = asyncio.Event(), asyncio.Semaphore(0)
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/callback"


async def connect(port: int, count: int) -> list[Client]:
    """Open connections to a service."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(count)]


async def saturate(port: int, source: Iterator[bytes], count: int, connections: int, ahead: int | None) -> float:
    """Send ``count`` requests as fast as they are accepted. Returns requests per second.

    With ``ahead``, at most that many wait for their callback, and the time ends with the last callback. Without it, the
    time ends with the last answer.
    """
    clients = await connect(port, connections)
    left = itertools.count()
    first = Sink.received
    Sink.wanted, sent = first + count, 0
    Sink.enough.clear()
    started = time.perf_counter()

    async def one(client: Client) -> None:
        nonlocal sent
        while next(left) < count:
            while ahead is not None and sent - (Sink.received - first) >= ahead:
                await asyncio.sleep(0.001)
            sent += 1
            status = await client.post(next(source))
            if status != 202:
                raise SystemExit(f"the service answered {status}")

    await asyncio.gather(*map(one, clients))
    if ahead is not None:
        await asyncio.wait_for(Sink.enough.wait(), 120)
    elapsed = time.perf_counter() - started
    for client in clients:
        client.transport.close()
    return count / elapsed


async def steady(port: int, source: Iterator[bytes], rate: float, seconds: float) -> list[float]:
    """Send at a fixed rate, independent of the answers. Returns the sorted latencies in seconds, from each due time."""
    idle = await connect(port, 128)
    latencies: list[float] = []
    under_way = set()
    clock = time.perf_counter

    async def one(due: float) -> None:
        client = idle.pop() if idle else (await connect(port, 1))[0]
        status = await client.post(next(source))
        latencies.append(clock() - due)
        idle.append(client)
        if status != 202:
            raise SystemExit(f"the service answered {status}")

    started = clock()
    for number in range(int(rate * seconds)):
        due = started + number / rate
        while (wait := due - clock()) > 0:
            await asyncio.sleep(wait if wait > 0.002 else 0)
        task = asyncio.create_task(one(due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    for client in idle:
        client.transport.close()
    return sorted(latencies)


async def until(condition: Callable[[], bool], limit_s: float, missing: str) -> None:
    """Wait until the condition holds. Raises ``Failed`` after ``limit_s``."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise Failed(missing)
        await asyncio.sleep(0.01)


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
            status = await client.post(next(source))
            if status != 202:
                raise Failed(f"the service answered {status}")

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


async def paced(
    port: int, callback_url: str, known: list[str], rate: float, seconds: float
) -> tuple[list[float], list[float]]:
    """Send at a fixed rate, independent of the answers. Returns the sorted seconds from sending a request to its 202,
    and from sending it to its callback.

    It sleeps for a few milliseconds at a time, because a busy loop would take processor time from the service.
    """
    source = bodies(callback_url, known, numbered=True)
    idle = await connect(port, 64)
    clock = time.perf_counter
    count = int(rate * seconds)
    began, answered = [0.0] * count, [0.0] * count
    Sink.arrived.clear()

    async def one(number: int, body: bytes) -> None:
        client = idle.pop() if idle else (await connect(port, 1))[0]
        began[number] = clock()
        status = await client.post(body)
        answered[number] = clock()
        idle.append(client)
        if status != 202:
            raise Failed(f"the service answered {status}")

    async with asyncio.timeout(seconds + DRAIN_S), asyncio.TaskGroup() as group:
        started, number = clock(), 0
        while number < count:
            while number < min(count, (clock() - started) * rate):
                group.create_task(one(number, next(source)))
                number += 1
            await asyncio.sleep(0.002)
    await until(lambda: len(Sink.arrived) >= count, DRAIN_S, "callbacks are missing")
    for client in idle:
        client.transport.close()
    numbers = range(count)
    called = sorted(Sink.arrived[number] - began[number] for number in numbers)
    return sorted(answered[number] - began[number] for number in numbers), called
