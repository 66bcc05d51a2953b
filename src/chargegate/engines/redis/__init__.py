"""The Redis engine: a queue on Redis Streams, and the shared cache. Needs the extra ``redis``."""

from chargegate.engines import Place, QueueLimits
from chargegate.engines.redis.cache import RedisCache
from chargegate.engines.redis.queue import RedisQueue
from chargegate.engines.redis.registry import RedisRegistry


async def open_queue(url: str, place: Place, limits: QueueLimits) -> RedisQueue:
    return await RedisQueue.open(url, max_size=limits.max_size, consumer=place.process, lease_ms=limits.lease_ms)


def open_cache(url: str, *, ttl_ms: int) -> RedisCache:
    return RedisCache(url, ttl_ms=ttl_ms)


def open_registry(url: str) -> RedisRegistry:
    return RedisRegistry(url)
