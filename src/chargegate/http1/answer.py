"""An answer, taken apart as it comes.

A receiver is often a few lines of somebody's script, so an answer is read as curl reads it: lines may end in LF alone,
fields may be folded, a space may stand before the colon, values may hold control characters, a length may stand there
twice, chunk sizes may be padded. What could be read in two ways is refused: two different lengths, or a length beside
chunks. Messages are framed by RFC 9112, 6.3.
"""

import enum
import re
from typing import Final

MAX_HEAD: Final = 65536
"""Bytes of everything up to the end of the final head, interim answers too."""

_MAX_LINE: Final = 4096  # of a chunk's size with its extensions, or of a trailer
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9])[ \t]+([1-9][0-9]{2})(?:[ \t].*)?", re.DOTALL).fullmatch
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,16})[ \t]*(?:;.*)?", re.DOTALL).fullmatch
_HEAD_END = re.compile(rb"\n\r?\n").search


class MalformedAnswer(Exception):
    """It is no answer in HTTP/1.x, could be read in two ways, or its head is too large."""


class _Part(enum.Enum):
    HEAD = enum.auto()
    LENGTH = enum.auto()  # a body of known length
    CHUNK_SIZE = enum.auto()
    CHUNK = enum.auto()
    CHUNK_END = enum.auto()
    TRAILERS = enum.auto()
    UNTIL_CLOSE = enum.auto()
    DONE = enum.auto()


