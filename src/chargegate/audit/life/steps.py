"""The steps of a file's life: rotate, compress, archive, prune. Each can be killed anywhere, and run again.

What a step makes is written beside, synced and read back before it counts, and only then the step removes what it was
made from. While a process is dead between the two, both are there with the same name; the next run recognises them and
goes on. The times are arguments, so that nothing depends on when the steps run.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from chargegate.audit.chain import BEGINNING, Link, link_of
from chargegate.audit.life import rotating
from chargegate.audit.life.archive import Archive
from chargegate.audit.life.compressing import Content, Damaged, begins_after, compress, content_of
from chargegate.audit.life.files import COMPRESSED, EXPORTS, LogFile, LogFiles, open_regular, remove
from chargegate.audit.life.heads import Heads, Statement
from chargegate.audit.life.links import holds, last_of, link_at_end, link_at_start, mac_in, note_link
from chargegate.audit.life.names import ArchivedFile, archived, key_of
from chargegate.observe import log

T = TypeVar("T")

Step = Literal["rotate", "compress", "archive", "prune", "export"]
STEPS: Final[tuple[Step, ...]] = ("rotate", "prune", "compress", "archive")
"""Those of files that are there, in this order: what is to go is not compressed or uploaded before."""

SETTLE_S: Final = 10.0
"""How long a rotated file stays in its folder at least. By then the sinks' positions cover its rows, so that after a
power cut nobody looks for them there."""


class Ages(msgspec.Struct, frozen=True):
    """When a step is due, in milliseconds; 0 for ``rotate_bytes``, ``rotate_ms`` and ``keep_ms`` is never."""

    rotate_ms: int
    rotate_bytes: int
    compress_ms: int
    archive_ms: int
    keep_ms: int


class Item(msgspec.Struct, frozen=True):
    """What a step works on: a file that is written, one that was rotated, or one that is archived."""

    step: Step
    subject: Path | LogFile | ArchivedFile

    @property
    def name(self) -> str:
        """The file as people know it."""
        match self.subject:
            case Path():
                return self.subject.name
            case LogFile():
                return self.subject.path.name
            case _:
                return self.subject.key

    @property
    def size(self) -> int:
        if isinstance(self.subject, Path):
            try:
                return self.subject.stat().st_size
            except OSError:
                return 0
        return self.subject.size


class Done(msgspec.Struct, frozen=True):
    """What a step did, or with ``--dry-run`` would do. ``to`` is the new name; empty where the file is gone, and None
    where the content of the file would tell it."""

    step: Step
    file: str
    to: str | None
    bytes: int


class Life:
    """The files of one log and its archive. Who carries out steps holds ``files.locked()``."""

    def __init__(
        self,
        files: LogFiles,
        ages: Ages,
        archive: Archive | None,
        origin: str,
        *,
        heads: Heads | None = None,
        chain: bool = True,
        settle_s: float = SETTLE_S,
    ) -> None:
        """``heads``: where it is signed which rows of a chain were deleted because they were old, and while the log is
        a ``chain`` how far that has come."""
        self.files = files
        self._heads = heads
        self._is_chain = chain
        self.archive = archive
        self._ages = ages
        self._origin = origin
        self._settle_s = settle_s
        self._stop = threading.Event()

    def stop(self) -> None:
        """End what is under way in another thread: it raises ``Stopped``."""
        self._stop.set()

    async def due(
        self, step: Step, now: int, *, every: bool = False, before: int | None = None, only_here: bool = False
    ) -> list[Item]:
        """What a step has to do now (Unix ms), oldest first. With ``every`` it does not matter how old a file is.
        ``before``: for ``prune``, instead of the age. ``only_here``: nothing in the archive. Raises ``OSError`` and
        ``ArchiveUnavailable``."""
        match step:
            case "rotate":
                subjects: list[Any] = await self._in_thread(self._to_rotate, now, every)
            case "compress":
                files = await self._in_thread(self.files.rotated)
                subjects = [
                    f for f in files if not f.compressed and self._is_old(f, now, self._ages.compress_ms, every)
                ]
            case "archive":
                files = await self._in_thread(self.files.rotated) if self.archive else []
                subjects = [f for f in files if self._is_old(f, now, self._ages.archive_ms, every)]
            case "prune":
                subjects = await self._to_prune(now, before, only_here=only_here)
            case "export":
                subjects = []
        return [Item(step, subject) for subject in subjects]

    def _to_rotate(self, now: int, every: bool) -> list[Path]:
        ages = self._ages
        return [
            path
            for path in self.files.written()
            if (rotating.has_rows(path) if every else rotating.is_due(path, now, ages.rotate_ms, ages.rotate_bytes))
        ]

    @staticmethod
    def _is_old(file: LogFile, now: int, age_ms: int, every: bool) -> bool:
        return every or now - file.rotated_at >= age_ms

    async def _to_prune(self, now: int, before: int | None, *, only_here: bool) -> list[LogFile | ArchivedFile]:
        if before is None:
            if not self._ages.keep_ms:
                return []
            before = now - self._ages.keep_ms
        limit = min(before, now)
        files = await self._in_thread(self.files.rotated)
        old: list[LogFile | ArchivedFile] = [
            file
            for file in files
            if file.rotated_at < limit and not await self._in_thread(begins_after, file.path, limit)
        ]
        there = [] if only_here else await self._archived_by_us()
        return old + [file for file in there if file.last < limit]

    async def archived_here(self) -> list[ArchivedFile]:
        """What this service has put into the archive, of this log. Raises ``ArchiveUnavailable``."""
        return [file for file in await self._archived_by_us() if self.files.is_log(file.log)]

    async def _archived_by_us(self) -> list[ArchivedFile]:
        """Also what is of a log that had another name then."""
        return [file for file in await self.archived(f"{self._origin}/") if self.is_own(file)]

    def is_own(self, file: ArchivedFile) -> bool:
        """Whether this service has archived it."""
        return file.origin == self._origin

    async def archived(self, below: str = "") -> list[ArchivedFile]:
        """What anybody has: of daily exports if these files are some, else of logs. Raises ``ArchiveUnavailable``."""
        if self.archive is None:
            return []
        found = [file for item in await self.archive.objects(below) if (file := archived(item))]
        return [file for file in found if (file.log == EXPORTS) == self.files.exports]

    async def carry_out(self, item: Item, now: int) -> Done | None:
        """None where somebody else has done it meanwhile. Raises ``OSError``, ``Damaged``, ``Stopped`` and
        ``ArchiveUnavailable``; then nothing is lost, and the next run goes on."""
        subject, size = item.subject, item.size
        match item.step, subject:
            case "rotate", Path():
                target = await self._in_thread(rotating.rotate, subject, now)
                return Done("rotate", item.name, target.name, size) if target else None
            case "compress", LogFile():
                target = await self._in_thread(compress, subject, self._stop)
                return Done("compress", item.name, target.name, target.stat().st_size)
            case "archive", LogFile():
                key, content = await self._archive(subject)
                return Done("archive", item.name, key, content.size)
            case "prune", LogFile():
                last = await self._in_thread(self._kept_link, subject.log, subject.path)
                first = await self._in_thread(link_at_start, subject.path)
                self._deleted(subject.log, first, last, now)
                await self._in_thread(_remove_both, subject)
            case "prune", ArchivedFile() if self.archive is not None:
                said = await self.archive.attributes(subject.key) or {}
                self._deleted(subject.log, _link(said.get("first", "")), _link(said.get("link", "")), now)
                await self.archive.delete(subject.key)
        return Done(item.step, item.name, "", size)

    def target_of(self, item: Item, now: int) -> str | None:
        """What ``Done.to`` would be after a step."""
        match item.step, item.subject:
            case "rotate", Path():
                return rotating.free_name(item.subject, now).name
            case "compress", LogFile():
                return item.name + COMPRESSED
            case "prune", _:
                return ""
        return None

    def _kept_link(self, log: str, path: Path) -> Link:
        """The last link in a file that goes from its folder, noted so that the next row can follow it."""
        link = link_at_end(path)
        if link.number:
            note_link(self.files.folder / log, link)
        return link

    def _deleted(self, log: str, first: Link, last: Link, now: int) -> None:
        """Sign it before the file goes: a process may die in between."""
        if self._heads is None or not last.number:
            return
        if first.number and first.before is not None:
            self._heads.deleted(log, first, last, now)
        else:
            self._heads.started(log, last, now)

    def sign_heads(self, now: int) -> list[Statement]:
        """Sign how far each log has come. Returns what was signed before and is not there any more. Raises
        ``OSError``."""
        lost = []
        for path in self.files.written() if self._is_chain else []:
            with contextlib.suppress(FileNotFoundError):  # it was rotated just now
                lost += self._sign_head(path, now)
        return lost

    def _sign_head(self, path: Path, now: int) -> list[Statement]:
        if self._heads is None:
            return []
        file = open_regular(path)
        try:
            os.fsync(file)  # what is signed survives a power cut

            def contains(earlier: Statement) -> bool | None:
                if earlier.number > last_of(file).number:
                    return False
                mac = mac_in(file, earlier.number)
                if mac is None:
                    files = [file.path for file in self.files.rotated() if file.log == path.name]
                    return holds(files, Link(earlier.number, earlier.mac))
                return mac == earlier.mac

            return self._heads.head(path.name, lambda: last_of(file), contains, now)
        finally:
            os.close(file)

    async def _archive(self, file: LogFile) -> tuple[str, Content]:
        if self.archive is None:
            raise Damaged("there is no archive")  # never: due() gave nothing then
        if file.compressed:
            path = file.path
        else:
            path = await self._in_thread(compress, file, self._stop)
        content = await self._in_thread(content_of, path, self._stop)
        link = await self._in_thread(self._kept_link, file.log, path)
        first = await self._in_thread(link_at_start, path)
        key = await self._uploaded(self.archive, file, path, content, (first, link))
        await self._settled(path)
        await self._in_thread(remove, path)
        return key, content

    async def _uploaded(
        self, archive: Archive, file: LogFile, path: Path, content: Content, links: tuple[Link, Link]
    ) -> str:
        """The key under which the archive holds exactly this content, which was read back. ``links``: of the first and
        the last row."""
        said = {"sha256": content.sha256, "size": str(content.size), "rows": str(content.rows)}
        first, last = links
        if last.number:
            said["link"] = f"{last.number}-{last.mac}"
        if first.before is not None:
            said["first"] = f"{first.number}-{first.before}-{first.mac}"
        for key in (key_of(self._origin, file, content), key_of(self._origin, file, content, other=True)):
            held = await archive.attributes(key)
            if held is None:
                await archive.put(key, path, said)
                held = await archive.attributes(key)
            if held is None or held.get("sha256") != content.sha256:
                continue  # another object has this name
            if await archive.sha256(key) != content.sha256:
                log.warning("an archived file was not what it says it is, and is replaced", file=key)
                await archive.put(key, path, said, replace=True)
                if await archive.sha256(key) != content.sha256:
                    raise Damaged(f"{key}: the archive gives back something else than was put there")
            return key
        raise Damaged(f"{path.name}: other objects have its names in the archive")

    async def _settled(self, path: Path) -> None:
        """Compression keeps the time of the last write."""
        age = time.time() - (await self._in_thread(path.stat)).st_mtime
        if 0 <= age < self._settle_s:
            await asyncio.sleep(self._settle_s - age)

    async def _in_thread(self, work: Callable[..., T], *values: Any) -> T:
        return await asyncio.to_thread(work, *values)


def _link(text: str) -> Link:
    found = link_of(f",{text}")
    return found[1] if found else BEGINNING


def _remove_both(file: LogFile) -> None:
    """Also what a killed process left beside it, compressed or not."""
    remove(file.path.with_name(file.name + COMPRESSED))
    remove(file.path.with_name(file.name))
