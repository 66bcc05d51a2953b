"""A message as a record: value, key and headers, and back."""

from typing import Any, Final

import msgspec
from confluent_kafka import Message as Record

from chargegate.queues.base import AcceptedAt, Message, RequestId, StationId

PROBE: Final = [("schema", b"probe")]
"""The headers of a record that only proves that the topic can be written; consumers pass it over."""

_SCHEMA: Final = b"1"


class Malformed(Exception):
    """A record is not a message of ours. The text says why, and nothing of the content."""


_Body = tuple[RequestId, StationId, AcceptedAt, bytes]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode


def pack(message: Message) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """A message as value, key and headers of a record."""
    headers = [("schema", _SCHEMA)]
    if message.traceparent:
        headers.append(("traceparent", message.traceparent.encode()))
    value = _encode((message.request_id, message.station_id, message.accepted_at, message.body))
    return value, message.station_id.lower().encode(), headers


def unpack(record: Record) -> Message:
    """Raises ``Malformed``."""
    headers: dict[str, Any] = dict(record.headers() or ())
    if headers.get("schema") != _SCHEMA:
        raise Malformed("unknown schema version")
    try:
        request_id, station_id, accepted_at, body = _decode(record.value() or b"")
        traceparent = (headers.get("traceparent") or b"").decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed("not in the form of its schema version") from None
    return Message(request_id, station_id, accepted_at, body, traceparent)
