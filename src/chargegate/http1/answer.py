"""An answer, taken apart as it comes.

A receiver is often a few lines of somebody's script, so an answer is read as curl reads it. Lines may end in LF alone,
fields may be folded, a space may stand before the colon, values may hold control characters, the same length may stand
there twice, and chunk sizes may be padded. What could be read in two ways is refused: two different lengths, or a
length beside chunks. Messages are framed by RFC 9112, 6.3.
"""

import enum
import re
from typing import Final

MAX_HEAD: Final = 65536
"""Bytes of everything up to the end of the final head, interim answers too."""

_MAX_LINE: Final = 4096  # of a chunk's size with its extensions, or of a trailer
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9])[ \t]+([1-9][0-9]{2})(?![0-9])", re.IGNORECASE).match
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,16})(?:[ \t;].*)?", re.DOTALL).fullmatch
_FOLDED_LINE = re.compile(rb"\r?\n[ \t]+")
_INITIALS: Final = b"cCtTrR"  # of the fields that are read

# The head that most receivers send. Other fields that begin with one of those letters are left to ``Answer``.
_UNREAD_FIELDS: Final = (
    rb"(?:(?:(?:[^cCtTrR\s:][^\r\n:]*+|[cC]ontent-[tT]ype|[cC]ache-[cC]ontrol):[^\r\n]*+"
    rb"|[cC]onnection: [kK]eep-[aA]live)\r\n)*+"
)
_COMMON_HEAD = re.compile(
    rb"HTTP/1\.1 ([2-9][0-9]{2})(?: [^\r\n]*+)?\r\n%b[cC]ontent-[lL]ength: ([0-9]{1,9})\r\n%b\r\n"
    % (_UNREAD_FIELDS, _UNREAD_FIELDS)
).match


class MalformedAnswer(Exception):
    """It is no answer in HTTP/1.x, could be read in two ways, or its head is too large."""


def common_answer(data: bytes, max_body: int) -> tuple[int, bytes] | None:
    """Status and body, where this is a whole answer of the most common form, on a connection that may be used again.
    It is what ``Answer`` would say, at a third of the cost."""
    match = _COMMON_HEAD(data)
    if match is None:
        return None
    end = match.end()
    size = len(data) - end
    if size != int(match[2]) or size > max_body or end > MAX_HEAD or match[1] in (b"204", b"304"):
        return None
    return int(match[1]), data[end:]


class _Part(enum.Enum):
    HEAD = enum.auto()
    LENGTH = enum.auto()  # a body of known length
    CHUNK_SIZE = enum.auto()
    CHUNK = enum.auto()
    CHUNK_END = enum.auto()
    TRAILERS = enum.auto()
    UNTIL_CLOSE = enum.auto()


_HEAD, _LENGTH, _UNTIL_CLOSE, _CHUNK = _Part.HEAD, _Part.LENGTH, _Part.UNTIL_CLOSE, _Part.CHUNK


