"""Rotation: the file that is written gets another name, and its writers begin a new one.

The writers append under a lock on the file, and look under this lock whether the file still has its name. The rotation
holds the same lock while it renames. So nothing is written into a file that was rotated, and it may be compressed at
once.
"""

import contextlib
import fcntl
import os
import time
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


def rotate(path: Path, now: int, *, even_without_rows: bool = False) -> Path | None:
    """Rename a log that has rows. Returns its new path, or None where there was nothing to rotate any more. What a
    writer that died left unfinished at the end is cut off; who writes next writes it whole. Raises ``OSError``."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        _lock(file)
        status = os.fstat(file)
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_ino != status.st_ino:
                return None
            if first_time(os.pread(file, HEAD_BYTES, 0)) is None and not even_without_rows:
                return None
            _cut_unfinished(file, status.st_size)
            rotated = free_name(path, now)
            path.rename(rotated)
            fcntl.flock(file, fcntl.LOCK_UN)  # no writer waits for the disk
            os.fsync(file)
            sync_folder(path.parent)
            return rotated
        return None
    finally:
        os.close(file)


def clear(path: Path, now: int) -> Path | None:
    """Make room for a header of another kind in a log that has no rows which can be read: take its header away where
    there are only blank lines below it and what a writer that died left unfinished, and otherwise rename it. A power
    cut may leave blank lines, or anything. Returns the new path, if it has one. Raises ``OSError``."""
    return None if _emptied(path) else rotate(path, now, even_without_rows=True)


def _emptied(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    try:
        _lock(file)
        text = os.pread(file, HEAD_BYTES, 0)
        below = text.partition(b"\n")[2].rpartition(b"\n")[0]
        blank = not below.strip(BLANK) and len(text) < HEAD_BYTES
        if blank:
            os.ftruncate(file, 0)
        return blank
    finally:
        os.close(file)


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
