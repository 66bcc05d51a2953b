"""How far the chain of a log has come: noted so that it goes on, and signed so that its ends can be trusted."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from chargegate.audit.chain import BEGINNING, Chain, Link
from chargegate.audit.csv_lines import UNREADABLE, last_link, tail_of
from chargegate.audit.life.files import sync_folder

FILE: Final = "audit.heads"
"""The signed statements, in ``data_dir``: one object of JSON a line, of each log one a day."""

_LINK_BYTES: Final = 8192
_NEWEST: Final = 8
_DAY_MS: Final = 86_400_000


class Statement(msgspec.Struct, frozen=True):
    """``head``: the log had so many rows then, and the last had this MAC. ``start``: the rows up to this one, which had
    this MAC, were deleted because they were old. ``at`` is in Unix ms."""

    kind: Literal["head", "start"]
    log: str
    number: int
    mac: str
    at: int
    signature: str = ""

    def signed(self, chain: Chain) -> "Statement":
        text = f"{self.kind}\x00{self.log}\x00{self.number}\x00{self.mac}\x00{self.at}"
        return msgspec.structs.replace(self, signature=chain.signature(text))


class Heads:
    """The signed statements of this service."""

    def __init__(self, folder: Path, chain: Chain) -> None:
        """``folder`` is ``data_dir``."""
        self._path = folder / FILE
        self.chain = chain

    def add(self, kind: Literal["head", "start"], log: str, link: Link, at: int) -> None:
        """The newest of a day replaces the others of that day. Nothing where one says as much already. Raises
        ``OSError``."""
        with self._locked():
            self._add(kind, log, link, at)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Against other processes of this ``data_dir``."""
        lock = os.open(self._path.with_name(f".{FILE}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _add(self, kind: Literal["head", "start"], log: str, link: Link, at: int) -> None:
        kept = self.statements()
        same = [each for each in kept if (each.kind, each.log) == (kind, log)]
        if any(each.number >= link.number for each in same):
            return
        replaced = [each for each in same if kind == "start" or each.at // _DAY_MS == at // _DAY_MS]
        kept = [each for each in kept if each not in replaced]
        kept.append(Statement(kind, log, link.number, link.mac, at).signed(self.chain))
        draft = self._path.with_name(f".{FILE}.{os.getpid()}")
        with open(draft, "wb", opener=_private) as file:
            file.write(b"".join(msgspec.json.encode(each) + b"\n" for each in kept))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._path)
        sync_folder(self._path.parent)

    def statements(self) -> list[Statement]:
        """Those that bear our signature. Raises ``OSError``."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError):  # a line that a crash cut off
                statement = msgspec.json.decode(line, type=Statement)
                if statement == statement.signed(self.chain):
                    found.append(statement)
        return found


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def newest_link(log: Path) -> Link:
    """The link of the newest row in the files beside a log, or that was noted before they went elsewhere."""
    real = Path(os.path.realpath(log))
    links = [_noted(real)]
    with contextlib.suppress(OSError):
        beside = [
            path
            for path in real.parent.iterdir()
            if path.name.startswith(real.name + ".") or path.name.startswith(real.name + "-")
        ]
        beside.sort(key=lambda path: path.lstat().st_mtime, reverse=True)
        links += [link_at_end(path) for path in beside[:_NEWEST]]
    return max(links, key=lambda link: link.number)


def link_at_end(path: Path) -> Link:
    """The link of a file's last row; the beginning where it has none or cannot be read."""
    with contextlib.suppress(*UNREADABLE):
        return last_link(tail_of(path)[-_LINK_BYTES:])
    return BEGINNING


def note_link(log: Path, link: Link) -> None:
    """Remember a link for when the file goes in which it is. Raises ``OSError``."""
    if link.number <= _noted(log).number:
        return
    path = _note_path(log)
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("wb") as file:
        file.write(msgspec.json.encode(link))
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_folder(path.parent)


def _noted(log: Path) -> Link:
    try:
        return msgspec.json.decode(_note_path(log).read_bytes(), type=Link)
    except (OSError, msgspec.DecodeError):
        return BEGINNING


def _note_path(log: Path) -> Path:
    return log.with_name(f".{log.name}.link")
