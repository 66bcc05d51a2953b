"""Signed statements: whatever is deleted as old in whatever order is no tampering, and whatever else goes is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from chargegate.audit.chain import Chain
from chargegate.audit.csv_file import CsvFile
from chargegate.audit.life.files import LogFiles
from chargegate.audit.life.heads import Heads
from chargegate.audit.life.links import last_of, link_at_end, mac_in, mac_of
from chargegate.audit.life.rotating import rotate
from chargegate.audit.life.steps import Ages, Item, Life
from chargegate.audit.life.verifying import verify
from chargegate.ledger.records import AuditRow
from trying import try_many

if TYPE_CHECKING:
    from collections.abc import Callable

    from chargegate.model import Decision

    Decide = Callable[..., Decision]

KEY = b"k" * 32
DAY = 86_400_000
NOW = 1_767_225_600_000


class Logged:
    """A log with files of some rows each."""

    def __init__(self, folder: Path, decide: Decide) -> None:
        self.folder, self.path, self._decide = folder, folder / "audit.log", decide
        self.heads = Heads(folder, Chain(KEY))
        self.files = LogFiles(self.path)
        self.life = Life(self.files, Ages(0, 0, 0, 0, 0), None, "", heads=self.heads)
        self.sink = CsvFile(self.path, folder / "notes", Chain(KEY), self.heads)
        self.count = 0

    def write(self, rows: int) -> None:
        new = [AuditRow(self.count + at, self._decide(f"id-{self.count + at}")) for at in range(1, rows + 1)]
        self.count += rows
        self.sink.write(new)

    def rotate(self) -> None:
        rotate(self.path, NOW + self.count)

    def problems(self) -> set[str]:
        told = asyncio.run(verify(self.life, self.heads, lambda _done, _total: None))
        return {problem.what for problem in told.problems}


@st.composite
def deletions(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """How many rows each file has, and in which order some of them go."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    return sizes, draw(st.permutations(range(len(sizes))))[: draw(st.integers(0, len(sizes)))]


def test_files_go_in_any_order(decide: Decide) -> None:
    def check(way: tuple[list[int], list[int]]) -> None:
        sizes, gone = way
        with TemporaryDirectory() as name:
            logged = Logged(Path(name), decide)
            for size in sizes:
                logged.write(size)
                logged.life.sign_heads(NOW)
                logged.rotate()
            files = logged.files.rotated()
            for number in gone:
                asyncio.run(logged.life.carry_out(Item("prune", files[number]), NOW))
                assert logged.problems() == set()
            for number in set(range(len(sizes))) - set(gone):
                path = files[number].path
                path.rename(path.with_name("kept"))
                assert logged.problems()
                path.with_name("kept").rename(path)
            logged.write(2)
            assert logged.life.sign_heads(NOW) == []
            assert logged.problems() == set()
            logged.sink.close()

    try_many(60, deletions(), check)


ways = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 5)),
        st.tuples(st.just("sign"), st.integers(0, 3)),
        st.tuples(st.just("rotate"), st.just(0)),
    ),
    max_size=12,
)


def test_an_end_that_was_signed_is_never_forgotten(decide: Decide) -> None:
    """Whatever is written, signed and rotated before and after somebody put another end in the place of it."""

    def check(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> None:
        with TemporaryDirectory() as name:
            logged = Logged(Path(name), decide)
            day = NOW

            def go(way: list[tuple[str, int]]) -> bool:
                nonlocal day
                lost = False
                for what, number in way:
                    if what == "write":
                        logged.write(number)
                    elif what == "rotate":
                        logged.rotate()
                    else:
                        day += number * DAY
                        lost = bool(logged.life.sign_heads(day)) or lost
                return lost

            logged.write(3)
            assert not go([*before, ("write", 2), ("sign", 0)])
            assert logged.problems() == set()
            logged.sink.close()
            text = logged.path.read_bytes().splitlines(keepends=True)
            logged.path.unlink()
            logged.path.write_bytes(b"".join(text[:-1]))
            logged.sink = CsvFile(logged.path, logged.folder / "notes", Chain(KEY), logged.heads)
            assert logged.problems()
            go([*after, ("write", 4), ("sign", 0), ("sign", 1)])
            assert logged.problems()
            logged.sink.close()

    try_many(80, st.tuples(ways, ways), lambda both: check(*both))


def test_a_row_is_found_by_its_number(tmp_path: Path, decide: Decide) -> None:
    logged = Logged(tmp_path, decide)
    logged.write(700)
    logged.rotate()
    logged.write(900)
    rotated = logged.files.rotated()[0].path
    found: dict[int, Any] = {}
    for path in (rotated, logged.path):
        for line in path.read_text().splitlines()[1:]:
            number, *_, mac = line.rpartition(",")[2].split("-")
            found[int(number)] = mac
    file = os.open(logged.path, os.O_RDONLY)
    assert last_of(file).number == link_at_end(logged.path).number == 1600
    for number in range(690, 1610):
        assert mac_in(file, number) == (found[number] if 700 < number <= 1600 else None)
    assert mac_of(rotated, 350) == found[350]
    assert mac_of(rotated, 701) is None
    os.close(file)
    logged.sink.close()


def test_lines_that_nobody_signed_stay_to_be_named(tmp_path: Path, decide: Decide) -> None:
    logged = Logged(tmp_path, decide)
    logged.write(2)
    logged.life.sign_heads(NOW)
    with (tmp_path / "audit.heads").open("ab") as file:
        file.write(b'{"kind":"start","log":"audit.log","number":2,"mac":"0","at":1,"signature":"0"}\n')
    logged.write(2)
    logged.life.sign_heads(NOW)
    assert len(logged.heads.damaged()) == 1
    assert [each.number for each in logged.heads.statements() if each.kind == "head"] == [4]
    logged.sink.close()
