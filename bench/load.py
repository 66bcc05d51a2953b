"""Load and sink in one process: sends requests to charge, and receives their callbacks.

As light as it can be made (an asyncio protocol each, no client library), because it must never be what is measured.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator

STATIONS = 5_000


def tokens(count: int) -> list[str]:
    """Driver tokens that the bench puts on the access list."""
    return [f"bench-{number:010d}-{number * 7919 % 10**10:010d}" for number in range(count)]


def bodies(callback_url: str, known: list[str]) -> Iterator[bytes]:
    """Request bodies without end: random known drivers at random stations of a network."""
    rng = random.Random(1)
    stations = [f"{rng.getrandbits(32):08x}-8b86-4011-b42d-{rng.getrandbits(48):012x}" for _ in range(STATIONS)]
    while True:
        yield (
            f'{{"station_id":"{rng.choice(stations)}","driver_token":"{rng.choice(known)}",'
            f'"callback_url":"{callback_url}"}}'
        ).encode()


class Sink(asyncio.Protocol):
    """Answers 200 to every callback and counts it."""

    ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    received = 0
    wanted = 0
    enough: asyncio.Event

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
            self.data = self.data[end + 4 + length :]
            self.transport.write(self.ANSWER)  # type: ignore[attr-defined]  # a stream's
            Sink.received += 1
            if Sink.received >= Sink.wanted:
                Sink.enough.set()


class Client(asyncio.Protocol):
    """One connection; one request at a time."""

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
            if self.answer is not None:
                self.answer.set_result(status)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionError("the service closed the connection"))

    async def post(self, body: bytes) -> int:
        """Send a request, wait for the status."""
        self.answer = asyncio.get_running_loop().create_future()
        head = (
            b"POST /api/v1/charging-session HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        self.transport.write(head + body)  # type: ignore[attr-defined]  # a stream's
        return await self.answer


async def sink() -> str:
    """Start the sink; its URL."""
    Sink.enough = asyncio.Event()
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/callback"


async def connect(port: int, count: int) -> list[Client]:
    """Open connections to a service."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(count)]


async def saturate(port: int, source: Iterator[bytes], count: int, connections: int, ahead: int | None) -> float:
    """Send ``count`` requests as fast as they are taken; requests per second.

    With ``ahead`` at most so many wait for their callback at once, and the clock stops at the last callback;
    without, it stops at the last answer.
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
    """Send at a fixed rate, whatever the answers do; each request's latency in seconds from its due time, sorted."""
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
