"""Databases with very many decisions, made for a measurement and counted by the service's own code.

Decisions are of the last 60 days, at 2,000 stations. One station has 2 % of the decisions, and 2 % of the decisions are
timeouts, so that a page of them is full at every size. One client in a thousand decisions is another one, and 200
requests are dead letters. Rows are made inside the database before its indexes are.
"""

import base64
import contextlib
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg  # type: ignore[import-untyped]  # it ships no types
import uvloop
from rich.console import Console

from chargegate.engines import SQLITE, Place, engine_of
from chargegate.keys import Keyring
from chargegate.ledger.counts import DAY_MS
from chargegate.model import month_start, now_ms, to_iso
from processes import new_folder

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # for the servers of the tests

from servers import engines as servers  # type: ignore[import-not-found]

KINDS: Final = ("sqlite", "postgres")
DAYS: Final = 60
BUSY: Final = "00000000-0000-4000-8000-000000000000"
"""The station with most decisions."""

RARE_CLIENT: Final = "rare"
DEAD_LETTERS: Final = 200
WRITER: Final = "bench"
_KEY: Final = b"the key of a benchmark, 32 bytes"
SECRETS: Final = {
    "security.encryption_keys": [base64.b64encode(_KEY).decode()],
    "security.token_hash_key": base64.b64encode(_KEY).decode(),
}
"""The settings of a service that uses these databases."""

_SEALED: Final = Keyring([_KEY], _KEY).seal(b"what a dead letter keeps")
_CHUNK: Final = 250_000
_COUNTED_AT_ONCE: Final = 100_000
_SPAN_MS: Final = DAYS * DAY_MS

_STATION: Final = f"CASE WHEN n % 49 = 7 THEN '{BUSY}' ELSE {{hex}} || '-0000-4000-8000-00000000000a' END"
_STATUS: Final = "CASE WHEN n % 50 = 3 THEN 'unknown' WHEN n % 5 = 1 THEN 'not_allowed' ELSE 'allowed' END"
_REASON: Final = (
    "CASE WHEN n % 1000 = 53 THEN 'circuit_open' WHEN n % 50 = 3 THEN 'authorization_timeout'"
    " WHEN n % 5 = 1 THEN 'driver_not_in_acl' ELSE '' END"
)
_CLIENT: Final = f"CASE WHEN n % 1000 = 17 THEN '{RARE_CLIENT}' ELSE 'usual' END"


class Filled(NamedTuple):
    """A database with decisions. The last one was made at ``end`` (Unix ms)."""

    kind: str
    rows: int
    folder: Path
    url: str
    end: int

    @property
    def start(self) -> int:
        """The time of the first decision."""
        return self.end - _SPAN_MS


class _Expressions(NamedTuple):
    """What the n-th decision has, in a database's SQL. Ids begin with the time, as those of the service do."""

    at: str
    request_id: str
    station: str
    token_hash: str

    @property
    def decision(self) -> str:
        return f"{self.at}, {self.request_id}, {self.station}, {self.token_hash}, {_STATUS}, {_REASON}, n % 300"


def _expressions(kind: str, rows: int, start: int) -> _Expressions:
    at = f"({start} + {_SPAN_MS} * n / {rows})"
    number, token = "n * 2654435761 % 1999", "n * 2654435761 % 100003"
    if kind == "sqlite":
        request_id = f"printf('%08x-%04x-7000-8000-%012x', {at} >> 16, {at} & 65535, n)"
        return _Expressions(
            at, request_id, _STATION.format(hex=f"printf('%08x', {number})"), f"printf('%016x', {token})"
        )
    high, low, last, station, token_hash = (
        f"lpad(to_hex({value}), {digits}, '0')"
        for value, digits in ((f"{at} >> 16", 8), (f"{at} & 65535", 4), ("n", 12), (number, 8), (token, 16))
    )
    request_id = f"{high} || '-' || {low} || '-7000-8000-' || {last}"
    return _Expressions(at, request_id, _STATION.format(hex=station), token_hash)


def _dead(rows: int) -> str:
    """Whether the n-th request is a dead letter."""
    return f"n % {max(rows // DEAD_LETTERS, 1)} = 9"


