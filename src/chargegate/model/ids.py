"""UUIDs: the identifiers of stations and of requests."""

import re
from typing import Final

from chargegate.model.random_bytes import RandomPieces
from chargegate.model.times import now_ms

UUID_PATTERN: Final = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
UUID_RULE: Final = "must be a UUID in its canonical 8-4-4-4-12 form"

_uuid = re.compile(UUID_PATTERN).fullmatch
_random = RandomPieces(10)
_VARIANTS: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def is_uuid(text: str) -> bool:
    """Whether the text is a UUID in its canonical form (RFC 9562, section 4), in any letter case."""
    return _uuid(text) is not None


def new_request_id(now: int | None = None) -> str:
    """A new UUID version 7 (RFC 9562, section 5.7). ``now``: the time in it (Unix ms), where the caller has it.

    It cannot be guessed, and ids that are close in time are close in a table's index.
    """
    moment, random = f"{now_ms() if now is None else now:012x}", _random.take().hex()
    variant = _VARIANTS[random[3]]
    return f"{moment[:8]}-{moment[8:]}-7{random[:3]}-{variant}{random[4:7]}-{random[7:19]}"
