"""Where a row's link stands in the files of a log, and what was noted of links whose file has gone."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from chargegate.audit.chain import BEGINNING, Link, link_of
from chargegate.audit.csv_lines import UNREADABLE, last_link, tail_of
from chargegate.audit.life.compressing import Damaged, opened
from chargegate.audit.life.files import sync_folder

_LINK_BYTES: Final = 8192  # more than the longest line
_NEWEST: Final = 8
_RECENT: Final = 4


def newest_link(log: Path) -> Link:
    """The link of the newest row in the files beside a log, or that was noted before they went elsewhere."""
    real = Path(os.path.realpath(log))
    links = [_noted(real), *map(link_at_end, files_beside(real))]
    return max(links, key=lambda link: link.number)


def files_beside(log: Path) -> list[Path]:
    """The newest files whose names are that of a log with something behind it."""
    with contextlib.suppress(OSError):
        beside = [path for path in log.parent.iterdir() if path.name.startswith((log.name + ".", log.name + "-"))]
        beside.sort(key=lambda path: path.lstat().st_mtime, reverse=True)
        return beside[:_NEWEST]
    return []


def link_at_end(path: Path) -> Link:
    """The link of a file's last row; the beginning where it has none or cannot be read."""
    with contextlib.suppress(*UNREADABLE):
        return last_link(tail_of(path)[-_LINK_BYTES:])
    return BEGINNING


def link_at_start(path: Path) -> Link:
    """The link of a file's first row, which names the MAC of the row before; the beginning where it has none or cannot
    be read."""
    with contextlib.suppress(*UNREADABLE, Damaged), opened(path) as file:
        file.readline()
        found = link_of(file.readline().decode("utf-8", "replace").rstrip("\n"))
        if found is not None:
            return found[1]
    return BEGINNING


def last_of(file: int) -> Link:
    """The link of the last row in an open log that is not compressed; the beginning where it has none."""
    size = os.fstat(file).st_size
    start = max(0, size - _LINK_BYTES)
    return last_link(os.pread(file, size - start, start))


def mac_in(file: int, number: int) -> str | None:
    """The MAC of a row in an open log that is not compressed. None where it has no row of this number. Numbers grow
    along a log, and so a few parts of it are read."""
    low, high = 0, os.fstat(file).st_size
    while high - low > _LINK_BYTES:
        middle = (low + high) // 2
        found = _links(os.pread(file, 2 * _LINK_BYTES, middle))
        if not found or found[0].number > number:
            high = middle
        else:
            low = middle
    text = os.pread(file, high - low + 2 * _LINK_BYTES, low)
    return next((link.mac for link in _links(text) if link.number == number), None)


def _links(text: bytes) -> list[Link]:
    """Of the whole lines but the first, which may have begun before."""
    lines = text.decode("utf-8", "replace").split("\n")[1:-1]
    return [found[1] for line in lines if (found := link_of(line)) is not None]


def mac_of(path: Path, number: int) -> str | None:
    """As ``mac_in``, in a file that may be compressed."""
    with contextlib.suppress(*UNREADABLE, Damaged), opened(path) as file:
        for line in file:
            found = link_of(line.decode("utf-8", "replace").rstrip("\n"))
            if found is not None and found[1].number >= number:
                return found[1].mac if found[1].number == number else None
    return None


def holds(paths: Sequence[Path], link: Link) -> bool | None:
    """Whether one of the newest of these files, oldest first, has a row; None where the file is none of them that has
    its number."""
    for path in reversed(paths[-_RECENT:]):
        if link_at_end(path).number >= link.number >= link_at_start(path).number > 0:
            return mac_of(path, link.number) == link.mac
    return None


def note_link(log: Path, link: Link) -> None:
    """Remember a link for when the file goes in which it is. Raises ``OSError``."""
    if link.number <= _noted(log).number:
        return
    path = _note_path(log)
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("wb") as file:
        file.write(msgspec.json.encode(link))
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_folder(path.parent)


def _noted(log: Path) -> Link:
    try:
        return msgspec.json.decode(_note_path(log).read_bytes(), type=Link)
    except (OSError, msgspec.DecodeError):
        return BEGINNING


def _note_path(log: Path) -> Path:
    return log.with_name(f".{log.name}.link")
