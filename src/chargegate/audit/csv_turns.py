"""When the chain of a CSV log was switched on and off, signed as the log is opened."""

import contextlib
import os
from pathlib import Path
from typing import Final

from chargegate.audit.csv_lines import HEADERS, UNREADABLE, last_time, tail_of
from chargegate.audit.life.heads import Heads
from chargegate.audit.life.links import files_beside, newest_link
from chargegate.audit.life.origin import FILE as ARCHIVED
from chargegate.model import now_ms
from chargegate.observe import log

_TAIL_BYTES: Final = 8192
_LATE_MS: Final = 60_000
"""By how much a decision may be older than those that were written before it."""


def log_name(path: Path) -> str:
    """What statements call a log: the name of the file that is written."""
    return Path(os.path.realpath(path)).name


def sign_turn(heads: Heads, path: Path, *, on: bool) -> None:
    """Sign that a log is a chain from now on, or is none, if that is new. Lines that were decided before may be without
    a link, and after the end of a chain also lines that were decided shortly before the newest one that has one."""
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        return  # and nothing is written there
    try:
        at = _on_since(heads, path) if on else _off_since(heads, path)
        if at is not None:
            heads.turned(path.name, on=on, link=newest_link(path), at=at)
    except OSError as error:
        log.error("since when the audit has a chain was not signed", error=error.strerror)


def _on_since(heads: Heads, path: Path) -> int | None:
    """None where it was on."""
    if heads.is_chain(path.name):
        return None
    if _is_new(path) and not heads.folder.joinpath(ARCHIVED).exists():
        return 0
    return max(now_ms(), (_newest_time(path) or 0) + 1)


def _off_since(heads: Heads, path: Path) -> int | None:
    """None where it was off. Not from now on: lines of the time in which nobody wrote the log may come next."""
    before = heads.chain_of(path.name)
    if not before:
        return None
    times = [at for each in (path, path.with_name(before)) if (at := _newest_time(each)) is not None]
    return max(0, min(now_ms(), max(times, default=heads.signed_at(before))) - _LATE_MS)


def _is_new(path: Path) -> bool:
    """Whether there is no line of the log, here or in files beside it."""
    if path.exists() and path.stat().st_size > max(map(len, HEADERS)):
        return False
    beginnings = (path.name + ".", path.name + "-")
    return not any(each.name.startswith(beginnings) for each in path.parent.iterdir())


def _newest_time(path: Path) -> int | None:
    """When the newest line of a log was decided, in it or in the files beside it. None where there is none."""
    times = []
    for each in (path, *files_beside(path)):
        with contextlib.suppress(*UNREADABLE):
            times.append(last_time(b"\n" + tail_of(each)[-_TAIL_BYTES:]))
    return max((at for at in times if at is not None), default=None)
