"""The Kafka engine: a queue in a topic, and what the topic still holds. Needs the extra ``kafka``."""

from chargegate.engines import Place, QueueLimits
from chargegate.engines.kafka.queue import KafkaQueue
from chargegate.engines.kafka.replay import messages_from

__all__ = ["KafkaQueue", "messages_from", "open_queue"]


async def open_queue(url: str, place: Place, limits: QueueLimits) -> KafkaQueue:  # noqa: ARG001 - a group has no names
    return await KafkaQueue.open(url, limits.max_size, lease_ms=limits.lease_ms)
