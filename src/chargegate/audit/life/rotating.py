"""Rotation: the file that is written gets another name, and its writers begin a new one.

The writers append under a lock on the file, and look under this lock whether the file still has its name. The rotation
holds the same lock while it renames. So nothing is written into a file that was rotated, and it may be compressed at
once.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chargegate.audit.csv_lines import BLANK, HEAD_BYTES, end_of_lines, first_time
from chargegate.audit.life.files import COMPRESSED, compact, sync_folder

_LOCK_S: Final = 5.0
_AHEAD_MS: Final = 60_000


def is_due(path: Path, now: int, after_ms: int, most_bytes: int) -> bool:
    """Whether a log should be rotated now: its first row is so old, or it is so large (0: never). It is due too where
    its first row is of the future, because the clock was set back: nobody can say how old it is."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        begun = first_time(file.read(HEAD_BYTES))
        if begun is None:
            return False
        if most_bytes and os.fstat(file.fileno()).st_size >= most_bytes:
            return True
        return bool(after_ms) and (now - begun >= after_ms or begun - now > _AHEAD_MS)
    return False


def has_rows(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return first_time(file.read(HEAD_BYTES)) is not None
    return False


def rotate(path: Path, now: int) -> Path | None:
    """Rename a log that has rows. Returns its new path, or None where there was nothing to rotate any more. What a
    writer that died left unfinished at the end is cut off; who writes next writes it whole. Raises ``OSError``."""
    with _held(path) as file:
        if file is None or first_time(os.pread(file, HEAD_BYTES, 0)) is None:
            return None
        return _rename(file, path, now)


def clear(path: Path, now: int) -> Path | None:
    """Make room for a header of another kind in a log that does not begin with rows which can be read: take its header
    away where there are only blank lines below it and what a writer that died left unfinished, and otherwise rename it.
    A power cut may leave blank lines, or anything. Returns the new path, if it has one. Raises ``OSError``."""
    with _held(path) as file:
        if file is None:
            return None
        text = os.pread(file, HEAD_BYTES, 0)
        if first_time(text) is not None:
            return None  # another process has begun it anew
        below = text.partition(b"\n")[2].rpartition(b"\n")[0]
        if below.strip(BLANK) or len(text) == HEAD_BYTES:
            return _rename(file, path, now)
        os.ftruncate(file, 0)
    return None


@contextlib.contextmanager
def _held(path: Path) -> Iterator[int | None]:
    """A log, open and locked; None where it is gone or has been renamed."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield None
        return
    try:
        _lock(file)
        try:
            named = path.lstat().st_ino == os.fstat(file).st_ino
        except FileNotFoundError:
            named = False
        yield file if named else None
    finally:
        os.close(file)


def _rename(file: int, path: Path, now: int) -> Path | None:
    """None where somebody without the lock has done it just now."""
    _cut_unfinished(file, os.fstat(file).st_size)
    rotated = free_name(path, now)
    try:
        path.rename(rotated)
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_UN)  # no writer waits for the disk
    os.fsync(file)
    sync_folder(path.parent)
    return rotated


def _lock(file: int) -> None:
    """The writers hold it for microseconds; somebody else might hold it for ever."""
    end = time.monotonic() + _LOCK_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.001)


def _cut_unfinished(file: int, size: int) -> None:
    start = max(0, size - HEAD_BYTES)
    text = os.pread(file, size - start, start)
    end = end_of_lines(text, only_whole=False)
    if end < len(text) and (end or not start):
        os.ftruncate(file, start + end)


def free_name(path: Path, now: int) -> Path:
    """A name that no file has, compressed or not. Two rotations never ask together, because they hold a lock."""
    name = f"{path.name}.{compact(now)}"
    number = 1
    rotated = path.with_name(name)
    while rotated.exists() or rotated.with_name(rotated.name + COMPRESSED).exists():
        number += 1
        rotated = path.with_name(f"{name}-{number}")
    return rotated
