"""Years of the audit's life in minutes: rows of simulated days, steps at simulated times, processes that are killed.

Each row is in the log and in the database, whose rows are exported daily, with a chain, and dropped.

Each step runs in a process of its own, which kills itself at a line of the code that was drawn before. So a kill can
fall between any two statements, and also into a running upload.

It is a program of its own, ``simulated.py FOLDER URL DAYS KILLS COMPRESS ARCHIVE KEEP``, because it forks, and the
client of the archive has threads: only the children may use that.
"""

import asyncio
import os
import random
import signal
import sqlite3
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from chargegate.audit.chain import Chain
from chargegate.audit.csv_file import CsvFile
from chargegate.audit.life import compressing, exporting, files, heads, rotating, steps
from chargegate.audit.life.address import parse_address
from chargegate.audit.life.archive import Archive
from chargegate.audit.life.compressing import content_of, opened, records
from chargegate.audit.life.exporting import Exporter
from chargegate.audit.life.files import ExportFiles, LogFiles
from chargegate.audit.life.heads import Heads
from chargegate.audit.life.steps import STEPS, Ages, Life
from chargegate.audit.life.verifying import verify
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.exports import SqliteExports
from chargegate.engines.sqlite.file import migrate
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.ledger.exports import positions_of
from chargegate.ledger.records import AuditRow
from chargegate.model import Decision, Status
from chargegate.operations import audit_life
from killing import kill_at_line

DAY = 86_400_000
START = 1_767_225_600_000
TRACED = (compressing, exporting, files, heads, rotating, steps, audit_life)


