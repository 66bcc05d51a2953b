"""Puts requests into the embedded queue of the folder it runs in, as if they had been accepted: fill.py COUNT URL."""

import asyncio
import sys

import msgspec
import uvloop

import load
from chargegate import config
from chargegate.engines import SQLITE, Place, QueueLimits
from chargegate.keys import open_keyring
from chargegate.model import ChargingRequest, new_request_id, now_ms
from chargegate.observe import configure_logging
from chargegate.queues.envelope import wrap


async def fill(count: int, url: str) -> None:
    """Through the queue itself, many at a time."""
    settings = config.load(None, {})
    settings.data_path.mkdir(exist_ok=True)
    keyring = open_keyring(settings.data_path, [], "")
    place = Place(folder=settings.data_path, exclusive=True)
    limits = QueueLimits(max_size=settings.queue.max_size, lease_ms=settings.queue.lease_ms, prefetch=1)
    queue = await SQLITE.load().open_queue("sqlite", place, limits)
    source = load.bodies(url, load.tokens(2_000))

    async def some(share: int) -> None:
        for _ in range(share):
            fields = msgspec.json.decode(next(source))
            request = ChargingRequest(new_request_id(), **fields, accepted_at=now_ms())
            await queue.put(wrap(keyring, request))

    await asyncio.gather(*[some(count // 200 + (number < count % 200)) for number in range(200)])
    await queue.close()


if __name__ == "__main__":
    configure_logging("error")
    uvloop.run(fill(int(sys.argv[1]), sys.argv[2]))
