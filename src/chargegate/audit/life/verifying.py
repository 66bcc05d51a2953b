"""Verifies the chain of a log through all its files: rotated, compressed, archived, and the one that is written.

Each file is verified alone, and then that each goes on where the one before ended. A row whose MAC is wrong was
changed. Where numbers are left out, rows were removed. A row whose number was there before was put in between, or
moved. The signed statements tell whether the chain begins and ends where it should, and when there was one.

The service goes on meanwhile. So the files are listed again, and what is new is read, until nothing is.
"""

import asyncio
import contextlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from chargegate.audit.chain import Chain
from chargegate.audit.life.archive import ArchiveUnavailable, StoredObject
from chargegate.audit.life.compressing import Damaged
from chargegate.audit.life.files import COMPRESSED, LogFiles, log_in, open_regular
from chargegate.audit.life.heads import Heads, Statement, periods
from chargegate.audit.life.joining import Problem, Segment, between
from chargegate.audit.life.names import ArchivedFile, archived
from chargegate.audit.life.one_file import Verifier, identity, segment_of
from chargegate.audit.life.restoring import fetch
from chargegate.audit.life.steps import Life

_MOST_PROBLEMS: Final = 1000
_MOST_TURNS: Final = 100

Registered = Callable[[Collection[str]], Awaitable[Mapping[str, str]]]


class Verified(msgspec.Struct, frozen=True):
    """``head``: the number and MAC of the last row of each log, to be kept elsewhere as a proof."""

    files: int
    rows: int
    unchained: int
    head: dict[str, str]
    problems: list[Problem]


def joined(parts: Sequence[Verified]) -> Verified:
    """What was found in the files of several logs."""
    heads = {log: head for part in parts for log, head in part.head.items()}
    return Verified(
        sum(part.files for part in parts),
        sum(part.rows for part in parts),
        sum(part.unchained for part in parts),
        heads,
        [problem for part in parts for problem in part.problems],
    )


class _Files:
    """Reads every file once, whatever name it has meanwhile."""

    def __init__(self, life: Life, verifier: Verifier, on_file: Callable[[int, int], None]) -> None:
        self._life = life
        self._verifier = verifier
        self._on_file = on_file
        self.segments: dict[object, Segment] = {}
        self._listed: set[object] = set()

    async def read(self) -> None:
        """Raises ``ArchiveUnavailable`` and ``OSError``."""
        seen = 0  # how often in a row there was nothing new: one list may lack a file that is renamed just then
        for _ in range(_MOST_TURNS):
            here = await asyncio.to_thread(self._here)
            archived = await self._life.archived_here()  # afterwards, as files go there from here
            names = {path.name.removesuffix(COMPRESSED) for path in here.values()}
            there = _known_by([file for file in archived if file.name not in names])
            self._listed = {*here, *there}
            wanted = [key for key in (*there, *here) if key not in self.segments]
            for number, key in enumerate(wanted):
                self._on_file(len(self.segments), len(self.segments) + len(wanted) - number)
                if key in there:
                    await self._archived(key, there[key])
                else:
                    await asyncio.to_thread(self._local, key, here[key])
            seen = 0 if wanted else seen + 1
            if seen > 1:
                break
        self._on_file(len(self.segments), len(self.segments))
        self._drop_moved()

    def _here(self) -> dict[object, Path]:
        """What each file is known by: one that was rotated by its name, and any other by what it is."""
        rotated = {file.path.name: file.name for file in self._life.files.rotated()}
        found: dict[object, Path] = {}
        for path in self._life.files.beside():
            name = rotated.get(path.name)
            if name is not None:
                found["file", name] = path
            else:
                with contextlib.suppress(FileNotFoundError):  # it was renamed just now
                    found["written", _identity(path)] = path
        return found

    async def _archived(self, key: object, file: ArchivedFile) -> None:
        archive = self._life.archive
        with tempfile.TemporaryDirectory(prefix="chargegate-verify-") as folder:
            path = Path(folder) / "fetched"
            try:
                await fetch(self._life, file, path)
            except Damaged as error:
                self.segments[key] = self._verifier.unreadable(file.log, file.key, str(error))
                return
            except ArchiveUnavailable:
                if archive is not None and await archive.attributes(file.key) is None:
                    return  # it was deleted just now
                raise
            self.segments[key] = await asyncio.to_thread(segment_of, self._verifier, file.log, file.key, path)

    def _local(self, key: object, path: Path) -> None:
        log = self._life.files.log_of(path.name)
        try:
            segment = segment_of(self._verifier, log, path.name, path)
        except FileNotFoundError:
            return  # it was renamed, compressed, archived or deleted just now, and the next list tells
        written = ("written", segment.identity)
        if isinstance(key, tuple) and key[0] == "written":
            key = written if segment.identity else key
        else:
            self.segments.pop(written, None)  # it was read while it was written
        self.segments[key] = segment

    def _drop_moved(self) -> None:
        """A file that was read while it was written, and was rotated and compressed before the list was made again, was
        read once more."""
        for key in self.segments.keys() - self._listed:
            moved = self.segments[key]
            begins = [
                s
                for s in self.segments.values()
                if (s.log, s.first, s.before) == (moved.log, moved.first, moved.before)
            ]
            if len(begins) > 1 or not (moved.rows or moved.unchained or moved.problems):
                del self.segments[key]