async def fill(kind: str, rows: int, folder: Path, url: str, *, counted: bool = True) -> Filled:
    """Make the tables as the service does, fill them, and count. ``url``: of an empty database; for SQLite it is not
    used."""
    filled = Filled(kind, rows, folder, url, now_ms() - 1)
    database = await opened(filled)
    await database.close()
    if kind == "sqlite":
        _fill_sqlite(filled)
    else:
        await _fill_postgres(filled)
    database = await opened(filled)
    while counted and await database.counts.count_more(_COUNTED_AT_ONCE):
        pass
    await database.close()
    if kind == "postgres":
        await vacuum(url)  # as autovacuum does in time
    return filled


async def opened(filled: Filled) -> Any:
    """The database as the service has it open."""
    place = Place(folder=filled.folder, exclusive=False, process=WRITER)
    url = "sqlite" if filled.kind == "sqlite" else filled.url
    return await engine_of(url).load().open_database(url, place, None, needed=True)


@contextmanager
def _without_indexes(database: sqlite3.Connection) -> Iterator[None]:
    found = database.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOTNULL"
        " AND tbl_name IN ('authorization_audit', 'charging_requests')"
    ).fetchall()
    for name, _ in found:
        database.execute(f"DROP INDEX {name}")
    yield
    for _, statement in found:
        database.execute(statement)


def _fill_sqlite(filled: Filled) -> None:
    rows, of = filled.rows, _expressions("sqlite", filled.rows, filled.start)
    dead = _dead(rows)
    with contextlib.closing(sqlite3.connect(filled.folder / SQLITE.file, isolation_level=None)) as database:
        for pragma in ("synchronous = OFF", "cache_size = -400000", "threads = 2"):
            database.execute(f"PRAGMA {pragma}")
        with _without_indexes(database):
            for first in range(0, rows, _CHUNK):
                numbers = (
                    f"WITH RECURSIVE numbers(n) AS (VALUES ({first}) UNION ALL"
                    f" SELECT n + 1 FROM numbers WHERE n < {min(rows, first + _CHUNK) - 1})"
                )
                database.execute("BEGIN")
                database.execute(
                    f"{numbers} INSERT INTO authorization_audit (timestamp, request_id, station_id, driver_token_hash,"
                    f" status, reason, processing_time_ms) SELECT {of.decision} FROM numbers"
                )
                database.execute(
                    f"{numbers} INSERT INTO charging_requests (request_id, station_id, driver_token_hash, status,"
                    f" created_at, started_at, processed_at, attempts, sealed, client) SELECT {of.request_id},"
                    f" {of.station}, {of.token_hash}, iif({dead}, 'FAILED', 'COMPLETED'), {of.at}, {of.at}, {of.at}, 1,"
                    f" iif({dead}, ?, NULL), {_CLIENT} FROM numbers",
                    (_SEALED,),
                )
                database.execute("COMMIT")
        database.execute("INSERT OR REPLACE INTO sink_positions VALUES ('csv', ?)", (rows,))
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def _fill_postgres(filled: Filled) -> None:
    rows, of = filled.rows, _expressions("postgres", filled.rows, filled.start)
    connection = await asyncpg.connect(filled.url)
    for setting in ("synchronous_commit = off", "maintenance_work_mem = '512MB'"):
        await connection.execute(f"SET {setting}")
    # A month is filled before it is attached, which makes its indexes, and is noted as what is not counted yet.
    month = month_start(filled.start)
    while month <= filled.end:
        following = month_start(month + 32 * DAY_MS)
        name = f"authorization_audit_{to_iso(month)[:7].replace('-', '_')}"
        await connection.execute(f"CREATE TABLE IF NOT EXISTS {name} (LIKE authorization_audit INCLUDING DEFAULTS)")
        first, last = (_number_at(filled, max(at, filled.start)) for at in (month, following))
        await connection.execute(
            f"INSERT INTO {name} (writer, sequence, timestamp, request_id, station_id, driver_token_hash, status,"
            f" reason, processing_time_ms) SELECT '{WRITER}', n + 1, {of.decision}"
            f" FROM generate_series({first}::bigint, {last - 1}) AS n"
        )
        await connection.execute(
            f"ALTER TABLE authorization_audit ATTACH PARTITION {name} FOR VALUES FROM ({month}) TO ({following})"
        )
        month = following
    await connection.execute(
        f"INSERT INTO uncounted_decisions (writer, first, last, earliest, latest)"
        f" VALUES ('{WRITER}', 1, {rows}, {filled.start}, {filled.end})"
    )
    indexes = await connection.fetch(
        "SELECT indexname, indexdef FROM pg_indexes"
        " WHERE tablename = 'charging_requests' AND indexname NOT LIKE '%_pkey'"
    )
    for index in indexes:
        await connection.execute(f"DROP INDEX {index['indexname']}")
    dead = _dead(rows)
    await connection.execute(
        f"INSERT INTO charging_requests (request_id, station_id, driver_token_hash, decision, reason,"
        f" processing_time_ms, decided_at, status, created_at, started_at, processed_at, attempts, sealed, client)"
        f" SELECT {of.request_id}, {of.station}, {of.token_hash}, {_STATUS}, {_REASON}, n % 300, {of.at},"
        f" CASE WHEN {dead} THEN 'FAILED' ELSE 'COMPLETED' END, {of.at}, {of.at}, {of.at}, 1,"
        f" CASE WHEN {dead} THEN $1::bytea END, {_CLIENT} FROM generate_series(0::bigint, {rows - 1}) AS n",
        _SEALED,
        timeout=600,
    )
    for index in indexes:
        await connection.execute(index["indexdef"])
    await connection.close()
    await vacuum(filled.url)


