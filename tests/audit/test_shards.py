"""A station's lines are in one file, and each row has one line in all the files, also when their number changes."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chargegate.audit.csv_shards import CsvShards, shard_of
from chargegate.ledger.records import AuditRow
from chargegate.model import Decision

Decide = Callable[..., Decision]
STATIONS = [f"0a1b2c3d-0000-4000-8000-{number:012x}" for number in range(40)]
FOUND = "123e4567-e89b-12d3-a456-426614174000"


def test_the_hash_is_that_of_the_documents() -> None:
    """CRC-32 of ``123456789`` is the check value of the algorithm's catalogue."""
    assert shard_of("123456789", 2**32) == 0xCBF43926
    assert [shard_of(FOUND, shards) for shards in (1, 3, 10, 256)] == [0, 2, 0, 182]
    assert shard_of(FOUND.upper(), 10) == shard_of(FOUND, 10)
    assert {shard_of(station, 10) for station in STATIONS} == set(range(10))
    shard_of("\ud800 ünd", 10)


class Written:
    """Files as the feed writes them: rows in order, a position that is saved now and then."""

    def __init__(self, folder: Path, decide: Decide, shards: int) -> None:
        self.folder = folder
        self._decide = decide
        self.shards = shards
        self.rows: list[AuditRow] = []
        self.saved = self.rotated = 0
        self.sink = self._opened()
        self._start()

    def _opened(self) -> CsvShards:
        return CsvShards(self.folder / "authorization_audit.log", self.shards, self.folder / "serve.csv-notes")

    def _start(self) -> None:
        confirmed = [
            (sequence, request_id)
            for sequence, request_id in self.sink.last_written()
            if 0 < sequence <= len(self.rows) and self.rows[sequence - 1].decision.request_id == request_id
        ]
        position = self.sink.resume(self.saved, confirmed)
        known = self.sink.held() if position < len(self.rows) else frozenset()
        missing = [row for row in self.rows[position:] if row.decision.request_id not in known]
        if missing:
            self.sink.write(missing)

    def write(self, count: int) -> None:
        self.sink.write(self._new(count))

    def _new(self, count: int) -> list[AuditRow]:
        first = len(self.rows)
        new = [
            AuditRow(at + 1, self._decide(f"id-{at}", station=STATIONS[at * 7 % len(STATIONS)]))
            for at in range(first, first + count)
        ]
        self.rows += new
        return new

    def half(self, count: int) -> None:
        """The process is killed in a write, when only some of the files have their lines."""
        new = self._new(count)
        parts = self.sink._by_shard(new)
        for shard in list(parts)[: len(parts) // 2]:
            self.sink._files[shard].write(parts[shard])
        self.kill(self.shards)

    def unnoted(self, count: int) -> None:
        """The process is killed between a write and its note."""
        notes = {path: path.read_bytes() for path in self.folder.glob("*csv-notes*") if "layouts" not in path.name}
        self.sink.write(self._new(count))
        for path, content in notes.items():
            path.write_bytes(content)
        self.kill(self.shards)

    def torn(self, count: int) -> None:
        """The process is killed in the middle of a line."""
        path = self.sink._files[count % self.shards]._path
        if path.exists():
            with path.open("ab") as file:
                file.write(b"2026-01-01T00:00:00.123Z,half")
        self.kill(self.shards)

    def save(self, _: int) -> None:
        self.sink.sync()
        self.saved = len(self.rows)

    def kill(self, shards: int) -> None:
        for file in self.sink._files:
            file._notes.close()  # a death takes no note of it
        self.sink.close()
        self.shards = shards
        self.sink = self._opened()
        self._start()

    def stop(self, shards: int) -> None:
        self.save(0)
        self.sink.close()
        self.shards = shards
        self.sink = self._opened()
        self._start()

    def rotate(self, number: int) -> None:
        path = self.sink._files[number % self.shards]._path
        if path.exists():
            self.rotated += 1
            path.rename(path.with_name(f"{path.name}.{self.rotated}"))

    def lines(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for path in self.folder.glob("authorization_audit*"):
            header, *lines = path.read_text().splitlines()
            assert header.startswith("timestamp,")
            if "_shard_" in path.name:
                assert len({line.split(",")[2] for line in lines}) <= len(STATIONS)
            found.update(line.split(",")[1] for line in lines)
        return found


counts = st.integers(1, 60)
shards = st.sampled_from([1, 2, 3, 10])
steps = st.one_of(
    st.tuples(st.sampled_from(["write", "write", "half", "unnoted", "torn"]), counts),
    st.tuples(st.sampled_from(["kill", "kill", "stop"]), shards),
    st.tuples(st.just("save"), st.just(0)),
    st.tuples(st.just("rotate"), st.integers(0, 9)),
)


@settings(max_examples=150)
@given(shards, st.lists(steps, max_size=10))
@example(1, [("write", 50), ("kill", 10), ("write", 50), ("kill", 3), ("write", 50), ("kill", 1), ("write", 9)])
@example(1, [("write", 50), ("stop", 10), ("write", 50), ("stop", 3), ("write", 50), ("stop", 1), ("write", 9)])
@example(10, [("write", 50), ("half", 60), ("kill", 3), ("half", 60), ("kill", 10), ("write", 9), ("kill", 10)])
@example(10, [("write", 50), ("save", 0), ("write", 9), ("kill", 3), ("save", 0), ("write", 9), ("kill", 10)])
@example(1, [("unnoted", 1), ("rotate", 0), ("kill", 2)])
@example(3, [("write", 50), ("rotate", 0), ("rotate", 1), ("half", 50), ("rotate", 2), ("kill", 1), ("kill", 3)])
def test_each_row_has_one_line_however_the_number_changes(
    decide: Decide, first: int, way: "list[tuple[str, int]]"
) -> None:
    with TemporaryDirectory() as folder:
        written = Written(Path(folder), decide, first)
        for what, how in way:
            getattr(written, what)(how)
        written.sink.close()
        assert written.lines() == Counter(row.decision.request_id for row in written.rows), (first, way)


def test_a_station_is_always_in_the_same_file_in_order(tmp_path: Path, decide: Decide) -> None:
    written = Written(tmp_path, decide, 10)
    for _ in range(5):
        written.write(100)
        written.kill(10)
    written.sink.close()
    assert not (tmp_path / "authorization_audit.log").exists()
    for number in range(10):
        lines = (tmp_path / f"authorization_audit_shard_{number}.log").read_text().splitlines()[1:]
        assert {shard_of(line.split(",")[2], 10) for line in lines} == {number}
        ids = [int(line.split(",")[1].removeprefix("id-")) for line in lines]
        assert ids == sorted(ids)


def test_a_shard_that_lost_its_end_gets_it_again(tmp_path: Path, decide: Decide) -> None:
    written = Written(tmp_path, decide, 3)
    written.write(90)
    written.save(0)
    written.write(30)
    os.truncate(tmp_path / "authorization_audit_shard_1.log", 1_000)
    written.kill(3)
    written.kill(3)
    written.sink.close()
    assert written.lines() == Counter(row.decision.request_id for row in written.rows)


def test_one_file_that_cannot_be_written_is_tried_again_without_doubling_the_others(
    tmp_path: Path, decide: Decide
) -> None:
    written = Written(tmp_path, decide, 3)
    written.write(30)
    blocked = tmp_path / "authorization_audit_shard_1.log"
    blocked.rename(tmp_path / "authorization_audit_shard_1.log.old")
    os.mkfifo(blocked)
    new = written._new(60)
    for _ in range(3):
        with pytest.raises(OSError, match="seek"):
            written.sink.write(new)
    blocked.unlink()
    written.sink.write(new)
    written.write(20)
    written.sink.close()
    assert written.lines() == Counter(row.decision.request_id for row in written.rows)
