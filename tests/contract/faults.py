"""What goes wrong outside the service, for as long as the ``with`` block lasts."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from contract.conftest import Service


@contextlib.contextmanager
def locked(service: Service, statement: str) -> Iterator[None]:
    """Another program locks the embedded database."""
    with contextlib.closing(sqlite3.connect(service.data / "chargegate.db", isolation_level=None, timeout=20)) as other:
        other.execute(statement)
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def no_more_files(service: Service) -> Iterator[None]:
    """The service's process can open nothing more."""
    assert service.process is not None
    pid = service.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # The lowest number that is not in use, so that not even one that is closed and opened again is to be had.
    used = {int(file.name) for file in Path(f"/proc/{pid}/fd").iterdir()}
    lowest = next(number for number in range(len(used) + 1) if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
