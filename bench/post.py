"""The floor of calling back: a bare client that posts the same callback as fast as it can.

Usage: post.py own|aiohttp URL SECONDS CONNECTIONS; prints posts per second of wall time.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp
import uvloop

from chargegate.delivering.signing import Signer
from chargegate.http1 import HttpClient
from chargegate.model import parse_callback_url

BODY = (
    b'{"station_id":"6f9619ff-8b86-4011-b42d-00c04fc964ff",'
    b'"driver_token":"bench-0000000000-0000000000","status":"allowed"}'
)
ID = "019a0000-0000-7000-8000-000000000000"


async def run(post: Callable[[], Awaitable[int]], seconds: float, connections: int) -> float:
    """Posts per second."""
    end = time.perf_counter() + seconds
    done = 0

    async def one() -> None:
        nonlocal done
        while time.perf_counter() < end:
            status = await post()
            if status != 200:
                raise SystemExit(f"the sink answered {status}")
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*[one() for _ in range(connections)])
    return done / (time.perf_counter() - started)


async def own(url: str, seconds: float, connections: int) -> float:
    """With the service's own client."""
    client, target, signer = HttpClient(max_connections=connections), parse_callback_url(url), Signer([])

    async def post() -> int:
        return (await client.post(target, signer.headers(ID, int(time.time()), BODY), BODY, 10)).status

    try:
        return await run(post, seconds, connections)
    finally:
        await client.close()


async def library(url: str, seconds: float, connections: int) -> float:
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

        return await run(post, seconds, connections)


if __name__ == "__main__":
    kind = {"own": own, "aiohttp": library}[sys.argv[1]]
    print(uvloop.run(kind(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))))
