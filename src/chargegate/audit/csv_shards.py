"""The CSV audit log in one file, or in several with each station's lines in the same one."""

import contextlib
import os
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from chargegate.audit.chain import Chain
from chargegate.audit.csv_beside import held_in, relatives_of
from chargegate.audit.csv_file import CsvFile
from chargegate.audit.csv_notes import Notes
from chargegate.audit.life.heads import Heads
from chargegate.ledger.records import AuditRow
from chargegate.observe import log

_RELATIVES: Final = 8


def shard_paths(path: Path, shards: int) -> list[Path]:
    """The log's files: ``path`` alone, or those beside it that ``shards`` above 1 stands for; where it is a symbolic
    link, beside the file that it leads to."""
    if shards == 1:
        return [path]
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    return [path.with_name(f"authorization_audit_shard_{number}.log") for number in range(shards)]


def shard_of(station_id: str, shards: int) -> int:
    """The number of a station's file: the CRC-32 (that of gzip and zlib) of its id, with A to Z in lower case, modulo
    the number of files. It is the same in every process, interpreter and release."""
    return zlib.crc32(station_id.encode("utf-8", "surrogatepass").lower()) % shards


class _Layout(msgspec.Struct, frozen=True):
    """The number of files, and the row up to which none went into files by this number."""

    shards: int
    since: int


class _Earlier(msgspec.Struct, frozen=True):
    """Files of an earlier layout: for each the row up to which it has all of its rows."""

    paths: list[Path]
    floors: list[int]

    def has(self, row: AuditRow) -> bool:
        return row.sequence <= self.floors[shard_of(row.decision.station_id, len(self.floors))]


