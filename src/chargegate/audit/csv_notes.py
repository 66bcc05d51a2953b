"""What the writer of a CSV file notes beside it, so that a kill does not make it forget what it wrote."""

import contextlib
import os
import struct
import zlib
from pathlib import Path
from typing import Final

import msgspec

from chargegate.observe import log

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_MOST: Final = 4096
_HEAD: Final = struct.Struct("<HI")  # the length of the note, and its checksum
_encode = msgspec.msgpack.Encoder().encode


class Note(msgspec.Struct, frozen=True, array_like=True):
    """What the file held after the newest row.

    ``sequence`` and ``request_id`` are of that row, ``device``, ``inode`` and ``size`` of the file. ``before`` is the
    newest row that went into an earlier file, or that lay in this one before it was truncated. ``head`` is a checksum
    of the file's first lines. ``closed``: nothing was under way when the writer ended. ``link`` is the newest row's,
    as it stands in the file; empty without a chain. ``lost``: rows up to this one are written again, because the file
    has lost its end, and until then the ledger's position does not count; 0 where it has not.
    """

    boot: str
    sequence: int
    request_id: str
    before: int
    device: int
    inode: int
    size: int
    head: int
    closed: bool = False
    link: str = ""
    lost: int = 0


class Notes:
    """The newest note, in a file. It is written after each write to the CSV file and never synced: a kill leaves it as
    it is, and after the machine went down it is not believed, because then either file may lack its newest part."""

    def __init__(self, path: Path | None) -> None:
        """Without a path nothing is noted."""
        self._file = -1
        self.boot = ""
        if path is None:
            return
        with contextlib.suppress(OSError):  # Where there is no such file, as on macOS, no note is believed.
            self.boot = _BOOT.read_text().strip()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            log.warning("the audit file's notes cannot be kept", path=str(path), error=error.strerror)

    def read(self) -> Note | None:
        """The newest note. None where there is none that can be believed."""
        if self._file < 0:
            return None
        try:
            content = os.pread(self._file, _MOST, 0)
            length, checksum = _HEAD.unpack_from(content)
            text = content[_HEAD.size : _HEAD.size + length]
            if zlib.crc32(text) != checksum:
                return None
            note = msgspec.msgpack.decode(text, type=Note)
        except (OSError, struct.error, msgspec.DecodeError):
            return None
        return note if self.boot and note.boot == self.boot else None

    def write(self, note: Note) -> None:
        """Raises nothing: without notes, rows are recognised by their request ids alone."""
        if self._file >= 0:
            text = _encode(note)
            try:  # one write within one page: a kill leaves the old note or the new one
                os.pwrite(self._file, _HEAD.pack(len(text), zlib.crc32(text)) + text, 0)
            except OSError:
                return

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
