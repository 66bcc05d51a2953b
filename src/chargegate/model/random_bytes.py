"""Random bytes in pieces of one size, fetched from the operating system in blocks."""

import os
from typing import Final

_PIECES: Final = 256


class RandomPieces:
    """Pieces of ``os.urandom``, which are as little to be guessed as those of a call for each.

    One call fetches many, because each call lets the interpreter's lock go and waits to get it back. No piece is given
    out twice: taking one removes it, which threads cannot do at the same time, and a forked child fetches its own.
    """

    def __init__(self, size: int) -> None:
        """``size``: bytes of each piece."""
        self._size = size
        self._left: list[bytes] = []
        os.register_at_fork(after_in_child=self._left.clear)

    def take(self) -> bytes:
        """The next piece, which nobody else gets."""
        while True:
            try:
                return self._left.pop()
            except IndexError:
                block = os.urandom(self._size * _PIECES)
                self._left += [block[start : start + self._size] for start in range(0, len(block), self._size)]
