"""Parameters of paths and queries: what they may be, for machines and for people, in one place."""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from starlette.requests import Request

from chargegate.api.operations import Parameter, Schema
from chargegate.api.schemas import UUID
from chargegate.model import Invalid, Status, from_iso, is_uuid

T = TypeVar("T")

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000

_MAX_CURSOR: Final = 512
# Every base64url text of 9 bytes or more: 8 of time, the rest an id.
_CURSOR: Final = "(?:[A-Za-z0-9_-]{4}){3,127}(?:[A-Za-z0-9_-]{2,3})?"
_cursor = re.compile(_CURSOR, re.ASCII).fullmatch
_hash = re.compile("[0-9a-fA-F]{64}").fullmatch
_number = re.compile("0*[0-9]{1,4}", re.ASCII).fullmatch


class Query:
    """A query string. Faults are gathered, so that one answer names them all; unknown names are ignored,
    unless they are refused."""

    def __init__(self, request: Request) -> None:
        self._pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
        self._faults: dict[str, str] = {}

    def read(self, parameter: Parameter[T]) -> T | None:
        """The parameter's value; None where it is absent or wrong."""
        values = [value for name, value in self._pairs if name == parameter.name]
        if len(values) > 1:
            self._faults[parameter.name] = "was given more than once"
        elif values:
            try:
                return parameter.parse(values[0])
            except ValueError as error:
                self._faults[parameter.name] = str(error)
        return None

    def refuse_all_but(self, *known: Parameter[Any]) -> None:
        """Let every other name be a fault."""
        names = {parameter.name for parameter in known}
        for name, _ in self._pairs:
            if name not in names:
                # It may be a token in the wrong place; tokens have at least 20 characters.
                shown = name if len(name) < 20 and name.isidentifier() else "unknown parameter"
                self._faults[shown] = "is not a parameter of this path"

    def check(self) -> None:
        """Raises ``Invalid`` if anything read was wrong."""
        if self._faults:
            raise Invalid("The query breaks the rules of " + ", ".join(self._faults) + ".", self._faults)


def from_path(request: Request, parameter: Parameter[T]) -> T:
    """The value of a part of the path. Raises ``Invalid``."""
    try:
        return parameter.parse(request.path_params[parameter.name])
    except ValueError as error:
        raise Invalid(f"The path breaks the rule of {parameter.name}.", {parameter.name: str(error)}) from None


def pack_cursor(time: int, name: str) -> str:
    """The place of an item in a list, for the page after it."""
    return base64.urlsafe_b64encode(time.to_bytes(8, "big", signed=True) + name.encode()).rstrip(b"=").decode()


def page_of(items: Sequence[T], limit: int, place: Callable[[T], tuple[int, str]]) -> tuple[Sequence[T], str | None]:
    """From up to ``limit + 1`` items, those of the page, and the cursor to the next one if there is one."""
    if len(items) <= limit:
        return items, None
    return items[:limit], pack_cursor(*place(items[limit - 1]))


def _unpack_cursor(text: str) -> tuple[int, str]:
    if len(text) > _MAX_CURSOR or not _cursor(text):
        raise ValueError("must be a next_cursor of an earlier page")
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise ValueError("must be a next_cursor of an earlier page") from None
    return int.from_bytes(raw[:8], "big", signed=True), raw[8:].decode("utf-8", "replace").replace("\x00", "")


def _uuid(text: str) -> str:
    if not is_uuid(text):
        raise ValueError("must be a UUID in its canonical 8-4-4-4-12 form")
    return text.lower()


def _status(text: str) -> str:
    if text.lower() not in list(Status):
        raise ValueError("must be one of " + ", ".join(Status))
    return text.lower()


def _limit(text: str) -> int:
    if not _number(text) or not 1 <= int(text[-4:]) <= MAX_LIMIT:
        raise ValueError(f"must be a whole number from 1 to {MAX_LIMIT}")
    return int(text[-4:])


def _token_hash(text: str) -> str:
    if not _hash(text):
        raise ValueError("must be 64 hexadecimal digits")
    return text.lower()


def _any_case(word: str) -> str:
    return "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in word)


_TIME: Final[Schema] = {"type": "string", "format": "date-time"}
REQUEST_ID = Parameter("request_id", "path", UUID, "The id that the request was accepted under.", _uuid)
TOKEN_HASH = Parameter(
    "driver_token_hash",
    "path",
    {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
    "The full keyed hash of the token, as the list shows it.",
    _token_hash,
)
STATION = Parameter("station_id", "query", UUID, "Only this station.", _uuid)
STATUS = Parameter(
    "status",
    "query",
    {"type": "string", "pattern": "^(?:" + "|".join(map(_any_case, Status)) + ")$"},
    "Only this status: " + ", ".join(Status) + ", in any letter case.",
    _status,
)
FROM = Parameter(
    "from", "query", _TIME, "From this time on. A time without a zone is UTC; a date is its start.", from_iso
)
TO = Parameter("to", "query", _TIME, "Before this time.", from_iso)
LIMIT = Parameter(
    "limit",
    "query",
    {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    "At most so many items.",
    _limit,
)
CURSOR = Parameter(
    "cursor",
    "query",
    {"type": "string", "pattern": f"^{_CURSOR}$", "maxLength": _MAX_CURSOR},
    "The next_cursor of the page before.",
    _unpack_cursor,
)
PAGING: Final[tuple[Parameter[Any], ...]] = (LIMIT, CURSOR)
