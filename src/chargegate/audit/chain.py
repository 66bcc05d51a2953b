"""The chain of the CSV audit log: each row carries a keyed hash of itself and of all rows before it.

The last column of a row is ``NUMBER-MAC``, and ``NUMBER-BEFORE-MAC`` in the first row of a file. NUMBER counts the rows
of the log from 1 on, through all its files. MAC is the first 32 hex digits of HMAC-SHA256, under a key of its own, of
the MAC of the row before (32 zeros for the first row), the number, and the row as it stands in the file without this
column. BEFORE is that MAC of the row before, so that a file can be verified alone, and that a missing one is noticed.
"""

import hashlib
import re
from typing import Final

import msgspec

COLUMN: Final = "chain"
START: Final = "0" * 32
_BLOCK_BYTES: Final = 64
_cell = re.compile(r"([1-9]\d{0,17})-(?:([0-9a-f]{32})-)?([0-9a-f]{32})").fullmatch


class Link(msgspec.Struct, frozen=True):
    """A row's place in the chain. ``before`` is the MAC of the row before it, where the row says so."""

    number: int
    mac: str
    before: str | None = None


BEGINNING: Final = Link(0, START)
"""What stands before the first row of all."""


class Chain:
    """Makes links and checks them, with one key."""

    def __init__(self, key: bytes) -> None:
        # HMAC-SHA256 as in RFC 2104, by two hashes that are begun once and copied for each row: to copy OpenSSL's HMAC
        # takes three times as long as all of this.
        block = (hashlib.sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def mac(self, before: str, number: int, row: str) -> str:
        """The MAC of a row, which is a line of the log without the last column."""
        return self._hmac(f"{before}{number},{row}".encode())[:32]

    def chained(self, rows: str, last: Link, *, first_of_file: bool) -> tuple[str, Link]:
        """Whole lines of the log, each with its column, and the last one's link. ``last`` is that of the row before."""
        number, before = last.number, last.mac
        lines = []
        for row in rows.split("\n")[:-1]:  # a message of a broker may hold what else Unicode breaks lines at
            number += 1
            mac = self.mac(before, number, row)
            lines.append(f"{row},{number}-{before}-{mac}\n" if first_of_file else f"{row},{number}-{mac}\n")
            first_of_file, before = False, mac
        return "".join(lines), Link(number, before)

    def signature(self, text: str) -> str:
        """Of a statement about the log; it never equals the MAC of a row."""
        return self._hmac(b"\x00statement\x00" + text.encode())

    def _hmac(self, text: bytes) -> str:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        return outer.hexdigest()


def link_of(line: str) -> tuple[str, Link] | None:
    """A line without its last column, and the link in that. None where it has none."""
    row, _, cell = line.rpartition(",")
    match = _cell(cell)
    return (row, Link(int(match[1]), match[3], match[2])) if match else None
