"""Parses ``kafka://`` URLs."""

from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

TOPIC: Final = "charging-requests"

# librdkafka's defaults wait up to ten seconds before they dial again, and a minute for a silent broker.
_SOONER: Final = {
    "reconnect.backoff.max.ms": "1000",
    "socket.timeout.ms": "6000",
    "socket.keepalive.enable": "true",
    "topic.metadata.refresh.interval.ms": "10000",
    "log_level": "0",  # our own log says what state Kafka is in
    "client.id": "chargegate",
}


class KafkaAddress(msgspec.Struct, frozen=True):
    """The brokers, topic and group, and how to connect. ``options`` are librdkafka's and may hold a password, so they
    are never shown."""

    topic: str
    group: str
    create: bool
    partitions: int
    replication: int
    options: dict[str, Any]

    def __repr__(self) -> str:
        return f"KafkaAddress(topic={self.topic!r}, group={self.group!r})"

    @property
    def dead_topic(self) -> str:
        """Takes what cannot be parsed, as it came."""
        return f"{self.topic}.dead"


def parse(url: str) -> KafkaAddress:
    """``kafka://[user:password@]host:port[,host:port…][/topic][?…]``; the topic is ``charging-requests`` by default.

    A missing topic is made, and ``<topic>.dead`` with one partition beside it, unless ``create=0``. For making it:
    ``partitions`` (12: so many workers can share the work; each of them decides as much at once as it is set to) and
    ``replication`` (-1: the broker's default). ``group`` is the consumer group, by default the topic's name: services
    on one cluster then never wait for each other's workers.

    Every other parameter is an option of librdkafka (its CONFIGURATION.md), with dots or underscores. A user needs
    ``sasl_mechanism``, and goes over TLS unless ``security_protocol`` says otherwise.

    Raises ``ValueError``, without the password.
    """
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    if parts.scheme != "kafka" or not hosts:
        raise ValueError("must be kafka://host:port[,host:port…]/topic")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    topic = unquote(parts.path.strip("/")) or TOPIC
    group, create = query.pop("group", topic), query.pop("create", "1")
    if create not in {"0", "1"}:
        raise ValueError("create: must be 0 or 1")
    partitions, replication = _count(query, "partitions", 12), _count(query, "replication", -1)
    options = _SOONER | {"bootstrap.servers": hosts}
    if credentials:
        user, _, password = credentials.partition(":")
        options |= {
            "security.protocol": "sasl_ssl",
            "sasl.username": unquote(user),
            "sasl.password": unquote(password),
        }
    options |= {name if name == "log_level" else name.replace("_", "."): value for name, value in query.items()}
    if credentials and not options.keys() & {"sasl.mechanism", "sasl.mechanisms"}:
        raise ValueError("a user needs sasl_mechanism=PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
    return KafkaAddress(topic, group, create == "1", partitions, replication, options)


def _count(query: dict[str, str], name: str, default: int) -> int:
    text = query.pop(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}: must be a whole number") from None