class Answer:
    """One answer. ``body`` is what was kept of it, at most ``max_body`` bytes.

    All bytes count towards the limit, the framing of chunks too. An answer that is longer is done when the limit is
    reached: its status is what matters, and the rest is for nobody.
    """

    __slots__ = ("_allowance", "_buffer", "_left", "_part", "body", "persistent", "retry_after", "status", "surplus")

    def __init__(self, max_body: int) -> None:
        self.status = 0
        self.retry_after: str | None = None
        self.body = bytearray()
        self.persistent = False
        """Whether the connection may be used again."""
        self.surplus = False
        """Something came behind the answer, which nobody asked for."""
        self._part = _Part.HEAD
        self._buffer = bytearray()
        self._allowance = max_body
        self._left = MAX_HEAD

    @property
    def done(self) -> bool:
        return self._part is _Part.DONE

    def feed(self, data: bytes) -> None:
        """Take what came. Raises ``MalformedAnswer``."""
        buffer = self._buffer
        buffer += data
        if self._part is _Part.HEAD and not self._read_heads():
            return
        while self._part is not _Part.DONE and buffer and self._read_body():
            pass
        if self._part is _Part.DONE:
            self.surplus = self.surplus or bool(buffer)

    def closed(self) -> bool:
        """The connection ended. True if that is the answer's end too."""
        if self._part is not _Part.UNTIL_CLOSE:
            return self._part is _Part.DONE
        self._finish(persistent=False)
        return True

    def _finish(self, *, persistent: bool) -> None:
        self.persistent = self.persistent and persistent
        self._part = _Part.DONE

    # Heads

    def _read_heads(self) -> bool:
        """Read interim answers and the final head. False if more must come first."""
        buffer = self._buffer
        if not buffer.startswith(b"HTTP/1."[: len(buffer)]):
            raise MalformedAnswer
        while True:
            end = _HEAD_END(buffer)
            size = end.end() if end else len(buffer)
            if size > self._left:
                raise MalformedAnswer
            if end is None:
                return False
            self._left -= size
            head = bytes(buffer[:size])
            del buffer[:size]
            if self._read_head(head):
                return True

    def _read_head(self, head: bytes) -> bool:
        """True for the final one."""
        line, _, rest = head.partition(b"\n")
        match = _STATUS_LINE(line.rstrip(b"\r"))
        if match is None:
            raise MalformedAnswer
        status = int(match[2])
        if 100 <= status < 200 and status != 101:
            return False
        self.status = status
        self.persistent = match[1] == b"1"
        if status == 101:  # an upgrade that nobody asked for
            self._finish(persistent=False)
            return True
        lengths, codings = self._read_fields(rest)
        if status in (204, 304):
            self._finish(persistent=True)
        elif codings:
            if lengths:
                raise MalformedAnswer
            self._part = _Part.CHUNK_SIZE if codings[-1] == b"chunked" else _Part.UNTIL_CLOSE
        elif lengths:
            self._left = _only_length(lengths)
            self._part = _Part.LENGTH
            if not self._left:
                self._finish(persistent=True)
        else:
            self._part = _Part.UNTIL_CLOSE
        return True

    def _read_fields(self, rest: bytes) -> tuple[list[bytes], list[bytes]]:
        """The lengths and the transfer codings that the fields name; of the others what is needed is kept."""
        lengths: list[bytes] = []
        codings: list[bytes] = []
        if b"\n " in rest or b"\n\t" in rest:
            rest = re.sub(rb"\r?\n[ \t]+", b" ", rest)  # folded lines (RFC 9112, 5.2)
        for line in rest.split(b"\n"):
            if line[:1] not in b"cCtTrR":
                continue
            name, colon, value = line.partition(b":")
            if not colon:
                continue
            match name.rstrip().lower():
                case b"content-length":
                    lengths += value.split(b",")
                case b"transfer-encoding":
                    codings += [each for each in value.lower().replace(b" ", b"").strip().split(b",") if each]
                case b"retry-after":
                    self.retry_after = value.decode("latin-1").strip()
                case b"connection":
                    if b"close" in value.lower():
                        self.persistent = False
        return lengths, [coding for coding in codings if coding != b"identity"]

    # Bodies

    def _read_body(self) -> bool:
        """Read what is there of the part that comes next. False if more must come first."""
        match self._part:
            case _Part.LENGTH:
                self._left -= self._keep(self._left)
                if not self._left:
                    self._finish(persistent=True)
            case _Part.CHUNK:
                self._left -= self._keep(self._left)
                if not self._left:
                    self._part = _Part.CHUNK_END
            case _Part.UNTIL_CLOSE:
                self._keep(len(self._buffer))
            case _:
                return self._read_line()
        return True

    def _keep(self, size: int) -> int:
        """Move so much from the buffer to the body, as far as the limit allows. How much that was."""
        piece = self._buffer[:size]
        del self._buffer[: len(piece)]
        self.body += piece[: self._allowance]
        self._spend(len(piece))
        return len(piece)

    def _spend(self, size: int) -> None:
        self._allowance -= size
        if self._allowance < 0:
            self._finish(persistent=False)

    def _read_line(self) -> bool:
        """A line of the chunked framing: a chunk's size, its end, or a trailer."""
        end = self._buffer.find(b"\n", 0, _MAX_LINE)
        if end < 0:
            if len(self._buffer) >= _MAX_LINE:
                raise MalformedAnswer
            return False
        line = bytes(self._buffer[:end]).rstrip(b"\r")
        del self._buffer[: end + 1]
        self._spend(end + 1)
        if self._part is _Part.DONE:
            return False
        if self._part is _Part.CHUNK_SIZE:
            match = _CHUNK_SIZE(line)
            if match is None:
                raise MalformedAnswer
            self._left = int(match[1], 16)
            self._part = _Part.CHUNK if self._left else _Part.TRAILERS
        elif self._part is _Part.CHUNK_END:
            if line:
                raise MalformedAnswer
            self._part = _Part.CHUNK_SIZE
        elif not line:
            self._finish(persistent=True)
        return True


def _only_length(texts: list[bytes]) -> int:
    """The length that all of them say. Raises ``MalformedAnswer``."""
    numbers = {text.strip() for text in texts}
    if len(numbers) > 1:
        numbers = {number.lstrip(b"0") or b"0" for number in numbers}
    number = numbers.pop()
    if numbers or not number.isdigit() or len(number) > 18:
        raise MalformedAnswer
    return int(number)
