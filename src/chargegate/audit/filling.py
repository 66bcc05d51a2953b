"""Sinks that are given decisions of the past."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from chargegate.audit.chain import Chain
from chargegate.audit.csv_lines import request_ids
from chargegate.audit.csv_shards import CsvShards, shard_paths
from chargegate.audit.influx import InfluxSink
from chargegate.audit.life.compressing import opened
from chargegate.audit.life.heads import Heads
from chargegate.audit.life.restoring import fetch
from chargegate.audit.life.steps import Life
from chargegate.audit.together import write_together
from chargegate.ledger.base import AuditSource
from chargegate.ledger.records import AuditRow
from chargegate.model import to_iso


class CsvFilling:
    """The CSV files, which get the lines that neither they have nor those that were rotated away.

    The request ids of the range are kept in memory, about 150 bytes for each.
    """

    follower = "csv"

    def __init__(
        self, path: Path, shards: int, since: int | None, until: int | None, *, chain: Chain | None, heads: Heads
    ) -> None:
        """``chain`` and ``heads``: see ``CsvFile``. The files are opened for writing when there is something to write,
        because that may make and rotate some. Raises ``OSError`` where a file cannot be read, and ``Damaged`` where one
        cannot be unpacked."""
        self._open = partial(CsvShards, path, shards, chain=chain, heads=heads)
        self._files: CsvShards | None = None
        self._range = since, until
        self._held = set(_held(path, shards, since, until))

    async def leave_out_archived(self, life: Life) -> None:
        """The archive has lines too, of files that were here. Raises ``ArchiveUnavailable``, ``OSError`` and
        ``Damaged``."""
        since, until = self._range
        with tempfile.TemporaryDirectory(prefix="chargegate-backfill-") as folder:
            for file in await life.archived_here():
                if (since is None or file.last >= since) and (until is None or file.first < until):
                    path = Path(folder) / "fetched"
                    await fetch(life, file, path)
                    self._held.update(await asyncio.to_thread(set, _held_in(path, since, until, file.key)))

    def lacking(self, rows: list[AuditRow]) -> list[AuditRow]:
        return [row for row in rows if row.decision.request_id not in self._held]

    async def write(self, rows: list[AuditRow]) -> int:
        """Append to the files. Raises ``OSError``."""
        if self._files is None:
            self._files = self._open()
        self._files.write(rows)
        self._held.update(row.decision.request_id for row in rows)
        return 0

    async def close(self) -> None:
        if self._files is None:
            return
        try:
            self._files.sync()
        finally:
            self._files.close()


class InfluxFilling:
    """InfluxDB, where writing a decision again changes nothing."""

    follower = ""

    def __init__(self, sink: InfluxSink, source: AuditSource) -> None:
        self._sink = sink
        self._source = source
        self.close = sink.close

    async def write(self, rows: list[AuditRow]) -> int:
        """As ``write_together``."""
        return await write_together(self._sink, self._source, rows)

    def lacking(self, rows: list[AuditRow]) -> list[AuditRow]:
        return rows


def _logs(path: Path, shards: int) -> list[Path]:
    """The files of the log in this layout and in any other, and those that they were renamed to: where they lie, also
    where a log is a symbolic link."""
    logs = [Path(os.path.realpath(each)) for each in (path, *shard_paths(path, shards), *shard_paths(path, 2))]
    found: list[Path] = []
    for folder in {each.parent for each in logs}:
        names = {each.stem for each in logs if each.parent == folder}
        beginnings = tuple(name.rpartition("_shard_")[0] or name for name in names)
        found += [each for each in folder.iterdir() if each.name.startswith(beginnings) and each.is_file()]
    return sorted(found)


def _held(path: Path, shards: int, since: int | None, until: int | None) -> Iterator[str]:
    """It looks again for files that were renamed or compressed meanwhile."""
    read: set[Path] = set()
    while new := [each for each in _logs(path, shards) if each not in read]:
        for each in new:
            with contextlib.suppress(FileNotFoundError):
                yield from _held_in(each, since, until)
            read.add(each)


def _held_in(path: Path, since: int | None, until: int | None, name: str = "") -> Iterator[str]:
    first = b"" if since is None else to_iso(since).encode()
    end = b"\xff" if until is None else to_iso(until).encode()
    with opened(path.resolve(), name) as lines:
        for line in lines:
            if first <= line[:24] < end:
                yield from request_ids(line)
