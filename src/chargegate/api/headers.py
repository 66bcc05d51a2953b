"""Headers that every answer carries."""

import re
from collections.abc import Mapping
from random import getrandbits
from typing import Final

from chargegate.model import MIN_DRIVER_TOKEN

SECURITY: Final = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
MAX_TRACE_ID: Final = 128

_VISIBLE = re.compile(rb"[!-~]{1,%d}" % MAX_TRACE_ID).fullmatch
_FREE_BITS: Final = ~(0xF000 << 64 | 0xC000 << 48)
_VERSION_4: Final = 0x4000 << 64 | 0x8000 << 48


def trace_id(headers: Mapping[bytes, bytes]) -> bytes:
    """The client's ``X-Request-ID`` if it is 1 to 128 visible ASCII characters, else a new one."""
    given = headers.get(b"x-request-id")
    return given if given is not None and _VISIBLE(given) else new_trace_id()


def new_trace_id() -> bytes:
    """A UUID version 4 (RFC 9562, section 5.4) in 32 hexadecimal digits. It finds log lines, and may be guessed."""
    return b"%032x" % (getrandbits(128) & _FREE_BITS | _VERSION_4)


def without_token(trace: bytes, fields: object) -> bytes:
    """The trace id, or a new one where it holds what a decoded body calls the driver token."""
    if isinstance(fields, dict):
        for name in ("driver_token", "driverToken"):
            token = fields.get(name)
            if isinstance(token, str) and len(token) >= MIN_DRIVER_TOKEN and token in trace.decode("ascii"):
                return new_trace_id()
    return trace
