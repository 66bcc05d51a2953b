"""The chunked transfer coding (RFC 9112, 7.1) of a request's body, strictly as it is written there."""

import re
from typing import Final

MAX_LINE: Final = 256  # of a chunk's size with its extensions
MAX_TRAILERS: Final = 8 * 1024

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?").fullmatch
_TRAILER = re.compile(rb"[!#-'*+.0-9A-Z^-z|~-]+:[^\x00-\x08\x0a-\x1f\x7f]*").fullmatch


class ChunkedBody:
    """Takes a body apart as it comes. Trailers are checked, bounded, and shown to nobody: what a client sends there
    must never pass for a header."""

    __slots__ = ("_left", "_trailer_bytes", "_trailing", "ended")

    def __init__(self) -> None:
        self._left = 0  # of the chunk under way, with the line end behind it
        self._trailing = False
        self._trailer_bytes = 0
        self.ended = False

    def take(self, received: bytearray) -> bytes:
        """The content in what was received, which is removed from there as far as it belongs to this body. Raises
        ``ValueError`` with the rule that is broken."""
        content = bytearray()
        while received and not self.ended:
            if self._left > 2:
                piece = received[: self._left - 2]
                del received[: len(piece)]
                self._left -= len(piece)
                content += piece
            elif self._left:
                if not b"\r\n".startswith(received[:2]):
                    raise ValueError("a chunk is longer than its size says")
                if len(received) < 2:
                    break
                del received[:2]
                self._left = 0
            elif not self._take_line(received):
                break
        return bytes(content)

    def _take_line(self, received: bytearray) -> bool:
        """The line of a chunk's size, or a trailer. False if more must come first."""
        end = received.find(b"\r\n", 0, MAX_TRAILERS if self._trailing else MAX_LINE)
        if end < 0:
            if len(received) >= (MAX_TRAILERS if self._trailing else MAX_LINE):
                raise ValueError("a line of a chunked body is too long")
            return False
        line = bytes(received[:end])
        del received[: end + 2]
        if not self._trailing:
            match = _SIZE(line)
            if match is None:
                raise ValueError("a chunk has no valid size")
            size = int(match[1], 16)
            self._left = size + 2 if size else 0
            self._trailing = not size
        elif not line:
            self.ended = True
        else:
            self._trailer_bytes += len(line) + 2
            if self._trailer_bytes > MAX_TRAILERS or not _TRAILER(line):
                raise ValueError("trailers are malformed, or too many")
        return True
