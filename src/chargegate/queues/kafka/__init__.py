"""The queue on Apache Kafka. Needs the extra ``kafka``."""

from chargegate.queues.kafka.queue import KafkaQueue
from chargegate.queues.kafka.replay import messages_from

__all__ = ["KafkaQueue", "messages_from"]
