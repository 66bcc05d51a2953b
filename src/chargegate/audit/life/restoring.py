"""Brings rows back: those of a time range, from the archive and from the files that are still here."""

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from chargegate.audit.csv_lines import BLANK, Row, is_header, row_in
from chargegate.audit.life.compressing import Damaged, opened, unpacked
from chargegate.audit.life.files import COMPRESSED, LogFiles, open_regular
from chargegate.audit.life.names import ArchivedFile
from chargegate.audit.life.row_writers import RowWriter
from chargegate.audit.life.steps import Life
from chargegate.model import to_iso

_TRIES: Final = 20  # more rotations than that do not meet one look at a folder
_MOST_HELD: Final = 200  # of the files that an outside rotation has named

_Known = tuple[int, int, int, int]


class Restored(msgspec.Struct):
    """``faults``: what could not be read, each in a line that names it. All else was restored."""

    rows: int
    faults: list[str]


async def restore(
    life: Life,
    writer: RowWriter,
    since: int | None,
    until: int | None,
    on_file: Callable[[int, int], None],
    *,
    origin: str | None = None,
) -> Restored:
    """Give the writer each row once that was decided from ``since`` on and before ``until`` (Unix ms), oldest file
    first. ``on_file`` is told how many files of how many are done. ``origin``: only what that service has archived.
    Files may be rotated, compressed and archived meanwhile. Raises ``ArchiveUnavailable``, ``OSError``, and ``Damaged``
    for a file of this program's that cannot be unpacked or is not as it was archived."""
    wanted = Range(since, until)
    with contextlib.ExitStack() as stack:
        here = [] if origin else await asyncio.to_thread(_look, life.files, stack)
        local = {file.name for file in here}
        there = [
            file
            for file in await life.archived(f"{origin}/" if origin else "")
            if wanted.overlaps(file.first, file.last) and not (life.is_own(file) and file.name in local)
        ]
        there.sort(key=lambda file: (file.first, file.key))
        reading = _Reading(writer, wanted, once=any(file.is_other for file in here))
        total = len(there) + len(here)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chargegate-restore-")))
        for number, archived in enumerate(there):
            on_file(number, total)
            await _read_archived(life, archived, folder, reading)
        for number, file in enumerate(here, start=len(there)):
            on_file(number, total)
            if not await asyncio.to_thread(reading.read_here, file):
                async for archived in _archived_since(life, file):
                    await _read_archived(life, archived, folder, reading)
        await asyncio.to_thread(reading.read_missed, life.files)
        await asyncio.to_thread(writer.finish)
        on_file(total, total)
    return Restored(reading.rows, reading.faults)


class Range:
    """From ``since`` on and before ``until`` (Unix ms); None for no end."""

    def __init__(self, since: int | None, until: int | None) -> None:
        self._since, self._until = since, until
        self._first = "" if since is None else to_iso(since)
        self._end = "~" if until is None else to_iso(until)

    def overlaps(self, first: int, last: int) -> bool:
        return (self._since is None or last >= self._since) and (self._until is None or first < self._until)

    def holds(self, time: str) -> bool:
        """A time as a line has it."""
        return self._first <= time < self._end


class _Here(msgspec.Struct, frozen=True):
    """A file in the folder of the log. ``file``: held open, because it may get another name; -1 for one that this
    program has rotated, whose name tells where it went, and for one of too many. ``is_other``: an outside rotation has
    named it. ``known_by``: its inode, which another file may get once it is gone, size and time."""

    path: Path
    file: int
    is_other: bool
    until: int
    known_by: _Known | None = None

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(COMPRESSED)


def _look(files: LogFiles, stack: contextlib.ExitStack) -> list[_Here]:
    """All files of the log, oldest first, as they were at one moment. The stack closes them. Raises ``OSError``."""
    for _ in range(_TRIES):
        with contextlib.ExitStack() as opening:
            others, written = files.others(), files.written()
            try:
                held = [_seen(path) for path in others[:-_MOST_HELD]]
                held += [_held(path, path in others, opening) for path in (*others[-_MOST_HELD:], *written)]
            except FileNotFoundError:
                continue  # it was renamed just now
            rotated = [_Here(file.path, -1, False, file.rotated_at) for file in files.rotated()]
            if (files.others(), files.written()) == (others, written) and all(map(_has_its_name, held)):
                stack.push(opening.pop_all())
                older, newest = [*held[: len(others)], *rotated], held[len(others) :]
                return [*sorted(older, key=lambda file: (file.until, file.path.name)), *newest]
    raise OSError(11, "files are renamed all the time", str(files.folder))