class Answer:
    """One answer. ``body`` is what was kept of it, at most ``max_body`` bytes.

    All bytes behind the head count towards that limit, the framing of chunks too. An answer that is longer is done when
    the limit is reached: its status is what matters, and the rest is for nobody.
    """

    # Most answers come in one piece, and change few of these.
    done = False
    status = 0
    retry_after: str | None = None
    body: bytes = b""
    persistent = False
    """Whether the connection may be used again."""
    surplus = False
    """Something came behind the answer, which nobody asked for."""
    _part = _HEAD
    _pending: bytearray | None = None  # what came and could not be read yet
    _searched = 0  # bytes of that in which no head ends
    _left = MAX_HEAD  # bytes that may come, or that must come, of this part

    def __init__(self, max_body: int) -> None:
        self._allowance = max_body

    def feed(self, piece: bytes) -> None:
        """Take what came. Raises ``MalformedAnswer``."""
        data: bytes | bytearray = piece
        if self._pending:
            self._pending += piece
            data = self._pending
        at = self._read_heads(data) if self._part is _HEAD else 0
        if self._part is not _HEAD:
            end = len(data)
            while at < end and not self.done:
                if (after := self._read_body(data, at)) == at:
                    break  # more of it must come first
                at = after
        if self.done:
            self.surplus = at < len(data)
            self._pending = None
        elif data is self._pending:
            del data[:at]
        else:
            self._pending = bytearray(data[at:])

    def closed(self) -> bool:
        """The connection ended. True if that is the answer's end too."""
        if self._part is _UNTIL_CLOSE and not self.done:
            self._finish(persistent=False)
        return self.done

    def _finish(self, *, persistent: bool) -> None:
        self.done = True
        if not persistent:
            self.persistent = False

    # Heads

    def _read_heads(self, data: bytes | bytearray) -> int:
        """Read interim answers and the final head. Returns where the next unread byte stands."""
        at = 0
        while self._part is _HEAD and not self.done:
            searched = max(at, self._searched)
            crlf = data.find(b"\n\r\n", searched)
            lf = data.find(b"\n\n", searched, len(data) if crlf < 0 else crlf)
            end = lf + 2 if lf >= 0 else crlf + 3 if crlf >= 0 else -1
            if (len(data) if end < 0 else end) - at > self._left:
                raise MalformedAnswer
            if end < 0:
                if data[at : at + 7].upper() != b"HTTP/1."[: len(data) - at]:
                    raise MalformedAnswer
                self._searched = max(0, len(data) - at - 2)
                return at
            self._left -= end - at
            self._searched = 0
            self._read_head(bytes(data[at:end]))
            at = end
        return at

    def _read_head(self, head: bytes) -> None:
        """Read one head. An interim one changes nothing."""
        lines = head.split(b"\n")
        match = _STATUS_LINE(head)
        if match is None:
            raise MalformedAnswer
        version, status = match[1], int(match[2])
        if 100 <= status < 200 and status != 101:
            return
        self.status = status
        if status == 101:  # an upgrade that nobody asked for
            self._finish(persistent=False)
            return
        self.persistent = version == b"1"
        lengths, codings = self._read_fields(head, lines)
        if status in (204, 304):
            self._finish(persistent=True)
        elif codings:
            if lengths:
                raise MalformedAnswer
            self._part = _Part.CHUNK_SIZE if codings[-1] == b"chunked" else _UNTIL_CLOSE
        elif lengths:
            self._left = _only_length(lengths)
            self._part = _LENGTH
            if not self._left:
                self._finish(persistent=True)
        else:
            self._part = _UNTIL_CLOSE

    def _read_fields(self, head: bytes, lines: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """The lengths and the transfer codings that the fields name. What is needed of the others is kept."""
        if b"\n " in head or b"\n\t" in head:
            lines = _FOLDED_LINE.sub(b" ", head).split(b"\n")  # RFC 9112, 5.2
        lengths: list[bytes] = []
        codings: list[bytes] = []
        for line in lines[1:-2]:
            if b":" not in line:
                raise MalformedAnswer
            if line[:1] not in _INITIALS:
                continue
            name, _, value = line.partition(b":")
            name = name.rstrip().lower()
            if name == b"content-length":
                lengths.append(value)
            elif name == b"transfer-encoding":
                codings += [coding.partition(b";")[0].strip() for coding in value.lower().split(b",")]
            elif name == b"retry-after":
                self.retry_after = value.decode("latin-1").strip()
            elif name == b"connection" and b"close" in value.lower():
                self.persistent = False
        return lengths, [coding for coding in codings if coding not in (b"", b"identity")] if codings else codings

    # Bodies

    def _read_body(self, data: bytes | bytearray, at: int) -> int:
        """Read what is there of the part that comes next. Returns where the next unread byte stands, which is ``at``
        where more must come first."""
        if self._part is _LENGTH:
            at = self._keep(data, at, self._left)
            if not self._left:
                self._finish(persistent=True)
            return at
        if self._part is _CHUNK:
            at = self._keep(data, at, self._left)
            if not self._left:
                self._part = _Part.CHUNK_END
            return at
        if self._part is _UNTIL_CLOSE:
            return self._keep(data, at, len(data))
        return self._read_line(data, at)

    def _keep(self, data: bytes | bytearray, at: int, size: int) -> int:
        """Keep at most so many bytes as a part of the body, as far as the limit allows."""
        piece = data[at : at + min(size, self._allowance + 1)]
        self._left -= len(piece)
        kept = piece[: self._allowance] if len(piece) > self._allowance else piece
        self.body = self.body + kept if self.body else bytes(kept)
        self._spend(len(piece))
        return at + len(piece)

    def _spend(self, size: int) -> None:
        self._allowance -= size
        if self._allowance < 0:
            self._allowance = 0
            self._finish(persistent=False)

    def _read_line(self, data: bytes | bytearray, at: int) -> int:
        """A line of the chunked framing: a chunk's size, its end, or a trailer."""
        end = data.find(b"\n", at, at + _MAX_LINE)
        if end < 0:
            if len(data) - at >= _MAX_LINE:
                raise MalformedAnswer
            return at
        line = bytes(data[at:end]).rstrip(b"\r")
        self._spend(end + 1 - at)
        if self.done:
            return end + 1
        if self._part is _Part.CHUNK_SIZE:
            match = _CHUNK_SIZE(line)
            if match is None:
                raise MalformedAnswer
            self._left = int(match[1], 16)
            self._part = _CHUNK if self._left else _Part.TRAILERS
        elif self._part is _Part.CHUNK_END:
            if line:
                raise MalformedAnswer
            self._part = _Part.CHUNK_SIZE
        elif not line:
            self._finish(persistent=True)
        return end + 1


def _only_length(texts: list[bytes]) -> int:
    """The length that all of them say. Raises ``MalformedAnswer``."""
    if len(texts) == 1 and (only := texts[0].strip()).isdigit() and len(only) <= 18:
        return int(only)
    numbers = {number.strip() for text in texts for number in text.split(b",")}
    if not all(number.isdigit() and len(number) <= 18 for number in numbers):
        raise MalformedAnswer
    values = {int(number) for number in numbers}
    if len(values) != 1:
        raise MalformedAnswer
    return values.pop()
