"""Fills a queue with messages that do not come from a client, who could be told to try again later."""

import asyncio
from collections.abc import Iterable
from typing import Final

from chargegate.queues.base import Message, Queue, QueueFull, QueueUnavailable

_PATIENCE_S: Final = 60
_PAUSE_S: Final = 0.2


async def put_all(queue: Queue, messages: Iterable[Message]) -> list[BaseException | None]:
    """Put messages side by side. While the queue is full this waits, as long as at least one of the messages finds
    room every minute. The answer for each message is None, or why it was not stored: as a rule ``QueueUnavailable``."""
    loop = asyncio.get_running_loop()
    stored_at = loop.time()

    async def put(message: Message) -> None:
        nonlocal stored_at
        while True:
            try:
                await queue.put(message)
            except QueueFull:
                if loop.time() > stored_at + _PATIENCE_S:
                    raise QueueUnavailable(f"the queue has been full for {_PATIENCE_S} seconds") from None
                await asyncio.sleep(_PAUSE_S)
            else:
                stored_at = loop.time()
                return

    return await asyncio.gather(*map(put, messages), return_exceptions=True)
