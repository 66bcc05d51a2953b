"""The files beside a CSV log that were perhaps the log before, and which decisions they hold."""

import contextlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from chargegate.audit.csv_lines import UNREADABLE, request_ids, tail_of

_RELATIVES: Final = 8
_AT_ONCE: Final = 1024 * 1024


def relatives_of(path: Path, inode: int = -1, others: Collection[Path] = ()) -> list[Path]:
    """The newest files beside a log whose names begin like its own, or that have this inode, but for ``others``. A log
    that is a symbolic link is followed."""
    path = Path(os.path.realpath(path))
    found = []
    names = {path.name, *(Path(os.path.realpath(other)).name for other in others)}
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            like = entry.name.startswith(path.stem) or entry.inode() == inode
            if like and entry.name not in names and entry.is_file(follow_symlinks=False):
                found.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
    return [Path(name) for _, name in sorted(found, reverse=True)[:_RELATIVES]]


def held_in(paths: Iterable[Path], *, whole: Collection[Path] = ()) -> frozenset[str]:
    """The request ids in the ends of those logs that can be read, and of the ``whole`` ones in all of them."""
    found: set[str] = set()
    for path in paths:
        with contextlib.suppress(*UNREADABLE):
            if path in whole:
                with path.open("rb") as file:
                    while lines := file.readlines(_AT_ONCE):
                        found.update(request_ids(b"".join(lines)))
            else:
                found.update(request_ids(tail_of(path)))
    return frozenset(found)
