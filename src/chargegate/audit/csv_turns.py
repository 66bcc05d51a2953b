"""When the chain of a CSV log was switched on and off, signed as the log is opened."""

import os
from pathlib import Path
from typing import Final

from chargegate.audit.csv_lines import HEADERS, last_time
from chargegate.audit.life.files import open_regular
from chargegate.audit.life.heads import Heads
from chargegate.audit.life.links import newest_link
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
    now, newest = now_ms(), _newest_time(path)
    if not on:
        at = min(now, newest or now) - _LATE_MS
    elif _is_new(path) and not heads.folder.joinpath(ARCHIVED).exists():
        at = 0
    else:
        at = max(now, (newest or 0) + 1)
    try:
        heads.turned(path.name, on=on, link=newest_link(path), at=at)
    except OSError as error:
        log.error("since when the audit has a chain was not signed", error=error.strerror)


def _is_new(path: Path) -> bool:
    """Whether there is no line of the log, here or in files beside it."""
    if path.exists() and path.stat().st_size > max(map(len, HEADERS)):
        return False
    beginnings = (path.name + ".", path.name + "-")
    return not any(each.name.startswith(beginnings) for each in path.parent.iterdir())


def _newest_time(path: Path) -> int | None:
    try:
        file = open_regular(path)
    except OSError:
        return None
    try:
        return last_time(os.pread(file, _TAIL_BYTES, max(0, os.fstat(file).st_size - _TAIL_BYTES)))
    finally:
        os.close(file)
