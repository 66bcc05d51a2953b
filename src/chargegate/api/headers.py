"""Headers that every answer carries, and the trace id among them."""

import re
from collections.abc import Mapping
from random import getrandbits
from typing import Final

from chargegate.model import MIN_DRIVER_TOKEN

SECURITY: Final = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
MAX_TRACE_ID: Final = 128

_VISIBLE = re.compile(rb"[!-~]{1,%d}" % MAX_TRACE_ID).fullmatch
_could_hold_token = re.compile(rb"[A-Za-z0-9._~-]{%d}" % MIN_DRIVER_TOKEN).search
# A UUID, hexadecimal digits with or without dashes (as in traceparent), a ULID.
_ordinary = re.compile(rb"[0-9A-Fa-f]+(?:-[0-9A-Fa-f]+)*|[0-7][0-9A-HJKMNP-TV-Z]{25}").fullmatch
_FREE_BITS: Final = ~(0xF000 << 64 | 0xC000 << 48)
_VERSION_4: Final = 0x4000 << 64 | 0x8000 << 48


def given_trace_id(headers: Mapping[bytes, bytes]) -> bytes:
    """The client's ``X-Request-ID`` if it is 1 to 128 visible ASCII characters, else nothing."""
    given = headers.get(b"x-request-id")
    return given if given is not None and _VISIBLE(given) else b""


def trace_id(headers: Mapping[bytes, bytes], body: bytes = b"") -> bytes:
    """The trace id of an answer that does not know the request's token: the client's, or a new one where that could
    hold a token. A form that ids ordinarily have is taken for an id, unless what came of the body says otherwise."""
    given = given_trace_id(headers)
    if not given or (_could_hold_token(given) and (not _ordinary(given) or _may_repeat(given, body))):
        return new_trace_id()
    return given


def new_trace_id() -> bytes:
    """A UUID version 4 (RFC 9562, section 5.4) in 32 hexadecimal digits. It finds log lines, and may be guessed."""
    return b"%032x" % (getrandbits(128) & _FREE_BITS | _VERSION_4)


def _may_repeat(given: bytes, body: bytes) -> bool:
    """Whether as much of it as a token has is in the body too. What is escaped there is not looked for."""
    parts = (given[start : start + MIN_DRIVER_TOKEN] for start in range(len(given) - MIN_DRIVER_TOKEN + 1))
    return b"\\" in body or any(part in body for part in parts)
