"""The outgoing HTTP/1.1 client: ``HttpClient`` posts; it returns a ``Response`` or raises ``CallFailed``."""

from chargegate.http1.answer import MAX_HEAD
from chargegate.http1.client import HttpClient
from chargegate.http1.connection import (
    NO_SOCKET,
    AddressBlocked,
    BadAnswer,
    CallFailed,
    ConnectFailed,
    NameNeeded,
    NotSent,
    Response,
    TimedOut,
)
from chargegate.http1.retry_after import asked_wait_ms
from chargegate.http1.tls import tls_context

__all__ = [
    "MAX_HEAD",
    "NO_SOCKET",
    "AddressBlocked",
    "BadAnswer",
    "CallFailed",
    "ConnectFailed",
    "HttpClient",
    "NameNeeded",
    "NotSent",
    "Response",
    "TimedOut",
    "asked_wait_ms",
    "tls_context",
]
