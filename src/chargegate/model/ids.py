"""UUIDs: the identifiers of stations and of requests."""

import re
from typing import Final

from chargegate.model.random_bytes import RandomPieces
from chargegate.model.times import now_ms

UUID_PATTERN: Final = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
UUID_RULE: Final = "must be a UUID in its canonical 8-4-4-4-12 form"

_uuid = re.compile(UUID_PATTERN).fullmatch
_random = RandomPieces(10)


def is_uuid(text: str) -> bool:
    """Whether the text is a UUID in its canonical form (RFC 9562, section 4), in any letter case."""
    return _uuid(text) is not None


def new_request_id() -> str:
    """A new UUID version 7 (RFC 9562, section 5.7).

    It cannot be guessed, and ids that are close in time are close in a table's index.
    """
    value = (now_ms() << 80) | int.from_bytes(_random.take(), "big")
    value = value & ~(0xF000 << 64) & ~(0xC000 << 48) | (0x7000 << 64) | (0x8000 << 48)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
