"""A message as RabbitMQ carries it: body, correlation id and headers, and back."""

from typing import Any, Final

import msgspec
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from chargegate.queues.base import Message

_SCHEMA: Final = 1


def pack(message: Message) -> Basic.Properties:
    """The properties beside the body."""
    headers: dict[str, Any] = {
        "schema": _SCHEMA,
        "station_id": message.station_id,
        "accepted_at": message.accepted_at,
        "traceparent": message.traceparent,
    }
    # aiormq finds a returned message by its message_id, so that must differ when a request is put again.
    return Basic.Properties(delivery_mode=2, correlation_id=message.request_id, headers=headers)


def unpack(incoming: DeliveredMessage) -> Message:
    """Raises ``msgspec.ValidationError``."""
    properties = incoming.header.properties
    headers = properties.headers or {}
    if headers.get("schema") != _SCHEMA:
        raise msgspec.ValidationError("unknown schema")
    return msgspec.convert(headers | {"request_id": properties.correlation_id, "body": incoming.body}, Message)