class Quiet:
    """Nobody watches; what fails is remembered."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def planned(self, step: str, count: int) -> None:
        pass

    def done(self, done: Any) -> None:
        pass

    def failed(self, step: str, file: str, error: str) -> None:
        self.failures.append(f"{step} {file}: {error}")


class Simulation:
    """``ages`` in days."""

    def __init__(self, folder: Path, url: str, seed: int, *, compress: int, archive: int, keep: int) -> None:
        self.folder = folder
        self.log = folder / "audit.log"
        self.now = START
        self.rows: dict[str, int] = {}
        self.kills = 0
        self._url = url
        self._random = random.Random(seed)
        self._keep = keep * DAY
        self._ages = Ages(DAY, 0, compress * DAY, archive * DAY, keep * DAY)
        self._sink = self._opened()
        self._sequence = 0
        self._database = folder / "rows.db"
        migrate(self._database, ALL_TABLES)

    def _opened(self) -> CsvFile:
        return CsvFile(self.log, self.folder / "notes")

    def life(self, *, exports: bool = False) -> Life:
        found = ExportFiles(self.folder / "exports") if exports else LogFiles(self.log)
        archive = Archive(parse_address(self._url))
        return Life(found, self._ages, archive, "machine-1", heads=self.heads() if exports else None, settle_s=0)

    def heads(self) -> Heads:
        return Heads(self.folder, Chain(b"k" * 32))

    def write_day(self) -> None:
        """A few rows; now and then a clock that was set back, and a writer that was killed."""
        for _ in range(self._random.randint(0, 4)):
            self._sequence += 1
            at = self.now + self._random.randrange(DAY)
            if self._random.random() < 0.02:
                at -= 40 * DAY
            request_id = f"request-{self._sequence}"
            self.rows[request_id] = at
            decision = Decision(request_id, "station", "0123456789abcdef", Status.ALLOWED, "", 1, at)
            self._sink.write([AuditRow(self._sequence, decision)])
            self._insert(decision)
        if self._random.random() < 0.1:
            self._sink._notes.close()  # a death takes no note of it
            self._sink.close()
            self._sink = self._opened()
            self._sink.resume(self._sequence, remembered=True)
        self.now += DAY

    def _insert(self, decision: Decision) -> None:
        with closing(sqlite3.connect(self._database)) as database, database:
            database.execute(
                "INSERT INTO authorization_audit (timestamp, request_id, station_id, driver_token_hash, status, reason,"
                " processing_time_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (decision.timestamp, decision.request_id, decision.station_id, "0" * 16, decision.status, "", 1),
            )

    def live(self, kill_after: int | None) -> None:
        """One run of all steps, in a process that dies at the line that was drawn, if it comes so far."""

        def run() -> None:
            if kill_after is not None:
                kill_at_line(kill_after, TRACED)
            asyncio.run(self._steps())

        self.kills += in_child(run) == -signal.SIGKILL

    async def _steps(self) -> None:
        quiet = Quiet()
        store = await SqliteStore.open(self._database, ALL_TABLES, exclusive=False)
        ledger, exports = SqliteLedger(store), SqliteExports(store)
        exported = ExportFiles(self.folder / "exports")
        exporter = Exporter(ledger, exports, exported, "machine-1", after_ms=DAY // 24, heads=self.heads())
        await audit_life.carry_out(self.life(), STEPS, self.now, quiet)
        await audit_life.export_days(exporter, exports, self.now, quiet)
        await audit_life.carry_out(self.life(exports=True), STEPS, self.now, quiet)
        await ledger.drop_audit_before(self.now - self._keep, exported=True)
        await store.close()
        assert not quiet.failures, quiet.failures

    def look(self) -> None:
        """Raises ``AssertionError`` where a row is missing or there twice."""
        assert in_child(lambda: self.expected(self.where())) == 0
        assert in_child(lambda: self.expected(self.where_exported())) == 0
        assert in_child(self.verified) == 0

    def verified(self) -> None:
        """The chain of the daily exports is whole: none was removed but by age."""
        told = asyncio.run(verify(self.life(exports=True), self.heads(), lambda _done, _total: None))
        assert not told.problems, told.problems

    def where_exported(self) -> Counter[str]:
        """Every row in all daily exports, and those of the database that are in none yet."""
        found = self._in_files("exports/authorization_audit_rows*", "machine-1/authorization_audit_rows.")
        with closing(sqlite3.connect(self._database)) as database:
            newest = database.execute("SELECT until, positions FROM audit_exports ORDER BY number DESC").fetchone()
            until, position = (newest[0], positions_of(newest[1]).get("embedded", 0)) if newest else (0, 0)
            waiting = database.execute(
                "SELECT request_id FROM authorization_audit WHERE timestamp >= ? OR sequence > ?", (until, position)
            )
            found.update(row[0] for row in waiting)
        return found

    def where(self) -> Counter[str]:
        """Every row in all places. A file that a killed process left in two forms counts twice."""
        return self._in_files("audit.log*", "machine-1/audit.log.")

    def _in_files(self, pattern: str, beginning: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for path in self.folder.glob(pattern):
            found.update(ids(path))
        for key, content in asyncio.run(self.stored()).items():
            if key.startswith(beginning):
                path = self.folder / "fetched"
                path.write_bytes(content)
                content_of(path, threading.Event())
                found.update(ids(path))
                path.unlink()
        return found

    async def stored(self) -> dict[str, bytes]:
        archive = self.life().archive
        assert archive is not None
        found = {}
        for item in await archive.objects():
            found[item.key] = b"".join([chunk async for chunk in archive.read(item.key)])
        return found

    def expected(self, found: Counter[str]) -> None:
        """Whatever must be there is there once; what may be there, at most once."""
        assert not {request_id: count for request_id, count in found.items() if count != 1}
        assert found.keys() <= self.rows.keys()
        # A file goes whole, once its newest row is too old; it holds more than a day where few rows came.
        must = {request_id for request_id, at in self.rows.items() if at >= self.now - self._keep}
        assert must <= found.keys()
        slack = 60 * DAY
        gone = {request_id for request_id, at in self.rows.items() if at < self.now - self._keep - slack}
        assert not gone & found.keys()


def ids(path: Path) -> list[str]:
    with opened(path) as file:
        return [fields[1] for fields in records(file) if fields[0] != "timestamp"]


def in_child(work: Callable[[], None]) -> int:
    """How a process ended that did the work."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - a child never returns into its parent's code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"a child ended with {code}"
    return code


def main(folder: str, url: str, *numbers: str) -> None:
    days, kills, compress, archive, keep = map(int, numbers)
    (Path(folder) / "exports").mkdir()
    simulation = Simulation(Path(folder), url, days, compress=compress, archive=archive, keep=keep)
    drawn = random.Random(kills)
    deadly = set(drawn.sample(range(days), kills))
    for day in range(days):
        simulation.write_day()
        if day in deadly:
            before = simulation.kills
            for most in (2500, 400, 100, 20, 1):
                if simulation.kills == before:
                    simulation.live(drawn.randint(1, most))
        simulation.live(None)
        if day % 25 == 0 or day == days - 1:
            simulation.look()
    assert simulation.kills == kills
    assert not list(Path(folder).glob(".*.part")) + list(Path(folder).glob("exports/.*.draft"))
    print(f"{len(simulation.rows)} rows, {kills} kills")


if __name__ == "__main__":
    main(*sys.argv[1:])
