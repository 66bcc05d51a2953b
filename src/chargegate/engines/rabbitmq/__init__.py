"""The RabbitMQ engine: a quorum queue. Needs the extra ``rabbitmq``."""

from chargegate.engines import Place, QueueLimits
from chargegate.engines.rabbitmq.queue import RabbitQueue


async def open_queue(url: str, place: Place, limits: QueueLimits) -> RabbitQueue:  # noqa: ARG001 - nothing to share
    return await RabbitQueue.open(url, max_size=limits.max_size, prefetch=limits.prefetch)
