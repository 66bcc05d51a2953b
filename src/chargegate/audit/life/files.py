"""Which files of the CSV audit log there are, and which of daily exports, and what their names say.

The file that is written has the name of the settings, and shards have names of their own beside it. A file that was
rotated has the time of that behind its name, and ``.zst`` behind this once it is compressed. Files with other names,
such as those that logrotate makes (``.1``, ``.2.gz``, ``-20260131``), belong to somebody else: they are read, and
otherwise left alone.

A daily export has the day of its rows in its name, and a number behind it where the day has another file already:
``authorization_audit_rows.2026-01-31.csv.zst``.
"""

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from chargegate.model import from_iso, to_iso

COMPRESSED: Final = ".zst"
PART: Final = ".part"
"""How the name of a file ends that is being written."""

DRAFT: Final = ".draft"
"""How the name of a daily export ends that may be whole, but of which the database does not yet say that it counts."""

EXPORTS: Final = "authorization_audit_rows"
"""How the names of daily exports begin, and what statements call their chain."""

DAY_MS: Final = 86_400_000

_SHARD_END: Final = r"\.log"
SHARD: Final = rf"authorization_audit_shard_\d+{_SHARD_END}"
"""The names of shards, whatever the log is called (``csv_shards.shard_paths``)."""

_TIME: Final = r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)\.(\d{3})Z"
_DAY: Final = r"\d{4}-\d\d-\d\d"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class LifeBusy(Exception):
    """Another process does this work on the same folder now."""


class LogFile(msgspec.Struct, frozen=True):
    """A file that is written no more. ``log`` is the name under which it was written, ``rotated_at`` when that ended
    (Unix ms)."""

    path: Path
    log: str
    rotated_at: int
    size: int

    @property
    def name(self) -> str:
        """Its name without the ending that says that it is compressed."""
        return self.path.name.removesuffix(COMPRESSED)

    @property
    def compressed(self) -> bool:
        return self.path.name.endswith(COMPRESSED)


def compact(ms: int) -> str:
    """A time as names have it: ``20260131T120000.000Z``."""
    return to_iso(ms).replace("-", "").replace(":", "")