def _identity(path: Path) -> object:
    """Its path, where it cannot be read. Raises ``FileNotFoundError``."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise
    except OSError:
        return path
    try:
        return identity(file)
    finally:
        os.close(file)


def _known_by(archived: Sequence[ArchivedFile]) -> dict[object, ArchivedFile]:
    """By the name that it had here, and a further one of that name by its key."""
    found: dict[object, ArchivedFile] = {}
    for file in archived:
        name = ("file", file.name)
        found["archived" if name in found else "file", file.key if name in found else file.name] = file
    return found


async def verify(
    life: Life,
    heads: Heads,
    on_file: Callable[[int, int], None],
    *,
    kept: Sequence[Statement] = (),
    registered: Registered | None = None,
) -> Verified:
    """Verify all files of this service's log, here and archived. ``kept``: statements that are known from elsewhere.
    ``registered`` tells of files the SHA-256 of those that the database knows as daily exports. Raises
    ``ArchiveUnavailable`` and ``OSError``."""
    before = await _statements(life, heads, kept)
    files = _Files(life, Verifier(heads.chain, before), on_file)
    await files.read()
    after = await _statements(life, heads, kept)
    # A head that was signed meanwhile may be of a row that was written after its file was read.
    told = [each for each in before if each.kind == "head"] + [each for each in after if each.kind != "head"]
    segments = list(files.segments.values())
    problems = _without_statement(segments, told)
    if registered is not None:
        problems += await _unregistered(segments, told, registered)
    return _result(segments, told, problems)


def verify_only(paths: Sequence[Path], chain: Chain, csv_path: Path) -> Verified:
    """Verify files that somebody has, and that those of one log follow each other. They may be of ``csv_path`` or of
    any other log. Raises ``FileNotFoundError``."""
    verifier, own = Verifier(chain, []), LogFiles(csv_path)
    names = {path: own.known_log_of(path.name) or log_in(path.name) for path in paths}
    read = [segment_of(verifier, log, str(path), path) for path, log in names.items()]
    return _result(read, _beginnings(read))


def _beginnings(segments: Sequence[Segment]) -> list[Statement]:
    """As if all that stands before the first of some files had been deleted."""
    firsts: dict[str, Segment] = {}
    for segment in sorted(segments, key=lambda segment: segment.first):
        if segment.rows:
            firsts.setdefault(segment.log, segment)
    return [Statement("start", log, first.first - 1, first.before, 0) for log, first in firsts.items()]


async def _statements(life: Life, heads: Heads, kept: Sequence[Statement]) -> list[Statement]:
    told = await asyncio.to_thread(heads.statements)
    found = list(dict.fromkeys([*kept, *told]))
    return [each for each in found if life.files.is_log(each.log)]


def _without_statement(segments: Sequence[Segment], told: Sequence[Statement]) -> list[Problem]:
    """Each log that is a chain has a statement of when that began."""
    said = {each.log for each in told if each.kind == "on"}
    return [
        Problem("statement_missing", log, None, None, "", "nothing signed says since when it is a chain")
        for log in sorted({segment.log for segment in segments if segment.rows} - said)
    ]


async def _unregistered(
    segments: Sequence[Segment], told: Sequence[Statement], registered: Registered
) -> list[Problem]:
    """Daily exports without the chain, where there was one at some time, that the database does not know."""
    plain = [(_name_of_export(each.file), each) for each in segments if each.unchained and periods(told, each.log)]
    known = await registered([name for name, _ in plain]) if plain else {}
    detail = "it has no chain, and the database knows no such export"
    return [
        Problem("not_in_chain", each.file, None, None, "", detail)
        for name, each in plain
        if known.get(name) != each.sha256
    ]


def _name_of_export(file: str) -> str:
    """That which it had when it was made, also of one that is archived."""
    found = archived(StoredObject(file, 0))
    return file if found is None else found.name + COMPRESSED


def _result(segments: Sequence[Segment], statements: Sequence[Statement], problems: Sequence[Problem] = ()) -> Verified:
    """After all files: whether they join, and begin and end where the signed statements say."""
    by_log: dict[str, list[Segment]] = defaultdict(list)
    for segment in segments:
        by_log[segment.log].append(segment)
    found = [*(problem for segment in segments for problem in segment.problems), *problems]
    heads = {}
    for log in sorted(by_log.keys() | {each.log for each in statements}):
        chained = sorted((s for s in by_log[log] if s.rows), key=lambda segment: (segment.first, segment.last))
        between(log, chained, [each for each in statements if each.log == log], found.append)
        if chained:
            heads[log] = f"{chained[-1].last}-{chained[-1].mac}"
    return Verified(
        len(segments), sum(s.rows for s in segments), sum(s.unchained for s in segments), heads, found[:_MOST_PROBLEMS]
    )
