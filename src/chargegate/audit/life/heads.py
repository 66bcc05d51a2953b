"""Signed statements about the chains: how far each came, what was deleted because it was old, and when it was on.

They are what shows that the end of a log was cut off. So a head is replaced only by a later one whose chain contains
it; where the chain does not, the head stays, and that its row is gone is signed as well.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from chargegate.audit.chain import START, Chain, Link
from chargegate.audit.life.files import DAY_MS, EXPORTS, sync_folder

FILE: Final = "audit.heads"
"""The signed statements, in ``data_dir``: one object of JSON a line, of each log one head a day."""

_EVER: Final = 253_402_300_799_999  # the end of the year 9999

Kind = Literal["head", "start", "gone", "lost", "on", "off"]


class Statement(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is said of row ``number`` of a log, which has this MAC. ``at`` is in Unix ms.

    ``head``: the log ended with it then. ``start``: it and all rows before it were deleted because they were old.
    ``gone``: so were the rows from ``first`` on up to it, and ``before`` is the MAC of the row before these. ``lost``:
    it was there, and was not when the service looked. ``on``: from the next row on the log is a chain, and no line
    that was decided later is without a link; ``at`` is 0 where the log was empty. ``off``: the chain ended with this
    row, and lines that were decided later have no link.
    """

    kind: Kind
    log: str
    number: int
    mac: str
    at: int
    signature: str = ""
    first: int = 0
    before: str = ""

    def signed(self, chain: Chain) -> "Statement":
        text = f"{self.kind}\x00{self.log}\x00{self.number}\x00{self.mac}\x00{self.at}"
        if self.kind == "gone":
            text += f"\x00{self.first}\x00{self.before}"
        return msgspec.structs.replace(self, signature=chain.signature(text))

    @property
    def covers(self) -> tuple[int, str]:
        """Where the deleted rows begin: their first number, and the MAC before."""
        return (self.first, self.before) if self.kind == "gone" else (1, START)


def started_at(statements: Iterable[Statement], log: str) -> int:
    """Up to which row all of a log was deleted because it was old."""
    return max((each.number for each in statements if (each.kind, each.log) == ("start", log)), default=0)


def lost_in(statements: Sequence[Statement]) -> list[Statement]:
    """Those that say that a row is gone which should be there."""
    return [each for each in statements if each.kind == "lost" and each.number > started_at(statements, each.log)]


def turns_of(statements: Sequence[Statement], log: str) -> list[Statement]:
    """When the chain of a log was switched on and off. Until it was on for this log itself, as for a shard that is new,
    what was said of the log that became a chain last counts."""
    turns = [each for each in statements if each.kind in ("on", "off")]
    own = [each for each in turns if each.log == log]
    firsts = {each.log: each for each in reversed(turns) if each.log != log}
    others = [each for each in firsts.values() if each.kind == "on"]
    if (own and own[0].kind == "on") or not others:
        return own
    last = max(others, key=lambda each: each.at).log
    return [*(each for each in turns if each.log == last), *own]


def periods(statements: Sequence[Statement], log: str) -> list[tuple[int, int]]:
    """From when to when (Unix ms) a log was a chain."""
    found: list[tuple[int, int]] = []
    since: int | None = None
    for each in turns_of(statements, log):
        if each.kind == "on":
            since = each.at if since is None else since
        elif since is not None:
            found.append((since, each.at))
            since = None
    return found if since is None else [*found, (since, _EVER)]


Version = tuple[int, int, int, int]


