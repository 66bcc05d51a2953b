"""The CSV audit log: one line for each decision."""

import contextlib
import errno
import fcntl
import os
import stat
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import msgspec

from chargegate.audit.base import EndLost
from chargegate.audit.chain import Chain, Link, link_of
from chargegate.audit.csv_beside import held_in, relatives_of
from chargegate.audit.csv_lines import (
    CHAINED_HEADER,
    HEAD_BYTES,
    HEADER,
    NO_LINES,
    TAIL_BYTES,
    as_lines,
    checksum_of_head,
    end_of_lines,
    last_link,
)
from chargegate.audit.csv_notes import Note, Notes
from chargegate.audit.csv_turns import log_name, sign_turn
from chargegate.audit.life.heads import Heads
from chargegate.audit.life.links import newest_link
from chargegate.audit.life.rotating import clear, rotate
from chargegate.ledger.records import AuditRow
from chargegate.model import now_ms
from chargegate.observe import log

_LINK_BYTES: Final = 8192  # more than the longest line
_MOST_LEFT_OPEN: Final = 32
_END_BYTES: Final = 128
_RENAMES: Final = 3  # more of them within one write would be no rotations


class CsvFile:
    """Appends to a file. A line is written whole or not at all.

    Somebody may rename, delete or truncate the file meanwhile: the next lines go into a new one, below a header.
    Several processes on one host may write to the same file.
    """

    name = "csv"

    def __init__(
        self, path: Path, notes: Path | None = None, chain: Chain | None = None, heads: Heads | None = None
    ) -> None:
        """``notes`` is where this writer, and no other, notes how far it came. With a ``chain`` each row gets its link
        in it. ``heads``: where it is signed since when there is one, and which rows were lost. Raises ``OSError`` if
        the file cannot be opened for appending."""
        self._path = path
        self._heads = heads
        self._chain = chain
        self._header = HEADER if chain is None else CHAINED_HEADER
        self._last: Link | None = None  # of the row before ours, where it is known
        self._notes = Notes(notes)
        self._left: deque[int] = deque()  # files that were renamed, open until they are synced
        self._file = -1
        self._device = self._inode = 0
        self._size = self._head = 0  # of the file after our newest line
        self._sequence = self._before = 0  # see Note
        self._request_id = ""
        self._new = False
        self._end = b""  # of our newest line
        self._lost = 0  # see Note
        self._cut = False  # somebody cut off a part of the file while it was open
        self.lost_rows = False
        if heads is not None:
            sign_turn(heads, path, on=chain is not None)
        try:
            self._open()
        except OSError:
            self._notes.close()
            raise

    def _open(self) -> None:
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o640)
        status = os.fstat(file)
        if stat.S_ISFIFO(status.st_mode):  # which would hold up decisions once nobody reads it
            os.close(file)
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))
        if status.st_size > 0 and self._is_other_kind(file):
            os.close(file)
            path, now = Path(os.path.realpath(self._path)), now_ms()
            if rotate(path, now) is None and (renamed := clear(path, now)) is not None:
                log.warning("an audit file that begins with lines which cannot be read was renamed", path=str(renamed))
            file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o640)
            status = os.fstat(file)
        self._last = self._link_before()
        if self._file >= 0:
            self._leave(self._file)
        self._file = file
        self._device, self._inode = status.st_dev, status.st_ino
        self._size, self._end = 0, b""
        self._new = True
        self._begin_with(status.st_size)
        with contextlib.suppress(OSError):  # If the disk is full, the first line says so.
            self._append("")

    def _is_other_kind(self, file: int) -> bool:
        """Whether a log has rows with the chain, and ours have none, or the other way round. A header that somebody cut
        short says neither."""
        head = os.pread(file, len(CHAINED_HEADER), 0)
        return head.startswith(b"timestamp,") and b"\n" in head and not head.startswith(self._header.encode())

    def _link_before(self) -> Link | None:
        """The link of the last row before a new file: in the one that we wrote until now, and after a start in the
        newest one beside it. None without a chain."""
        if self._chain is None:
            return None
        if self._file >= 0:
            size = os.fstat(self._file).st_size
            link = last_link(os.pread(self._file, _LINK_BYTES, max(0, size - _LINK_BYTES)))
            if link.number:
                return link
        return newest_link(self._path)

    def _leave(self, file: int) -> None:
        """Keep a file open until ``sync``, so that no decision waits for the disk."""
        self._left.append(file)
        if len(self._left) > _MOST_LEFT_OPEN:
            self._sync_left()

    def _begin_with(self, size: int) -> None:
        """What is in the file now is not what we wrote: it is another one, or it was truncated."""
        self._before = self._sequence
        self._head = checksum_of_head(os.pread(self._file, HEAD_BYTES, 0)) if size else 0

    def last_written(self) -> tuple[int, str] | None:
        note = self._notes.read()
        return (note.sequence, note.request_id) if note is not None and note.request_id else None

    def resume(self, saved: int = 0, *, remembered: bool = False, earliest: int = 0) -> int:
        """Prepare for the first ``write``. Returns the sequence of the row after which rows may be missing.

        It removes also what a crash left unfinished at the end of the file.

        ``saved`` is the position that the ledger has. ``remembered``: the ledger has the row that ``last_written``
        told. ``earliest``: rows up to this one are none of this file's, even if it has lost its end.
        """
        note = self._notes.read() if remembered else None
        own = note is not None and (note.device, note.inode) == (self._device, self._inode)
        self._request_id = ""  # so that `close` does not replace a note that tells what is lost
        with self._locked() as size:
            start = max(0, size - TAIL_BYTES)
            text = os.pread(self._file, size - start, start)
            end = start + end_of_lines(text, only_whole=note is None or not note.closed)
            if end < size:
                if note is not None and own and end < note.size:  # afterwards it may look like a new file
                    note = self._noted_as_lost(note)
                os.ftruncate(self._file, end)
                self._last = self._link_before()  # what was cut off may have had a link
        cut = self._cut or self.lost_rows or (note is not None and note.lost >= note.sequence)
        self._cut = self.lost_rows = False
        self._size, self._end = end, os.pread(self._file, min(_END_BYTES, end), max(0, end - _END_BYTES))
        self._head = checksum_of_head(os.pread(self._file, HEAD_BYTES, 0))
        self._sequence = self._before = saved
        self._lost = 0
        if note is not None:
            self._sequence = self._before = max(saved, note.sequence)
            if note.lost > note.sequence:  # the process ended while it wrote lost lines again
                self._sequence = self._before = note.sequence
                self._lost = note.lost
            if own and (cut or text not in NO_LINES):
                if self._holds(note, end):
                    self._before = note.before
                elif self._head in (0, note.head):
                    self._sequence = self._before = max(note.before, earliest)
                    if self._before < note.sequence:
                        self._has_lost(note)
            if self._sequence == note.sequence:
                self._request_id = note.request_id
                self._note()  # that it is open again
        return self._sequence

    def _noted_as_lost(self, note: Note) -> Note:
        """So that it stays known until the lines are written again, whatever ends this process before."""
        self._lost = max(note.lost, note.sequence)
        if note.lost != self._lost:
            note = msgspec.structs.replace(note, lost=self._lost)
            self._notes.write(note)
        return note

    def _has_lost(self, note: Note) -> None:
        """Our file has lost its end, while it was written or when nobody wrote. What it lacks is written again."""
        self._noted_as_lost(note)
        self.lost_rows = True
        self._last = self._link_before()
        log.error("an audit file has lost its end, and it is written again", path=str(self._path))
        lost = link_of(f",{note.link}")
        if self._heads is not None and self._last is not None and lost and lost[1].number > self._last.number:
            try:
                self._heads.lost(log_name(self._path), lost[1], now_ms())
            except OSError as error:
                log.error("that rows of the audit were lost was not signed", error=error.strerror)

    def _holds(self, note: Note, end: int) -> bool:
        """Whether the newest line that was noted stands where it was written."""
        if end < note.size:
            return False
        line = os.pread(self._file, min(HEAD_BYTES, note.size), max(0, note.size - HEAD_BYTES))
        return note.request_id.encode() in line

    def held(self) -> frozenset[str]:
        """From the end of the file, and of those beside it that were perhaps this one before they were renamed, copied
        or compressed. From all of the file where it has lost its end."""
        return held_in([self._path, *self.relatives()], whole=[self._path] if self.lost_rows else [])

    def relatives(self, others: Collection[Path] = ()) -> list[Path]:
        """The newest files beside this one whose names begin like its own, or that the newest note is about, but for
        ``others``, which are logs of their own."""
        note = self._notes.read()
        return relatives_of(self._path, note.inode if note is not None else -1, others)

    def write(self, rows: list[AuditRow]) -> None:
        lines = as_lines(rows)
        for _ in range(_RENAMES):
            if self._append(lines, named=True):
                break
            self._open()
        else:
            self._append(lines)
        newest = rows[-1]
        self.lost_rows = False
        self._sequence, self._request_id = newest.sequence, newest.decision.request_id
        if not self._head:
            with contextlib.suppress(OSError):
                self._head = checksum_of_head(os.pread(self._file, HEAD_BYTES, 0))
        self._note()

    def _note(self, *, closed: bool = False) -> None:
        self._notes.write(
            Note(
                self._notes.boot,
                self._sequence,
                self._request_id,
                self._before,
                self._device,
                self._inode,
                self._size,
                self._head,
                closed,
                f"{self._last.number}-{self._last.mac}" if self._last is not None else "",
                self._lost if self._sequence < self._lost else 0,
            )
        )

    def _append(self, lines: str, *, named: bool = False) -> bool:
        """With ``named`` only where the file still has its name: who renames it under its lock knows that nothing is
        written into it any more."""
        file = self._file
        fcntl.flock(file, fcntl.LOCK_EX)  # not with _locked, which costs as much as the write
        try:
            if named and not self._has_its_name():
                return False
            size = os.lseek(file, 0, os.SEEK_END)
            if size != self._size:
                self._look_again(size)
            if self._chain is not None:
                lines, last = self._linked(self._chain, lines, size)
            content = (lines if size else self._header + lines).encode()
            try:
                written = os.write(file, content)
                while written < len(content):  # the disk took a part; what it says of the rest is why
                    written += os.write(file, content[written:])
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file, size)
                raise
            self._size, self._end = size + len(content), content[-_END_BYTES:]
            if self._chain is not None:
                self._last = last
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
        return True

    def _look_again(self, size: int) -> None:
        """Others wrote, or the file was emptied, as an outside rotation does that copies it first. Raises ``EndLost``
        where our newest line is not there."""
        if not size:
            self._begin_with(size)
        elif size < self._size or os.pread(self._file, len(self._end), self._size - len(self._end)) != self._end:
            self._cut = True
            raise EndLost(errno.EIO, "the file has lost its end", str(self._path))

    def _linked(self, chain: Chain, lines: str, size: int) -> tuple[str, Link]:
        """Under the lock: who wrote the row before ours may have been another process."""
        last = self._last
        if size != self._size or last is None:
            found = last_link(os.pread(self._file, _LINK_BYTES, max(0, size - _LINK_BYTES)))
            if found.number or last is None:
                last = found
        return chain.chained(lines, last, first_of_file=size <= len(self._header))

    def _has_its_name(self) -> bool:
        try:
            return os.stat(self._path).st_ino == self._inode  # noqa: PTH116 - Path.stat costs more than the call
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Lock the file against other processes. Gives its size."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield os.fstat(self._file).st_size
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def sync(self) -> None:
        """Of the files that were renamed since, too. It may be called while another thread writes."""
        new, self._new = self._new, False
        file = self._file
        self._sync_left()
        os.fsync(file)
        if new:
            _sync_folder(Path(os.path.realpath(self._path)).parent)

    def _sync_left(self) -> None:
        while self._left:
            file = self._left.popleft()
            try:
                os.fsync(file)
            except OSError:
                self._left.appendleft(file)
                raise
            os.close(file)

    def close(self) -> None:
        if self._file >= 0:
            if self._request_id:
                self._note(closed=True)
            self._notes.close()
            for file in (self._file, *self._left):
                os.close(file)
            self._left.clear()
            self._file = -1


def _sync_folder(path: Path) -> None:
    """So that the name of a new file survives a power cut."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
