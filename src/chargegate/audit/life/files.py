"""Which files of the CSV audit log there are, and what their names say.

The file that is written has the name of the settings, and shards have names of their own beside it. A file that was
rotated has the time of that behind its name, and ``.zst`` behind this once it is compressed. Files with other names,
such as those that logrotate makes, belong to somebody else and are left alone.
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

from chargegate.model import to_iso

COMPRESSED: Final = ".zst"
PART: Final = ".part"
"""How the name of a file ends that is being written."""

SHARD: Final = r"authorization_audit_shard_\d+\.log"
"""The names of shards, whatever the log is called (``csv_shards.shard_paths``)."""

_TIME: Final = r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)\.(\d{3})Z"
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

    def __init__(self, csv_path: Path) -> None:
        path = Path(os.path.realpath(csv_path))
        self.folder = path.parent
        self._path = path
        log = f"(?:{re.escape(path.name)}|{SHARD})"
        self._log = log
        self._is_log = re.compile(log).fullmatch
        self._is_rotated = re.compile(rf"(?P<log>{log})\.(?P<at>{_TIME})(?:-\d+)?(?:\.zst)?").fullmatch
        self._is_part = re.compile(rf"\.{log}\.{_TIME}(?:-\d+)?(?:\.zst)?{re.escape(PART)}").fullmatch

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
                file = LogFile(path, match["log"], from_compact(match["at"]), status.st_size)
                if file.name not in found or not file.compressed:
                    found[file.name] = file
        return sorted(found.values(), key=lambda file: (file.rotated_at, file.name))

    def beside(self) -> list[Path]:
        """All files of the log in the folder, also those that an outside rotation named."""
        logs = {path.name for path in self.written()} | {self._path.name}
        beginnings = tuple(log + separator for log in logs for separator in ".-")
        found = []
        for path, _ in self._regular(lambda name: self._is_log(name) or name.startswith(beginnings)):
            original = path.with_name(path.name.removesuffix(COMPRESSED))
            if path == original or not original.exists():
                found.append(path)
        return sorted(found)

    def log_of(self, name: str) -> str:
        """Under which name a file was written."""
        match = re.match(self._log, name)
        return match[0] if match else self._path.name

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
