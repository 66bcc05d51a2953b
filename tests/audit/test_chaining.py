"""The chain of the database's rows: one a writer, through kills, retention and a move to another database."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import sqlite3
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargegate.audit import ahead, chaining
from chargegate.audit.chain import START, Chain
from chargegate.audit.chaining import RowChain, RowVerifier, VerifiedRows, drop_links, links_of
from chargegate.audit.life.heads import Heads, Statement
from chargegate.audit.row_statements import Statements
from chargegate.engines.postgres.chain import PostgresChain
from chargegate.engines.postgres.ledger import PostgresLedger
from chargegate.engines.postgres.statements import LEDGER_TABLES
from chargegate.engines.postgres.store import PostgresStore
from chargegate.engines.postgres.target import PostgresTarget
from chargegate.engines.sqlite.chain import SqliteChain
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.source import SqliteSource
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.chain import RowLink
from chargegate.ledger.copying import copy
from chargegate.ledger.records import Finished
from chargegate.model import RequestStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from chargegate.ledger.base import Ledger
    from chargegate.ledger.chain import AuditChain
    from chargegate.model import Decision
    from databases import Database, Run

    Decide = Callable[..., Decision]

DAY = 86_400_000
LIMIT = 59 * DAY  # the first of March 1970
KEY = b"k" * 32


async def recorded(ledger: Ledger, decide: Decide, *times: int) -> None:
    """With callbacks that were delivered."""
    for at in times:
        made = decide(timestamp=at)
        await ledger.record(made, at)
        await ledger.finish(Finished(made.request_id, RequestStatus.COMPLETED, 1, 200, None, at, None))


async def followed(ledger: Ledger, chain: AuditChain, statements: Statements) -> None:
    """All rows have a link now, and the head is signed."""
    await RowChain(ledger, chain, statements).close()


async def verified(chain: AuditChain, statements: Statements, writer: str) -> VerifiedRows:
    told = await statements.of(writer)
    return await RowVerifier(chain, writer, statements.heads.chain, told).verify(lambda _: None)


def statements_in(folder: Path, ledger: Ledger) -> Statements:
    return Statements(Heads(folder, Chain(KEY)), ledger)


async def linked(
    database: Database, decide: Decide, folder: Path, *times: int
) -> tuple[Ledger, AuditChain, Statements]:
    """A database whose rows, of these times, have their links."""
    ledger, chain = database.ledger(), database.chain()
    statements = statements_in(folder, ledger)
    await recorded(ledger, decide, *times)
    await followed(ledger, chain, statements)
    return ledger, chain, statements


def test_a_chain_goes_on_after_whatever_ended_its_process(run: Run, decide: Decide, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        ledger, chain = database.ledger(), database.chain()
        statements = statements_in(tmp_path, ledger)
        for _ in range(3):
            await recorded(ledger, decide, *range(1000, 1005))
            killed = RowChain(ledger, chain, statements)
            await asyncio.sleep(0)
            killed._task.cancel()
            await followed(ledger, chain, statements)
        found = await verified(chain, statements, chain.writer)
        assert (found.rows, found.waiting, found.problems) == (15, 0, [])
        assert await chain.writers() == [chain.writer]
        again = Statements(Heads(tmp_path, Chain(b"other" * 8)), ledger)
        assert await again.of(chain.writer) == []  # signed with another key
        assert len((await verified(chain, again, chain.writer)).problems) == 15

    run(scenario)


@pytest.mark.parametrize("kind", ["on", "head", "start"])
def test_a_kill_between_two_signatures_looks_like_no_fault(
    run: Run, decide: Decide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nobody signs again where the chain is off after the kill, or until the next row is old."""
    methods = {"on": "turned", "head": "head", "start": "started"}
    put = Statements._put

    async def killed_put(self: Statements, statement: Statement) -> None:
        if statement.kind == kind:
            raise _Killed
        await put(self, statement)

    async def scenario(database: Database) -> None:
        ledger, chain = database.ledger(), database.chain()
        statements = statements_in(tmp_path, ledger)
        start = partial(statements.start, chain.writer, RowLink(1, 1, b"m" * 32))
        follow = partial(linked, database, decide, tmp_path, *range(1000, 1005))
        if kind == "start":
            await follow()
        for place in ("database", "file"):
            with monkeypatch.context() as killed:
                if place == "file":
                    killed.setattr(Heads, methods[kind], _killed)
                else:
                    killed.setattr(Statements, "_put", killed_put)
                with pytest.raises(_Killed):
                    await (start() if kind == "start" else follow())
            found = await verified(chain, statements, chain.writer)
            assert await statements.faults(chain.writer, found.rows if kind == "start" else 0) == []

    run(scenario)


