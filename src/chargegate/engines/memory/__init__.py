"""The memory engine: a queue in the memory of one process. As a cache it is none: every process has its own memory."""

from chargegate.engines import Place, QueueLimits
from chargegate.engines.memory.queue import MemoryQueue


async def open_queue(url: str, place: Place, limits: QueueLimits) -> MemoryQueue:  # noqa: ARG001 - every engine's
    return MemoryQueue(limits.max_size)


def open_cache(url: str, *, ttl_ms: int) -> None:
    """None: processes remember nothing together."""