def from_compact(text: str) -> int:
    """Raises ``ValueError`` for what is no time."""
    match = re.fullmatch(_TIME, text)
    if match is None:
        raise ValueError("not a time")
    *parts, ms = map(int, match.groups())
    return (datetime(*parts, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1) + ms  # type: ignore[misc,arg-type]  # mypy counts the parts as too many


class LogFiles:
    """The files of one log with all its shards, in the folder of the log. A log that is a symbolic link is followed;
    no other link is."""

    exports = False

    def __init__(self, csv_path: Path) -> None:
        path = Path(os.path.realpath(csv_path))
        self.folder = path.parent
        self._path = path
        log = f"(?:{re.escape(path.name)}|{SHARD})"
        self._named(log, rf"{log}\.{_TIME}(?:-\d+)?(?:\.zst)?", rf"(?P<log>{log})\.(?P<at>{_TIME})(?:-\d+)?(?:\.zst)?")

    def _named(self, log: str, name: str, rotated: str) -> None:
        self._log = log
        self._is_log = re.compile(log).fullmatch
        self._is_beside = re.compile(rf"(?:{log})(?:[.-].*)?", re.DOTALL).fullmatch
        stem, suffix = re.escape(self._path.stem), re.escape(self._path.suffix)
        self._is_numbered = re.compile(
            rf"(?P<stem>{stem}|{SHARD.removesuffix(_SHARD_END)})[.-]\d[\d-]*(?P<suffix>{suffix}|{_SHARD_END})(?:\..*)?"
        ).fullmatch
        self._is_rotated = re.compile(rotated).fullmatch
        self._is_part = re.compile(rf"\.{name}{re.escape(PART)}").fullmatch

    @staticmethod
    def _ended(at: str) -> int:
        """When a file was written no more, by the time in its name. Raises ``ValueError`` where there is no such
        time."""
        return from_compact(at)

    def written(self) -> list[Path]:
        """The files that are written now, or were until their shard was given up."""
        return sorted(path for path, _ in self._regular(self._is_log))

    def rotated(self) -> list[LogFile]:
        """Oldest first. Where a compressed file and what it was made of are both there, the latter counts."""
        found = {}
        for path, status in self._regular(self._is_rotated):
            match = self._is_rotated(path.name)
            if match is None:
                continue
            with contextlib.suppress(ValueError):  # such as the 31st of February
                file = LogFile(path, match["log"], self._ended(match["at"]), status.st_size)
                if file.name not in found or not file.compressed:
                    found[file.name] = file
        return sorted(found.values(), key=lambda file: (file.rotated_at, file.name))

    def beside(self) -> list[Path]:
        """All files of the log in the folder, also those that an outside rotation named, of shards too that were given
        up."""
        found = []
        for path, _ in self._regular(lambda name: self._is_beside(name) or self._log_of_numbered(name)):
            original = path.with_name(path.name.removesuffix(COMPRESSED))
            if path == original or not original.exists():
                found.append(path)
        return sorted(found)

    def others(self) -> list[Path]:
        """Those of them that have neither the name of a log nor one of this program's, the oldest first, by the time of
        their last write."""
        named = {path.name for path in self.written()} | {file.path.name for file in self.rotated()}
        found = [path for path in self.beside() if path.name not in named]
        return sorted(found, key=_last_write)

    def log_of(self, name: str) -> str:
        """Under which name a file was written; that of the log where the name does not tell."""
        return self.known_log_of(name) or self._path.name

    def known_log_of(self, name: str) -> str:
        """As ``log_of``, but empty for a file that is not of this log."""
        match = re.match(self._log, name)
        return match[0] if match else self._log_of_numbered(name)

    def _log_of_numbered(self, name: str) -> str:
        """That of a file which an outside rotation named such as ``authorization_audit-20260131.log.gz``; empty for
        another one."""
        match = self._is_numbered(name)
        log = match["stem"] + match["suffix"] if match else ""
        return log if self.is_log(log) else ""

    def is_log(self, name: str) -> bool:
        """Whether a name is that of this log or of one of its shards."""
        return self._is_log(name) is not None

    def remove_parts(self) -> None:
        """What a process left unfinished. Only who holds the lock may call it."""
        for path, _ in self._regular(self._is_part):
            with contextlib.suppress(OSError):
                path.unlink()

    def _regular(self, wanted: Callable[[str], object]) -> Iterator[tuple[Path, os.stat_result]]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if wanted(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            yield Path(entry.path), status

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time works on the files. The lock ends with the process, however that ends. Raises
        ``LifeBusy`` and ``OSError``."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(self.folder / f".{self._path.name}.lock", flags, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LifeBusy(f"{self.folder}: another process rotates, compresses or archives there now") from None
            yield
        finally:
            os.close(lock)


class ExportFiles(LogFiles):
    """The daily exports in a folder. They are compressed from the start, and no file is written on. A draft becomes a
    file once the database says that it counts."""

    exports = True

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        self._path = self.folder / EXPORTS
        name = rf"{EXPORTS}\.{_DAY}(?:-\d+)?\.csv\.zst"
        self._named(EXPORTS, name, rf"(?P<log>{EXPORTS})\.(?P<at>{_DAY})(?:-\d+)?\.csv\.zst")
        self._is_draft = re.compile(rf"\.{name}{re.escape(DRAFT)}").fullmatch

    @staticmethod
    def _ended(at: str) -> int:
        return day_of(at) + DAY_MS

    def drafts(self) -> list[str]:
        """The names of the files that drafts are of."""
        return sorted(path.name[1:].removesuffix(DRAFT) for path, _ in self._regular(self._is_draft))

    def draft_of(self, name: str) -> Path:
        return self.folder / f".{name}{DRAFT}"


def log_in(name: str) -> str:
    """Under which name a file was written, by its own name alone, which it may have in the archive."""
    if re.match(rf"{EXPORTS}\.{_DAY}", name):
        return EXPORTS
    return re.sub(rf"(?:\.{_TIME}.*|[.-]\d[\d-]*(?:\.gz|\.zst)?)$", "", name)


class NoFiles(LogFiles):
    """Where there is no log, or there are no daily exports, but the archive may still have some from earlier."""

    def __init__(self, folder: Path, *, exports: bool) -> None:
        """``folder`` is for the lock."""
        self.exports = exports
        self.folder = folder
        self._path = folder / ("archived-exports" if exports else "archived-logs")
        self._named("(?!)", "(?!)", "(?P<log>(?!))(?P<at>(?!))")


def _last_write(path: Path) -> tuple[int, str]:
    try:
        return path.stat().st_mtime_ns, path.name
    except OSError:
        return 0, path.name


def name_of_day(at: int) -> str:
    """The UTC day of a time (Unix ms): ``2026-01-31``."""
    return to_iso(at)[:10]


def day_of(text: str) -> int:
    """When a day begins (Unix ms). Raises ``ValueError``."""
    return from_iso(text)


def sync_folder(path: Path) -> None:
    """So that names which came or went survive a power cut."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove(path: Path) -> None:
    """Delete a file, so that it stays deleted. It may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sync_folder(path.parent)


def open_regular(path: Path) -> int:
    """A descriptor to read a file that is no link and no pipe. Raises ``OSError``."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(22, "Not a regular file")
    return file
