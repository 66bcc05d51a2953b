"""The queue on Apache Kafka. Needs the extra ``kafka``."""

from chargegate.engines.kafka.queue import KafkaQueue
from chargegate.engines.kafka.replay import messages_from

__all__ = ["KafkaQueue", "messages_from"]
