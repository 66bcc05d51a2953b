"""The service, with one place in the writing of an audit sink where it kills itself: ``kill_in_sink.py POINT NTH serve
…``. As ``kill_at.py``, it knows the code, because no client can tell one of these steps from the next."""

import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from chargegate import cli
from chargegate.audit import csv_file, feed, remote_feed
from chargegate.audit.csv_file import CsvFile
from chargegate.audit.csv_shards import CsvShards
from chargegate.audit.feed import AuditFeed
from chargegate.audit.influx import InfluxSink
from chargegate.audit.life import rotating
from chargegate.audit.remote_feed import RemoteFeed
from chargegate.engines.sqlite.ledger import SqliteLedger

BEFORE, AFTER = True, False

POINTS: dict[str, list[tuple[Any, str, bool]]] = {
    "committed": [(AuditFeed, "offer", BEFORE), (RemoteFeed, "offer", BEFORE)],
    "offered": [(AuditFeed, "offer", AFTER), (RemoteFeed, "offer", AFTER)],
    "writing": [(CsvShards, "write", BEFORE), (InfluxSink, "write", BEFORE)],
    "written": [(CsvShards, "write", AFTER), (InfluxSink, "write", AFTER)],
    "noting": [(CsvFile, "_note", BEFORE)],
    "syncing": [(CsvShards, "sync", BEFORE)],
    "saving": [(SqliteLedger, "save_sink_position", BEFORE)],
    "saved": [(SqliteLedger, "save_sink_position", AFTER)],
    "resuming": [(CsvShards, "resume", BEFORE), (RemoteFeed, "start", BEFORE)],
    "resumed": [(CsvShards, "resume", AFTER), (RemoteFeed, "start", AFTER)],
    "page read": [(AuditFeed, "_write_missing", BEFORE), (RemoteFeed, "_write", BEFORE)],
    "page written": [(AuditFeed, "_write_missing", AFTER), (RemoteFeed, "_write", AFTER)],
    "rotating": [(rotating, "free_name", BEFORE)],
    "renamed": [(rotating, "sync_folder", BEFORE)],
    "rotated": [(rotating, "sync_folder", AFTER)],
}


class HalfWritten:
    """``os``, of which a write takes only the first half and does not return."""

    def __init__(self, arrived: Callable[[], bool]) -> None:
        self._arrived = arrived

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, file: int, content: bytes) -> int:
        if self._arrived():
            os.write(file, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return os.write(file, content)


def countdown(nth: int) -> Callable[[], bool]:
    """Whether it is called for the ``nth`` time."""
    left = nth

    def arrived() -> bool:
        nonlocal left
        left -= 1
        return left <= 0

    return arrived


def around(owner: Any, name: str, when: bool, arrived: Callable[[], bool]) -> None:
    """Die before a function is called, or after it returned."""
    known = getattr(owner, name)

    def die() -> None:
        if arrived():
            os.kill(os.getpid(), signal.SIGKILL)

    def called(*values: Any, **named: Any) -> Any:
        if when is BEFORE:
            die()
        result = known(*values, **named)
        if when is AFTER:
            die()
        return result

    async def awaited(*values: Any, **named: Any) -> Any:
        if when is BEFORE:
            die()
        result = await known(*values, **named)
        if when is AFTER:
            die()
        return result

    setattr(owner, name, awaited if inspect.iscoroutinefunction(known) else called)


def main(point: str, nth: int, arguments: list[str]) -> int:
    feed._CATCH_UP_S = 0.1  # type: ignore[misc]  # a position is saved each second instead of each five
    remote_feed._SAVE_S = 1.0  # type: ignore[misc]  # as above
    arrived = countdown(nth)
    if point == "half written":
        csv_file.os = HalfWritten(arrived)  # type: ignore[assignment]  # what this script is for
    else:
        for owner, name, when in POINTS[point]:
            around(owner, name, when, arrived)
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