class CsvShards:
    """Appends each row to the file of its station.

    When the number of files has changed, the next rows go into the new files. The old ones stay as they are. Which rows
    they have is known from their notes, as it is after a kill, until the ledger's position has passed them.
    """

    name = "csv"

    def __init__(
        self,
        path: Path,
        shards: int = 1,
        notes: Path | None = None,
        chain: Chain | None = None,
        heads: Heads | None = None,
    ) -> None:
        """``notes``, ``chain`` and ``heads``: see ``CsvFile``; further notes are made beside the first. Raises
        ``OSError`` if a file cannot be opened for appending."""
        self._path = path
        self._notes = notes
        self._chain = chain
        self._heads = heads
        self._files: list[CsvFile] = []
        self._floors = [0] * shards
        self._certain = 0  # later rows are in no file
        self._earlier: list[_Earlier] = []
        self._dirty: set[int] = set()
        try:
            for shard, file in enumerate(shard_paths(path, shards)):
                self._files.append(CsvFile(file, self._notes_of(shard, shards), chain, heads))
        except OSError:
            self.close()
            raise

    def _notes_of(self, shard: int, shards: int) -> Path | None:
        if self._notes is None or shards == 1:
            return self._notes
        return self._notes.with_name(f"{self._notes.name}.{shard}of{shards}")

    def last_written(self) -> list[tuple[int, str]]:
        """Of the files of every layout that may matter."""
        found = [last for file in self._files if (last := file.last_written())]
        for layout in self._layouts():
            if layout.shards != len(self._files):
                found += [last for shard in range(layout.shards) if (last := self._noted(shard, layout.shards))]
        return found

    def _noted(self, shard: int, shards: int) -> tuple[int, str] | None:
        path = self._notes_of(shard, shards)
        if path is None or not path.exists():
            return None
        notes = Notes(path)
        try:
            note = notes.read()
        finally:
            notes.close()
        return (note.sequence, note.request_id) if note is not None and note.request_id else None

    def resume(self, saved: int = 0, confirmed: Collection[tuple[int, str]] = ()) -> int:
        """Removes also what a crash left unfinished at the ends of the files."""
        shards = len(self._files)
        layouts = self._layouts()
        earlier = [(layout, self._settled(layout, saved, confirmed)) for layout in layouts if layout.shards != shards]
        changed = layouts[-1].shards != shards
        recent = changed or saved <= layouts[-1].since  # what they have was perhaps not noted
        needed = [(layout, files) for layout, files in earlier if recent or max(files.floors) > saved]
        self._earlier = [files for _, files in needed]
        base = min([saved, *(floor for files in self._earlier for floor in files.floors)])
        current = _Layout(shards, base) if changed else layouts[-1]
        kept = [*(layout for layout, _ in needed), current]
        if kept != layouts:
            self._keep(kept)
        for shard, file in enumerate(self._files):
            remembered = file.last_written() in confirmed
            self._floors[shard] = file.resume(base, remembered=remembered, earliest=current.since)
        floors = [*self._floors, *(floor for files in self._earlier for floor in files.floors)]
        self._certain = max(floors)
        return min(floors)

    def _settled(self, layout: _Layout, saved: int, confirmed: Collection[tuple[int, str]]) -> _Earlier:
        """What the files of an earlier layout have. Files that are not where they were are not made again."""
        paths = shard_paths(self._path, layout.shards)
        floors = []
        for shard, path in enumerate(paths):
            last = self._noted(shard, layout.shards)
            floor = max(saved, last[0]) if last in confirmed and last else saved
            with contextlib.suppress(OSError):
                if path.exists():
                    file = CsvFile(path, self._notes_of(shard, layout.shards), self._chain, self._heads)
                    try:
                        floor = file.resume(saved, remembered=last in confirmed, earliest=layout.since)
                    finally:
                        file.close()
            floors.append(floor)
        return _Earlier(paths, floors)

    def _layouts(self) -> list[_Layout]:
        """From the oldest that matters to the newest. Before there was more than one, there was one file."""
        path = self._layouts_path()
        if path is not None:
            with contextlib.suppress(OSError, msgspec.DecodeError):
                if layouts := msgspec.json.decode(path.read_bytes(), type=list[_Layout]):
                    return layouts
        return [_Layout(1, 0)]

    def _layouts_path(self) -> Path | None:
        return None if self._notes is None else self._notes.with_name(f"{self._notes.name}.layouts")

    def _keep(self, layouts: list[_Layout]) -> None:
        path = self._layouts_path()
        if path is None:
            return
        beside = path.with_name(f"{path.name}.new")
        try:
            with beside.open("wb") as file:
                file.write(msgspec.json.encode(layouts))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            log.warning("the number of audit files cannot be kept", path=str(path), error=error.strerror)

    def held(self) -> frozenset[str]:
        """From the ends of the files, of those beside them that were perhaps one of them before, and of those of an
        earlier layout."""
        if len(self._files) == 1 and not self._earlier:
            return self._files[0].held()
        own = [*shard_paths(self._path, len(self._files)), *(path for each in self._earlier for path in each.paths)]
        beside = {path for file in self._files for path in file.relatives(own)}
        beside |= {path for each in self._earlier for old in each.paths for path in relatives_of(old, others=own)}
        newest = sorted(beside, key=_modified, reverse=True)[:_RELATIVES]
        lost = [path for path, file in zip(own, self._files, strict=False) if file.lost_rows]
        return held_in([*own, *newest], whole=lost)

    def write(self, rows: list[AuditRow]) -> None:
        """Writes all of a file's rows or none of them."""
        if rows[0].sequence <= self._certain:
            rows = [row for row in rows if not self._has(row)]
        try:
            for shard, own in self._by_shard(rows).items():
                self._files[shard].write(own)
                self._floors[shard] = own[-1].sequence
                self._dirty.add(shard)
        except OSError:
            self._certain = max(self._certain, *self._floors)
            raise

    def _has(self, row: AuditRow) -> bool:
        own = self._floors[shard_of(row.decision.station_id, len(self._files))]
        return row.sequence <= own or any(each.has(row) for each in self._earlier)

    def _by_shard(self, rows: list[AuditRow]) -> dict[int, list[AuditRow]]:
        shards = len(self._files)
        if shards == 1 and rows:
            return {0: rows}
        found: dict[int, list[AuditRow]] = {}
        for row in rows:
            found.setdefault(shard_of(row.decision.station_id, shards), []).append(row)
        return found

    def sync(self) -> None:
        """Of the files that were written since. It may be called while another thread writes."""
        dirty, self._dirty = self._dirty, set()
        try:
            for shard in dirty:
                self._files[shard].sync()
        except OSError:
            self._dirty |= dirty
            raise

    def close(self) -> None:
        for file in self._files:
            file.close()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
