"""The floor of calling back: a client that posts the same callback as fast as it can.

Usage: post.py bare|own|aiohttp URL COUNT CONNECTIONS; prints its processor time for a post in µs.

``bare`` is a protocol that writes a ready head and parses the answer with httptools, and has nothing of the service in
it. ``own`` is the service's client, and ``aiohttp`` is what many others use.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import aiohttp
import httptools
import uvloop

from chargegate.delivering.signing import Signer
from chargegate.http1 import HttpClient
from chargegate.model import parse_callback_url

BODY = (
    b'{"station_id":"6f9619ff-8b86-4011-b42d-00c04fc964ff",'
    b'"driver_token":"bench-0000000000-0000000000","status":"allowed"}'
)
ID = "019a0000-0000-7000-8000-000000000000"
LIMIT_S = 120


async def run(post: Callable[[], Awaitable[int]], count: int, connections: int) -> float:
    """Processor time for a post in seconds."""
    numbers = itertools.count()

    async def one() -> None:
        while next(numbers) < count:
            status = await post()
            if status != 200:
                raise SystemExit(f"the sink answered {status}")

    started = time.process_time()
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*[one() for _ in range(connections)])
    return (time.process_time() - started) / count


class Bare(asyncio.Protocol):
    """One connection, with one callback at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.answer.set_result(self.parser.get_status_code())

    async def post(self, request: bytes) -> int:
        """Send a request. Returns the status of the answer."""
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.transport.write(request)  # type: ignore[attr-defined]  # TCP transports can write
        return await self.answer


async def bare(url: str, count: int, connections: int) -> float:
    """With bare protocols."""
    parts = urlsplit(url)
    host, port = str(parts.hostname), parts.port or 80
    loop = asyncio.get_running_loop()
    idle = [(await loop.create_connection(Bare, host, port))[1] for _ in range(connections)]
    head = (
        f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(BODY)}\r\nwebhook-id: {ID}\r\nwebhook-timestamp: %d\r\n\r\n"
    )

    async def post() -> int:
        client = idle.pop()
        status = await client.post((head % int(time.time())).encode() + BODY)
        idle.append(client)
        return status

    return await run(post, count, connections)


async def own(url: str, count: int, connections: int) -> float:
    """With the service's own client."""
    client, target, signer = HttpClient(max_connections=connections), parse_callback_url(url), Signer([])

    async def post() -> int:
        return (await client.post(target, signer.headers(ID, int(time.time()), BODY), BODY, 10)).status

    try:
        return await run(post, count, connections)
    finally:
        await client.close()


async def library(url: str, count: int, connections: int) -> float:
    """With aiohttp."""
    limit = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=limit, timeout=aiohttp.ClientTimeout(total=10)) as session:

        async def post() -> int:
            headers = {
                "content-type": "application/json",
                "webhook-id": ID,
                "webhook-timestamp": str(int(time.time())),
            }
            async with session.post(url, data=BODY, headers=headers, allow_redirects=False) as answer:
                await answer.read()
                return answer.status

        return await run(post, count, connections)


if __name__ == "__main__":
    kind = {"bare": bare, "own": own, "aiohttp": library}[sys.argv[1]]
    print(uvloop.run(kind(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))) * 1e6)
