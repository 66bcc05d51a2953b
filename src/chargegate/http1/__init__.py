"""The outgoing HTTP/1.1 client: ``HttpClient`` posts, ``Response`` is an answer, ``CallFailed`` that there is none."""

from chargegate.http1.client import HttpClient
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
]