def _number_at(filled: Filled, at: int) -> int:
    """The number of the first decision that was not made before a time."""
    return min(filled.rows, -(-(at - filled.start) * filled.rows // _SPAN_MS))


async def vacuum(url: str) -> None:
    """As autovacuum would, in time."""
    connection = await asyncpg.connect(url)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


@contextmanager
def databases(
    kinds: Sequence[str], sizes: Sequence[int], keep: Path | None, console: Console
) -> Iterator[dict[tuple[str, int], Filled]]:
    """Filled databases. With ``keep`` they stay in that folder, and those that are there already are used."""
    server = None
    with new_folder() as passing:
        folder = keep or passing
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)  # PostgreSQL runs as another user
        try:
            if "postgres" in kinds:
                server = servers.Postgres()
                if keep is not None:
                    _keep_data(server, keep / "postgres")
                server.start()
            places = {(kind, rows): folder / f"{kind}-{rows}" for kind in kinds for rows in sizes}
            yield uvloop.run(_filled(places, server.url if server else "", console))
        finally:
            if server is not None:
                server.close()


@contextmanager
def empty(kind: str) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL of a database without tables."""
    with new_folder() as folder:
        if kind == "sqlite":
            yield folder, ""
            return
        server = servers.Postgres()
        try:
            server.start()
            yield folder, server.url
        finally:
            server.close()


def _keep_data(server: Any, data: Path) -> None:
    server.data = data
    if not data.exists():
        data.mkdir(0o700)
        if os.getuid() == 0:
            shutil.chown(data, server.user, server.user)
        server.prepare()


async def _filled(
    places: dict[tuple[str, int], Path], server_url: str, console: Console
) -> dict[tuple[str, int], Filled]:
    found = {}
    for (kind, rows), folder in places.items():
        known = folder / "end"  # written once all is there
        url = f"{server_url.rpartition('/')[0]}/decisions{rows}" if kind == "postgres" else ""
        if known.exists():
            found[kind, rows] = Filled(kind, rows, folder, url, int(known.read_text()))
            continue
        started = time.monotonic()
        folder.mkdir()
        if kind == "postgres":
            await _new_database(server_url, f"decisions{rows}")
        found[kind, rows] = await fill(kind, rows, folder, url)
        known.write_text(str(found[kind, rows].end))
        seconds = time.monotonic() - started
        console.print(f"{kind}: {rows:,} decisions made and counted in {seconds:.0f} s", style="dim")
    return found


async def _new_database(server_url: str, name: str) -> None:
    connection = await asyncpg.connect(server_url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
