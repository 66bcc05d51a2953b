"""The outgoing HTTP/1.1 client: ``HttpClient`` posts, ``Response`` is an answer, ``CallFailed`` that there is none."""

from chargegate.http1.answer import MAX_HEAD
from chargegate.http1.client import HttpClient
from chargegate.http1.connection import (
    AddressBlocked,
    BadAnswer,
    CallFailed,
    ConnectFailed,
    NotSent,
    Response,
    TimedOut,
)

__all__ = [
    "MAX_HEAD",
    "AddressBlocked",
    "BadAnswer",
    "CallFailed",
    "ConnectFailed",
    "HttpClient",
    "NotSent",
    "Response",
    "TimedOut",
]