class _Killed(BaseException):
    pass


def _killed(*_: object, **__: object) -> NoReturn:
    raise _Killed


def test_an_end_does_not_wait_for_the_links_of_all_rows(
    run: Run, decide: Decide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be millions without one, where the chain was switched on just now."""

    async def scenario(database: Database) -> None:
        ledger, chain = database.ledger(), database.chain()
        statements = statements_in(tmp_path, ledger)
        await recorded(ledger, decide, *range(1000, 1005))
        monkeypatch.setattr(chaining, "_LAST_S", 0.0)
        await followed(ledger, chain, statements)
        assert (await verified(chain, statements, chain.writer)).waiting == 5
        monkeypatch.undo()
        await followed(ledger, chain, statements)
        found = await verified(chain, statements, chain.writer)
        assert (found.rows, found.waiting, found.problems) == (5, 0, [])

    run(scenario)


def test_retention_signs_where_the_rest_begins(run: Run, decide: Decide, tmp_path: Path) -> None:
    """Also where the process dies between the rows and their links."""

    async def scenario(database: Database) -> None:
        old, kept = range(40 * DAY, 45 * DAY, DAY), range(70 * DAY, 74 * DAY, DAY)
        ledger, chain, statements = await linked(database, decide, tmp_path, *old, *kept)
        drop = partial(ledger.drop_audit_before, LIMIT)

        async def drop_and_die(signed: Mapping[str, int]) -> None:
            await drop(signed=signed)
            raise InterruptedError

        try:
            await drop_links(chain, statements, LIMIT, drop_and_die)
        except InterruptedError:
            found = await verified(chain, statements, chain.writer)
            assert (found.rows, found.problems) == (4, [])
        await recorded(ledger, decide, 75 * DAY)
        await drop_links(chain, statements, LIMIT, drop)
        await followed(ledger, chain, statements)
        found = await verified(chain, statements, chain.writer)
        assert (found.rows, found.problems) == (5, [])
        await database.execute(f"DELETE FROM authorization_audit WHERE timestamp = {70 * DAY}")
        found = await verified(chain, statements, chain.writer)
        assert [problem.what for problem in found.problems] == ["missing"]

    run(scenario)


def test_young_rows_among_old_ones_stay_and_are_verified(run: Run, decide: Decide, tmp_path: Path) -> None:
    """The order of commits is not that of the times, and what has not ended stays in the embedded database."""

    async def scenario(database: Database) -> None:
        ledger, chain = database.ledger(), database.chain()
        statements = statements_in(tmp_path, ledger)
        await recorded(ledger, decide, 40 * DAY, 70 * DAY, 41 * DAY, 71 * DAY, 72 * DAY)
        await ledger.record(decide(timestamp=42 * DAY), 0)
        await recorded(ledger, decide, 43 * DAY, 73 * DAY)
        await followed(ledger, chain, statements)
        for _ in range(2):
            await drop_links(chain, statements, LIMIT, partial(ledger.drop_audit_before, LIMIT))
        found = await verified(chain, statements, chain.writer)
        assert found.problems == []
        waiting = await database.execute(f"SELECT count(*) FROM authorization_audit WHERE timestamp < {LIMIT}")
        assert found.rows == 4 + waiting[0][0]
        await recorded(ledger, decide, 74 * DAY)
        await followed(ledger, chain, statements)
        for at in (70, 71, 72, 73, 74):
            change = "UPDATE authorization_audit SET reason = '{}' WHERE timestamp = " + str(at * DAY)
            await database.execute(change.format("changed"))
            found = await verified(chain, statements, chain.writer)
            assert [problem.what for problem in found.problems] == ["changed"]
            await database.execute(change.format(""))
        assert (await verified(chain, statements, chain.writer)).problems == []

    run(scenario)


def test_a_chain_of_which_all_is_dropped_goes_on(run: Run, decide: Decide, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        ledger, chain, statements = await linked(database, decide, tmp_path, *range(40 * DAY, 45 * DAY, DAY))
        await drop_links(chain, statements, LIMIT, partial(ledger.drop_audit_before, LIMIT))
        await recorded(ledger, decide, 70 * DAY, 71 * DAY)
        await followed(ledger, chain, statements)
        found = await verified(chain, statements, chain.writer)
        assert (found.rows, found.problems, found.head.partition("-")[0]) == (2, [], "7")
        await database.execute(f"DELETE FROM authorization_audit WHERE timestamp = {70 * DAY}")
        found = await verified(chain, statements, chain.writer)
        assert [problem.what for problem in found.problems] == ["missing"]

    run(scenario)


def test_rows_that_get_their_links_while_old_ones_are_dropped_are_not_missed(
    run: Run, decide: Decide, tmp_path: Path
) -> None:
    """They stay until a later run has signed that they go."""

    async def scenario(database: Database) -> None:
        ledger, chain, statements = await linked(database, decide, tmp_path, *range(40 * DAY, 45 * DAY, DAY))
        await recorded(ledger, decide, 45 * DAY, 46 * DAY)

        async def drop_late(signed: Mapping[str, int]) -> None:
            await followed(ledger, chain, statements)
            with contextlib.suppress(LedgerUnavailable):  # of a month that is one table
                await ledger.drop_audit_before(LIMIT, signed=signed)

        await drop_links(chain, statements, LIMIT, drop_late)
        assert (await verified(chain, statements, chain.writer)).problems == []
        assert await ledger.audit_after(5, 10)
        await drop_links(chain, statements, LIMIT, partial(ledger.drop_audit_before, LIMIT))
        assert await ledger.audit_after(0, 10) == []
        await recorded(ledger, decide, 70 * DAY)
        await followed(ledger, chain, statements)
        found = await verified(chain, statements, chain.writer)
        assert (found.rows, found.problems, found.head.partition("-")[0]) == (1, [], "8")

    run(scenario)


def test_rows_that_go_before_they_have_a_link_are_not_missed(run: Run, decide: Decide, tmp_path: Path) -> None:
    """The chain has read them already."""

    async def scenario(database: Database) -> None:
        ledger, chain, statements = await linked(database, decide, tmp_path, 40 * DAY)
        await recorded(ledger, decide, 41 * DAY, 42 * DAY, 70 * DAY)
        refused = 0

        class Late:
            """Old rows are dropped before the first links are added."""

            writer = chain.writer
            links = staticmethod(chain.links)
            last_link = staticmethod(chain.last_link)

            async def add(self, links: Any) -> bool:
                nonlocal refused
                if not refused:
                    await drop_links(chain, statements, LIMIT, partial(ledger.drop_audit_before, LIMIT))
                added = await chain.add(links)
                refused += not added
                return added

        late: Any = Late()
        await followed(ledger, late, statements)
        assert refused == 1
        found = await verified(chain, statements, chain.writer)
        assert (found.rows, found.problems, found.head.partition("-")[0]) == (1, [], "2")

    run(scenario)


def test_who_drops_a_month_and_who_adds_links_wait_for_each_other(
    postgres_run: Run, decide: Decide, tmp_path: Path
) -> None:
    """Otherwise a link could be added between the look at the links and the end of its row."""

    async def scenario(database: Database) -> None:
        ledger, chain, _ = await linked(database, decide, tmp_path, 40 * DAY)
        async with database.holding("LOCK TABLE audit_chain IN ROW EXCLUSIVE MODE"):
            with pytest.raises(LedgerUnavailable, match="read or changed for long, and nothing was dropped"):
                await ledger.drop_audit_before(LIMIT, signed={chain.writer: 1})
        await recorded(ledger, decide, 41 * DAY)
        gone = "DELETE FROM authorization_audit WHERE sequence = 2"
        async with database.holding("LOCK TABLE audit_chain IN EXCLUSIVE MODE", gone):
            adding = asyncio.create_task(chain.add([RowLink(2, 2, bytes(16))]))
            assert not (await asyncio.wait([adding], timeout=0.5))[0]
        assert not await adding
        assert (await ledger.drop_audit_before(LIMIT, signed={chain.writer: 1})).tables

    postgres_run(scenario)


def test_a_row_that_stands_twice_holds_up_no_link(run: Run, decide: Decide, tmp_path: Path) -> None:
    """Somebody put it there. A page may end between the two."""

    async def scenario(database: Database) -> None:
        ledger, chain = database.ledger(), database.chain()
        await recorded(ledger, decide, 1000, 1001)
        rows = await ledger.audit_after(0, 2)
        links = links_of(Chain(KEY), rows, RowLink(0, 0, bytes(16)))
        assert await chain.add(links[:1])
        assert await chain.add(links)  # one of them is there
        assert not await chain.add([*links, RowLink(3, 3, bytes(16))])
        with contextlib.suppress(sqlite3.IntegrityError):  # the embedded database has no number twice
            columns = "timestamp, station_id, driver_token_hash, status, reason, processing_time_ms, sequence"
            writer = "writer, " if chain.writer == "test" else ""
            await database.execute(
                f"INSERT INTO authorization_audit ({writer}{columns}, request_id)"
                f" SELECT {writer}{columns}, 'again' FROM authorization_audit WHERE sequence = 2"
            )
        assert await chain.add(links)

    run(scenario)


def test_a_request_that_ends_while_old_rows_are_dropped_is_not_missed(run: Run, decide: Decide, tmp_path: Path) -> None:
    """In the embedded database its row may go from then on."""

    async def scenario(database: Database) -> None:
        ledger, chain = database.ledger(), database.chain()
        statements = statements_in(tmp_path, ledger)
        await recorded(ledger, decide, 40 * DAY)
        made = decide(timestamp=41 * DAY)
        await ledger.record(made, 41 * DAY)
        await followed(ledger, chain, statements)

        async def drop_late(signed: Mapping[str, int]) -> None:
            await ledger.finish(Finished(made.request_id, RequestStatus.COMPLETED, 1, 200, None, 41 * DAY, None))
            await ledger.drop_audit_before(LIMIT, signed=signed)

        await drop_links(chain, statements, LIMIT, drop_late)
        assert (await verified(chain, statements, chain.writer)).problems == []

    run(scenario)


def test_links_that_are_made_meanwhile_find_their_rows(run: Run, decide: Decide, tmp_path: Path) -> None:
    """A service goes on while it is verified: the end of the rows may be read before that of the links."""

    async def scenario(database: Database) -> None:
        ledger, chain, statements = await linked(database, decide, tmp_path, *range(1000, 1005))
        asked = 0

        class Growing:
            """Rows and links are added before each page of links is read."""

            writer = chain.writer
            rows = staticmethod(chain.rows)

            async def links(self, writer: str, after: int, limit: int) -> Any:
                nonlocal asked
                asked += 1
                if asked < 6:
                    await recorded(ledger, decide, *range(2000 * asked, 2000 * asked + 3))
                    await followed(ledger, chain, statements)
                return await chain.links(writer, after, LIMIT)

        growing: Any = Growing()
        found = await verified(growing, statements, chain.writer)
        assert (found.rows, found.problems) == (20, [])

    run(scenario)


def test_rows_are_found_in_whatever_pages_they_are_read(
    run: Run, decide: Decide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(database: Database) -> None:
        _, chain, statements = await linked(database, decide, tmp_path, *range(1000, 1030))
        await database.execute("DELETE FROM authorization_audit WHERE timestamp IN (1004, 1005, 1020)")
        await database.execute("DELETE FROM audit_chain WHERE number IN (12, 16)")
        await database.execute("UPDATE authorization_audit SET reason = 'x,\"y' WHERE timestamp IN (1008, 1029)")
        expected = [
            ("missing", 5),
            ("missing", 6),
            ("changed", 9),
            ("not_in_chain", None),
            ("missing", 13),
            ("not_in_chain", None),
            ("missing", 17),
            ("missing", 21),
            ("changed", 30),
        ]
        for size in (1, 2, 3, 7, 100):
            monkeypatch.setattr(ahead, "PAGE", size)
            found = await verified(chain, statements, chain.writer)
            assert [(each.what, each.number) for each in found.problems] == expected
            assert (found.rows, found.head.partition("-")[0]) == (25, "30")

    run(scenario)


@given(key=st.binary(min_size=1, max_size=200), row=st.text(), number=st.integers(1, 10**12))
def test_macs_are_hmac_sha256(key: bytes, row: str, number: int) -> None:
    row = row.encode(errors="replace").decode()
    expected = hmac.new(key, f"{START}{number},{row}".encode(), "sha256").hexdigest()
    assert Chain(key).mac(START, number, row) == expected[:32]
    assert Chain(key).signature(row) == hmac.new(key, b"\0statement\0" + row.encode(), "sha256").hexdigest()


def test_each_writer_has_a_chain_of_its_own(postgres_run: Run, decide: Decide, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        names = ["one", "two"]
        ledgers = {name: database.ledger(writer=name) for name in names}

        async def work(name: str) -> Statements:
            statements = statements_in(tmp_path, ledgers[name])
            for _ in range(3):
                await asyncio.gather(*(ledgers[name].record(decide(timestamp=at), at) for at in range(20)))
            await followed(ledgers[name], database.chain(name), statements)
            return statements

        statements = (await asyncio.gather(*map(work, names)))[0]
        assert await database.chain().writers() == names
        for name in names:
            found = await verified(database.chain(name), statements, name)
            assert (found.rows, found.problems) == (60, [])
        await database.execute("UPDATE authorization_audit SET writer = 'two' WHERE writer = 'one' AND sequence = 60")
        assert {problem.what for problem in (await verified(database.chain(), statements, "one")).problems} == {
            "missing"
        }

    postgres_run(scenario)


def test_a_chain_moves_with_its_rows(postgres_url: str, decide: Decide, tmp_path: Path) -> None:
    async def main() -> Any:
        source = await SqliteStore.open(tmp_path / "ledger.db", ALL_TABLES, exclusive=False)
        target = await PostgresStore.open(postgres_url, LEDGER_TABLES, LedgerUnavailable)
        ledger, chain = SqliteLedger(source), SqliteChain(source)
        statements = statements_in(tmp_path, ledger)
        await recorded(ledger, decide, *range(1000, 1030))
        await followed(ledger, chain, statements)
        for _ in range(2):
            await copy(SqliteSource(source), PostgresTarget(target), lambda _kind, _more: None)
        (tmp_path / "elsewhere").mkdir()
        there = statements_in(tmp_path / "elsewhere", PostgresLedger(target))
        assert await there.of("embedded")  # the signed head came along
        found = await verified(PostgresChain(target, "x"), there, "embedded")
        await source.close()
        await target.close()
        return found

    found = asyncio.run(main())
    assert (found.rows, found.problems) == (30, [])
