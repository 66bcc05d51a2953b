"""Whatever others do to the CSV file and wherever its writer dies: a row has one line in all the files together."""

import gzip
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st

from chargegate.audit.csv_file import CsvFile
from chargegate.audit.life.compressing import compress
from chargegate.audit.life.files import LogFiles
from chargegate.audit.life.rotating import rotate
from chargegate.audit.zst import zstd
from chargegate.ledger.records import AuditRow
from chargegate.model import Decision
from trying import few_or_many, try_many

Decide = Callable[..., Decision]

garbage = st.binary(max_size=40) | st.sampled_from(
    [b"\x00" * 600, b"2026-01-01T00:00:00.123Z,x,s,h,allo", b",,,,,,\n", b'"\n', b"\n\n", b"\xff" * 300 + b"\n"]
)
rotations = st.sampled_from(["rename", "gzip", "truncate", "delete", "replace", "move", "ours", "ours_compressed"])
writes = st.tuples(st.just("write"), st.integers(1, 30))
steps = (
    writes
    | st.tuples(st.just("rotate"), rotations)
    | st.tuples(st.just("save"), st.none())
    | st.tuples(st.just("kill"), st.none())
    | st.tuples(st.just("cut"), st.tuples(st.floats(0, 1), garbage))
    | st.tuples(st.just("power"), st.tuples(st.floats(0, 1), garbage))
    | st.tuples(st.just("stop"), st.none())
)


class Written:
    """A file as the feed writes it: rows in order, a position that is saved now and then."""

    def __init__(self, folder: Path, decide: Decide) -> None:
        self.folder = folder
        self.path = folder / "log" / "audit.log"
        self.path.parent.mkdir()
        (folder / "archive").mkdir()
        self._decide = decide
        self.rows: list[AuditRow] = []
        self.saved = self.synced_size = self.rotated = 0
        self.sink = self._opened()

    def _opened(self) -> CsvFile:
        return CsvFile(self.path, self.folder / "csv-notes")

    def write(self, count: int) -> None:
        new = [AuditRow(len(self.rows) + 1 + at, self._decide(f"id-{len(self.rows) + at}")) for at in range(count)]
        self.rows += new
        self.sink.write(new)

    def save(self, _: None) -> None:
        self.sink.sync()
        self.saved = len(self.rows)
        self.synced_size = self.path.stat().st_size if self.path.exists() else 0

    def rotate(self, how: str) -> None:
        if not self.path.exists():
            return
        self.rotated += 1
        name = self.path.with_name(f"audit.log.{self.rotated}")
        match how:
            case "rename":
                self.path.rename(name)
            case "gzip":
                name.with_suffix(".gz").write_bytes(gzip.compress(self.path.read_bytes()))
                name.with_suffix(".gz").rename(name.with_name(f"{name.name}.gz"))
                self.path.unlink()
            case "ours" | "ours_compressed":
                if rotate(self.path, self.rotated) and how == "ours_compressed":
                    plain = [file for file in LogFiles(self.path).rotated() if not file.compressed]
                    compress(plain[-1], threading.Event())
            case "move":
                self.path.rename(self.folder / "archive" / str(self.rotated))
                self.path.touch()
            case _:
                shutil.copyfile(self.path, name)
                if how == "truncate":
                    os.truncate(self.path, 0)
                else:
                    self.path.unlink()
                    if how == "replace":
                        self.path.touch()
        self.synced_size = 0

    def _restart(self) -> None:
        self.sink._notes.close()  # a death takes no note of it
        self.sink.close()
        self.sink = self._opened()
        last = self.sink.last_written()
        confirmed = last is not None and 0 < last[0] <= len(self.rows)
        position = self.sink.resume(
            self.saved,
            remembered=confirmed and self.rows[last[0] - 1].decision.request_id == last[1] if last else False,
        )
        known = self.sink.held() if position < len(self.rows) else frozenset()
        missing = [row for row in self.rows[position:] if row.decision.request_id not in known]
        if missing:
            self.sink.write(missing)

    def kill(self, _: None) -> None:
        self._restart()

    def stop(self, _: None) -> None:
        self.save(None)
        self.sink.close()
        self._restart()

    def cut(self, how: tuple[float, bytes]) -> None:
        """The process was killed, and the file has lost some of its end; but then it was not rotated just now."""
        share, rest = how
        if self.path.exists() and (size := self.path.stat().st_size) > 200:
            os.truncate(self.path, 100 + int(share * (size - 100)))
            with self.path.open("ab") as file:
                file.write(rest)
        self._restart()

    def power(self, how: tuple[float, bytes]) -> None:
        """What was not synced may be gone, of the notes as well."""
        share, rest = how
        if self.path.exists():
            size = self.path.stat().st_size
            os.truncate(self.path, self.synced_size + int(share * (size - self.synced_size)))
            with self.path.open("ab") as file:
                file.write(rest)
        (self.folder / "csv-notes").write_bytes(rest)
        self._restart()

    def lines(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for path in (*self.path.parent.iterdir(), *(self.folder / "archive").iterdir()):
            content = path.read_bytes()
            if path.suffix == ".gz":
                content = gzip.decompress(content)
            elif path.suffix == ".zst":
                content = zstd.decompress(content)
            found.update(line.split(b",")[1].decode() for line in content.splitlines() if line.count(b",") == 6)
        found.pop("request_id", None)
        found.pop("", None)  # of garbage
        return found


KNOWN: list[list[tuple[str, object]]] = [
    [("write", 20), ("rotate", "rename"), ("write", 5), ("kill", None), ("rotate", "gzip"), ("kill", None)],
    [("write", 20), ("rotate", "ours_compressed"), ("kill", None), ("rotate", "ours"), ("write", 9), ("kill", None)],
    [("write", 20), ("rotate", "move"), ("write", 9), ("cut", (0.5, b"\x00\x00")), ("write", 1)],
    [("write", 20), ("save", None), ("rotate", "rename"), ("write", 9), ("power", (0.5, b"\x00\n"))],
    [("power", (0.5, b"\n")), ("write", 3), ("power", (0.5, b"")), *[("rotate", "ours_compressed"), ("write", 1)] * 2],
    *[
        [("power", (0.5, blank)), ("write", 1), ("power", (share, b"\n"))]
        for blank in (
            b"\n\n",
            b"\x00\n\x00\x00\n",
            b"\r\n \t\r\n\n",
            b"\n\nunfinished",
            b"\n,,,,,,\n",
            b"x\n" * 400,
            b"\n\xff\n\xfe\n2026-01-01T00:00:00.123Z,x,s,h,allo\n",
        )
        for share in (0.984375, 0.993, 1.0)
    ],
]


@few_or_many(150, 10_000)
def test_a_row_has_one_line_whatever_happens(decide: Decide, examples: int) -> None:
    def check(way: list[tuple[str, object]]) -> None:
        moved = False  # after a power cut nobody looks in other folders
        forgot = False  # and nobody knows which of the older rows are in this file
        with TemporaryDirectory() as folder:
            written = Written(Path(folder), decide)
            for what, how in way:
                if (what == "power" and moved) or (what == "cut" and forgot):
                    continue
                forgot = forgot or what == "power"
                getattr(written, what)(how)
                moved = (moved or how == "move") and what not in ("save", "stop")
            written.sink.close()
            assert written.lines() == Counter(row.decision.request_id for row in written.rows)

    for way in KNOWN:
        check(way)
    try_many(examples, st.lists(steps, max_size=9), check)
