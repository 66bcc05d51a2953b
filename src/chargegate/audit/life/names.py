"""How an archived file is called: ``ORIGIN/FILE.FIRST-LAST.zst``, with ``~HASH`` before the end where another object
has that name."""

import re
from typing import Final

import msgspec

from chargegate.audit.life.archive import StoredObject
from chargegate.audit.life.compressing import Content
from chargegate.audit.life.files import COMPRESSED, LogFile, compact, from_compact

_AT: Final = r"\d{8}T\d{6}\.\d{3}Z"
_DAY: Final = r"\d{4}-\d\d-\d\d"
_key = re.compile(
    rf"(?P<origin>[^/]+)/(?P<name>(?P<log>[^/]+?)\.(?:{_AT}(?:-\d+)?|{_DAY}(?:-\d+)?\.csv))"
    rf"\.(?P<first>{_AT})-(?P<last>{_AT})"
    rf"(?:~[0-9a-f]+)?{re.escape(COMPRESSED)}"
).fullmatch


class ArchivedFile(msgspec.Struct, frozen=True):
    """What an object's key says. ``name`` is that of the file as it was before, ``first`` and ``last`` the times of its
    oldest and newest row (Unix ms)."""

    key: str
    origin: str
    name: str
    log: str
    first: int
    last: int
    size: int


def key_of(origin: str, file: LogFile, content: Content, *, other: bool = False) -> str:
    """With ``other`` the key for a file whose own name is taken: nobody else's has the same content."""
    first = file.rotated_at if content.first is None else content.first
    last = file.rotated_at if content.last is None else content.last
    ending = f"~{content.sha256[:16]}" if other else ""
    return f"{origin}/{file.name}.{compact(first)}-{compact(last)}{ending}{COMPRESSED}"


def archived(item: StoredObject) -> ArchivedFile | None:
    """None for an object that is not one of ours."""
    match = _key(item.key)
    if match is None:
        return None
    try:
        first, last = from_compact(match["first"]), from_compact(match["last"])
    except ValueError:
        return None
    return ArchivedFile(item.key, match["origin"], match["name"], match["log"], first, last, item.size)
