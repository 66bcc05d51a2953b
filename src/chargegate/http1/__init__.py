"""The outgoing HTTP/1.1 client: ``HttpClient`` posts; it returns a ``Response`` or raises ``CallFailed``."""

from chargegate.http1.client import HttpClient, tls_context
from chargegate.http1.exchange import (
    MAX_HEADER_BLOCK,
    AddressBlocked,
    BadAnswer,
    CallFailed,
    ConnectFailed,
    Response,
    TimedOut,
)

__all__ = [
    "MAX_HEADER_BLOCK",
    "AddressBlocked",
    "BadAnswer",
    "CallFailed",
    "ConnectFailed",
    "HttpClient",
    "Response",
    "TimedOut",
    "tls_context",
]