class Heads:
    """The signed statements of this service. Every method raises ``OSError``."""

    def __init__(self, folder: Path, chain: Chain) -> None:
        """``folder`` is ``data_dir``."""
        self.folder = folder
        self._path = folder / FILE
        self.chain = chain

    def head(
        self, log: str, look: Callable[[], Link], contains: Callable[[Statement], bool | None], at: int
    ) -> list[Statement]:
        """Sign the end of a log, which ``look`` tells. ``contains`` says whether the chain of now has the row of an
        earlier head, None where that cannot be told. Returns what was found lost."""
        with self._locked():
            told, damaged = self._read()
            link = look()
            heads = [each for each in told if (each.kind, each.log) == ("head", log)]
            if not link.number or (heads and (heads[-1].number, heads[-1].mac) == (link.number, link.mac)):
                return []
            known = {(each.number, each.mac) for each in told if (each.kind, each.log) == ("lost", log)}
            kept, lost = [], []
            for each in heads:
                today = each.at // DAY_MS == at // DAY_MS
                held = contains(each) if today or each is heads[-1] else None
                if held is False and (each.number, each.mac) not in known:
                    lost.append(Statement("lost", log, each.number, each.mac, at).signed(self.chain))
                if not (held and today):
                    kept.append(each)
            others = [each for each in told if each not in heads]
            kept = [each for each in kept if (each.number, each.mac) != (link.number, link.mac)]
            self._write([*others, *lost, *kept, Statement("head", log, link.number, link.mac, at)], damaged)
            return lost

    def lost(self, log: str, link: Link, at: int) -> None:
        """Sign that this row was there, and is not any more, or was not for a time."""
        with self._locked():
            told, damaged = self._read()
            if not any(
                (each.kind, each.log, each.number, each.mac) == ("lost", log, link.number, link.mac) for each in told
            ):
                self._write([*told, Statement("lost", log, link.number, link.mac, at)], damaged)

    def deleted(self, log: str, first: Link, last: Link, at: int) -> None:
        """Sign that these rows go because they are old. What was deleted before and adjoins becomes one with them, and
        what else was said of rows up to the start is dropped."""
        with self._locked():
            told, damaged = self._read()
            if any(
                each.kind in ("start", "gone")
                and each.log == log
                and each.covers[0] <= first.number
                and last.number <= each.number
                for each in told
            ):
                return
            joined = Statement("gone", log, last.number, last.mac, at, "", first.number, first.before or "")
            kept = []
            for each in sorted(told, key=lambda each: each.number):
                if each.kind not in ("start", "gone") or each.log != log:
                    kept.append(each)
                elif (each.number + 1, each.mac) == (joined.first, joined.before):
                    start, before = each.covers
                    joined = msgspec.structs.replace(joined, first=start, before=before)
                elif (joined.number + 1, joined.mac) == each.covers:
                    joined = msgspec.structs.replace(joined, number=each.number, mac=each.mac)
                else:
                    kept.append(each)
            if (joined.first, joined.before) == (1, START):
                joined = Statement("start", log, joined.number, joined.mac, at)
                kept = [
                    each
                    for each in kept
                    if each.log != log or each.kind in ("on", "off") or each.number > joined.number
                ]
            self._write([*kept, joined], damaged)

    def started(self, log: str, link: Link, at: int) -> None:
        """Sign that all rows up to this one go because they are old."""
        with self._locked():
            told, damaged = self._read()
            if link.number > started_at(told, log):
                kept = [each for each in told if (each.kind, each.log) != ("start", log)]
                self._write([*kept, Statement("start", log, link.number, link.mac, at)], damaged)

    def turned(self, log: str, *, on: bool, link: Link, at: int) -> None:
        """Sign that the chain of a log is on or off from now on, if that is new. See ``Statement`` for ``at``."""
        with self._locked():
            told, damaged = self._read()
            own = [each for each in told if each.log == log and each.kind in ("on", "off")]
            turns = own if on or not _is_csv(log) else turns_of([each for each in told if _is_csv(each.log)], log)
            if (bool(turns) and turns[-1].kind == "on") == on:
                return
            if own and at == 0:
                at = own[-1].at
            self._write([*told, Statement("on" if on else "off", log, link.number, link.mac, at)], damaged)

    def is_chain(self, log: str) -> bool:
        """Whether it is signed of this log itself that its chain is on."""
        own = [each for each in self.statements() if each.log == log and each.kind in ("on", "off")]
        return bool(own) and own[-1].kind == "on"

    def chain_of(self, log: str) -> str:
        """The log whose chain is on and counts for this one: this one itself, or that which ``turns_of`` takes. Empty
        where the chain is off."""
        turns = turns_of([each for each in self.statements() if _is_csv(each.log)], log)
        return turns[-1].log if turns and turns[-1].kind == "on" else ""

    def signed_at(self, log: str) -> int:
        """When something was signed last about what is in a log (Unix ms)."""
        return max(
            (each.at for each in self.statements() if each.log == log and each.kind in ("on", "head")), default=0
        )

    def merge(self, others: Sequence[Statement]) -> list[Statement]:
        """Take up again what was signed, and is not here any more. Returns that."""
        with self._locked():
            told, damaged = self._read()
            lacking = lacking_in(told, others)
            if lacking:
                self._write([*lacking, *told], damaged)
            return lacking

    def version(self) -> Version | None:
        """What differs once the file was written or replaced; None where there is no file. Raises ``OSError``."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def statements(self) -> list[Statement]:
        """Those that bear our signature."""
        return self._read()[0]

    def damaged(self) -> list[bytes]:
        """The lines that do not."""
        return self._read()[1]

    def _read(self) -> tuple[list[Statement], list[bytes]]:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return [], []
        found, damaged = [], []
        for line in lines:
            statement = decoded(line, self.chain)
            if statement is None:
                damaged.append(line)
            else:
                found.append(statement)
        return found, damaged

    def _write(self, statements: Sequence[Statement], damaged: Sequence[bytes]) -> None:
        """Lines that we did not sign stay, so that a verification names them."""
        signed = [each if each.signature else each.signed(self.chain) for each in statements]
        draft = self._path.with_name(f".{FILE}.{os.getpid()}")
        with open(draft, "wb", opener=_private) as file:
            file.writelines(line + b"\n" for line in [*map(msgspec.json.encode, signed), *damaged])
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._path)
        sync_folder(self._path.parent)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Against other processes of this ``data_dir``."""
        lock = os.open(self._path.with_name(f".{FILE}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _is_csv(log: str) -> bool:
    """Whether a name is that of a CSV log, and not of daily exports or of the rows of a process."""
    return log != EXPORTS and "@" not in log


def decoded(text: bytes | str, chain: Chain) -> Statement | None:
    """A statement that bears our signature; None for anything else."""
    try:
        statement = msgspec.json.decode(text, type=Statement)
    except msgspec.DecodeError:
        return None
    return statement if statement == statement.signed(chain) else None


def lacking_in(told: Sequence[Statement], others: Sequence[Statement]) -> list[Statement]:
    """Which of the others are neither told nor outdated by what is told: a head by a later one, a deletion by one that
    contains it."""
    lacking = []
    for other in others:
        same = [each for each in told if each.log == other.log]
        if other.number <= started_at(same, other.log) and other.kind in ("head", "start", "gone", "lost"):
            continue
        if other.kind == "head":
            known = any(each.kind == "head" and each.number >= other.number for each in same)
        elif other.kind in ("start", "gone"):
            known = any(
                each.kind in ("start", "gone") and each.covers[0] <= other.covers[0] and other.number <= each.number
                for each in same
            )
        else:
            known = other in same
        if not known:
            lacking.append(other)
    return lacking


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
