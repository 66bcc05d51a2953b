"""UUIDs: the identifiers of stations and of requests."""

import os
import re
from collections.abc import Iterator
from typing import Final

from chargegate.model.times import now_ms

UUID_PATTERN: Final = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
UUID_RULE: Final = "must be a UUID in its canonical 8-4-4-4-12 form"

_uuid = re.compile(UUID_PATTERN).fullmatch


def is_uuid(text: str) -> bool:
    """Whether the text is a UUID in its canonical form (RFC 9562, section 4), in any letter case."""
    return _uuid(text) is not None


def new_request_id() -> str:
    """A new UUID version 7 (RFC 9562, section 5.7).

    It cannot be guessed, and ids that are close in time are close in a table's index.
    """
    value = (now_ms() << 80) | int.from_bytes(next(_random), "big")
    value = value & ~(0xF000 << 64) & ~(0xC000 << 48) | (0x7000 << 64) | (0x8000 << 48)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _random_bytes() -> Iterator[bytes]:
    """Random bytes for one id each. One system call fetches those of 256 ids."""
    while True:
        block = os.urandom(10 * 256)
        for start in range(0, len(block), 10):
            yield block[start : start + 10]


_random = _random_bytes()  # Two threads cannot get the same bytes: a generator runs in one thread at a time.