def _held(path: Path, is_other: bool, opening: contextlib.ExitStack) -> _Here:
    file = open_regular(path)
    opening.callback(os.close, file)
    status = os.fstat(file)
    return _Here(path, file, is_other, status.st_mtime_ns // 1_000_000, _known(status))


def _seen(path: Path) -> _Here:
    status = path.stat(follow_symlinks=False)
    return _Here(path, -1, True, status.st_mtime_ns // 1_000_000, _known(status))


def _known(status: os.stat_result) -> _Known:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _has_its_name(file: _Here) -> bool:
    with contextlib.suppress(FileNotFoundError):
        status = file.path.stat(follow_symlinks=False)
        return os.path.samestat(status, os.fstat(file.file)) if file.file >= 0 else _known(status) == file.known_by
    return False


def _opened_again(here: _Here) -> int | None:
    """A file that was not held open, under whatever name it has now; None where it is gone. Raises ``OSError``."""
    for path in (here.path, *_with_its_inode(here)):
        with contextlib.suppress(FileNotFoundError):
            file = open_regular(path)
            if _known(os.fstat(file)) == here.known_by:
                return file
            os.close(file)
    return None


def _with_its_inode(here: _Here) -> Iterator[Path]:
    if here.known_by is not None:
        with os.scandir(here.path.parent) as entries:
            yield from [Path(entry.path) for entry in entries if entry.inode() == here.known_by[1]]


async def _archived_since(life: Life, gone: _Here) -> AsyncIterator[ArchivedFile]:
    """What a file has become that was archived after it was seen here. Nothing where it was old, and deleted."""
    for file in await life.archived():
        if life.is_own(file) and file.name == gone.name:
            yield file


async def _read_archived(life: Life, file: ArchivedFile, folder: Path, reading: "_Reading") -> None:
    path = folder / "fetched"
    await fetch(life, file, path)
    await asyncio.to_thread(reading.read, path, file.key)
    await asyncio.to_thread(path.unlink)


class _Reading:
    """Gives the rows of files to a writer."""

    def __init__(self, writer: RowWriter, wanted: Range, *, once: bool) -> None:
        """``once``: two files may have the same rows, as one that an outside rotation has copied. Then the request ids
        are kept in memory, about 100 bytes each."""
        self.rows = 0
        self.faults: list[str] = []
        self._writer = writer
        self._wanted = wanted
        self._given: set[str] | None = set() if once else None
        self._missed = False
        self._read: set[_Known | None] = set()

    def read_here(self, here: _Here) -> bool:
        """Whether the file is still there, under its name or another one."""
        if here.file >= 0 or here.is_other:
            file = os.dup(here.file) if here.file >= 0 else _opened_again(here)
            if file is None:
                self._missed = True
            else:
                self._read_open(file, here)
            return True
        for path in (here.path, here.path.with_name(here.name + COMPRESSED)):
            with contextlib.suppress(FileNotFoundError):
                self.read(path, path.name)
                return True
        return False

    def read_missed(self, files: LogFiles) -> None:
        """What became of files that an outside rotation has compressed or copied meanwhile."""
        while self._missed:
            self._missed = False
            for path in files.others():
                with contextlib.suppress(FileNotFoundError):
                    here = _seen(path)
                    if here.known_by not in self._read:
                        self.read_here(here)

    def _read_open(self, file: int, here: _Here) -> None:
        try:
            with unpacked(file, here.path.name) as lines:
                self._read_lines(lines, here.path.name, foreign=here.is_other)
        except Damaged as error:
            if not here.is_other:
                raise
            self.faults.append(str(error))
        self._read.add(here.known_by)

    def read(self, path: Path, name: str) -> None:
        with opened(path, name) as lines:
            self._read_lines(lines, name, foreign=False)

    def _read_lines(self, lines: IO[bytes], name: str, *, foreign: bool) -> None:
        """``foreign``: the file may be anything that begins with the name of a log."""
        seen, bad = False, []
        for number, line in enumerate(lines, start=1):
            row = row_in(line)
            if row is not None:
                seen = True
                self._give(row)
            elif is_header(line):
                seen = True
            elif line.strip(BLANK) and (line.endswith(b"\n") or (foreign and not seen)):
                bad.append(number)  # but not what was left unfinished: that is written again, whole
        if bad and foreign and not seen:
            self.faults.append(f"{name}: has no row that can be read, and was left out")
        elif bad:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            self.faults.append(f"{name}: line {bad[0]} is no row of the audit, and was left out{more}")

    def _give(self, row: Row) -> None:
        if not self._wanted.holds(row.fields[0]):
            return
        if self._given is not None:
            if row.fields[1] in self._given:
                return
            self._given.add(row.fields[1])
        self._writer.write(row)
        self.rows += 1


async def fetch(life: Life, file: ArchivedFile, path: Path) -> None:
    """Bring an archived file here. Raises also ``Damaged`` where it is not what was put there."""
    if life.archive is None:
        raise Damaged("there is no archive")  # never: there would be no archived file
    said = await life.archive.attributes(file.key) or {}
    digest = hashlib.sha256()
    with path.open("wb") as target:
        async for chunk in life.archive.read(file.key):
            digest.update(chunk)
            await asyncio.to_thread(target.write, chunk)
    if said.get("sha256", digest.hexdigest()) != digest.hexdigest():
        raise Damaged(f"{file.key}: is not what was archived")
