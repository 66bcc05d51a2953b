"""Parameters of paths and queries: what they may be, for machines and for people, in one place."""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from chargegate.api.routing import Call, Parameter, Schema, respond
from chargegate.api.schemas import UUID
from chargegate.keys import CLIENT_NAME_PATTERN, client_name_fault
from chargegate.ledger.anomalies import AnomalyType
from chargegate.model import MIN_DRIVER_TOKEN, UUID_RULE, Invalid, RequestStatus, Status, from_iso, is_uuid
from chargegate.operations.listing import Listing, Place
from chargegate.operations.statistics import STEPS
from chargegate.operations.views import shown

T = TypeVar("T")
Item = TypeVar("Item", bound=msgspec.Struct)

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000

_UNDER_WAY: Final = (RequestStatus.QUEUED, RequestStatus.PROCESSING)
_MAX_CURSOR: Final = 512
# Every base64url text of 9 bytes or more: 8 of time, the rest an id.
_CURSOR: Final = "(?:[A-Za-z0-9_-]{4}){3,127}(?:[A-Za-z0-9_-]{2,3})?"
_cursor = re.compile(_CURSOR, re.ASCII).fullmatch
_hash = re.compile("[0-9a-fA-F]{64}").fullmatch
_whole = re.compile("0*[0-9]{1,6}", re.ASCII).fullmatch
_reason = re.compile("[a-z0-9_]{1,64}", re.ASCII).fullmatch
_number = re.compile("0*[0-9]{1,4}", re.ASCII).fullmatch


def read_parameters(request: Request, parameters: Sequence[Parameter[Any]], *, strict: bool) -> dict[str, Any]:
    """The values of a route's parameters, by name. Raises ``Invalid`` that names every one at fault; other names in the
    query are a fault only where it is ``strict``."""
    values, faults = {}, {}
    pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    for parameter in parameters:
        given = [value for name, value in pairs if name == parameter.name]
        if parameter.place == "path":
            given = [request.path_params[parameter.name]]
        values[parameter.name] = parameter.default
        if len(given) > 1:
            faults[parameter.name] = "was given more than once"
        elif given:
            try:
                values[parameter.name] = parameter.parse(given[0])
            except ValueError as error:
                faults[parameter.name] = str(error)
    if strict:
        unknown = [name for name, _ in pairs if name not in values]
        faults.update((_harmless(name), "is not a parameter of this path") for name in unknown)
    if faults:
        raise Invalid("The parameters break the rules of " + ", ".join(faults) + ".", faults)
    return values


def _harmless(name: str) -> str:
    """The name as it may be shown: it may be a driver token in the wrong place."""
    return name if len(name) < MIN_DRIVER_TOKEN and name.isidentifier() else "unknown parameter"


async def respond_page(call: Call, listing: Listing[Item]) -> Response:
    """The page of a list that the parameters ``PAGING`` ask for."""
    items, last = await listing.page(call[LIMIT], call[CURSOR])
    return respond({"items": [shown(item) for item in items], "next_cursor": last and pack_cursor(*last)})


def pack_cursor(time: int, name: str) -> str:
    """The place of an item in a list, for the page after it."""
    return base64.urlsafe_b64encode(time.to_bytes(8, "big", signed=True) + name.encode()).rstrip(b"=").decode()


def _unpack_cursor(text: str) -> Place:
    if len(text) > _MAX_CURSOR or not _cursor(text):
        raise ValueError("must be a next_cursor of an earlier page")
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise ValueError("must be a next_cursor of an earlier page") from None
    return int.from_bytes(raw[:8], "big", signed=True), raw[8:].decode("utf-8", "replace").replace("\x00", "")


def _uuid(text: str) -> str:
    if not is_uuid(text):
        raise ValueError(UUID_RULE)
    return text.lower()


def _client(text: str) -> str:
    if fault := client_name_fault(text):
        raise ValueError(fault)
    return text


def _status(text: str) -> str:
    if text.lower() not in list(Status):
        raise ValueError("must be one of " + ", ".join(Status))
    return text.lower()


def _request_status(text: str) -> RequestStatus:
    if text not in _UNDER_WAY:
        raise ValueError("must be one of " + ", ".join(_UNDER_WAY))
    return RequestStatus(text)


def _anomaly_type(text: str) -> str:
    if text not in list(AnomalyType):
        raise ValueError("must be one of " + ", ".join(AnomalyType))
    return text


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def _step(text: str) -> str:
    if text not in STEPS:
        raise ValueError("must be one of " + ", ".join(STEPS))
    return text


def _reason_text(text: str) -> str:
    if not _reason(text):
        raise ValueError("must be a reason: 1 to 64 characters, each of a-z 0-9 _")
    return text


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


def _filter(name: str, schema: Schema, description: str, parse: Callable[[str], T]) -> Parameter[T | None]:
    """A parameter of the query that may be absent."""
    return Parameter(name, "query", schema, description, parse)


_TIME: Final[Schema] = {"type": "string", "format": "date-time"}


def whole_number(name: str, description: str, most: int, default: int) -> Parameter[int]:
    """A number of the query, from 1 on."""

    def parse(text: str) -> int:
        if not _whole(text) or not 1 <= int(text) <= most:
            raise ValueError(f"must be a whole number from 1 to {most}")
        return int(text)

    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return Parameter(name, "query", schema, description, parse, default)


REQUEST_ID = Parameter("request_id", "path", UUID, "The id that the request was accepted under.", _uuid)
TOKEN_HASH = Parameter(
    "driver_token_hash",
    "path",
    {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
    "The full keyed hash of the token, as the list shows it.",
    _token_hash,
)
STATION = _filter("station_id", UUID, "Only this station.", _uuid)
STATUS = _filter(
    "status",
    {"type": "string", "pattern": "^(?:" + "|".join(map(_any_case, Status)) + ")$"},
    "Only this status: " + ", ".join(Status) + ", in any letter case.",
    _status,
)
REQUEST_STATUS = _filter(
    "status",
    {"type": "string", "enum": list(_UNDER_WAY)},
    "Only this status: " + ", ".join(_UNDER_WAY) + ".",
    _request_status,
)
CLIENT = _filter(
    "client", {"type": "string", "pattern": CLIENT_NAME_PATTERN}, "Only this client's: the name of its keys.", _client
)
REASON = _filter(
    "reason",
    {"type": "string", "pattern": "^[a-z0-9_]{1,64}$"},
    "Only this reason, such as token_blocked.",
    _reason_text,
)
FROM = _filter("from", _TIME, "From this time on. A time without a zone is UTC; a date is its start.", from_iso)
TO = _filter("to", _TIME, "Before this time.", from_iso)
ANOMALY_TYPE = _filter(
    "type",
    {"type": "string", "enum": list(AnomalyType)},
    "Only this type: " + ", ".join(AnomalyType) + ".",
    _anomaly_type,
)
OPEN = _filter("open", {"type": "boolean"}, "true: only those that last. false: only those that ended.", _boolean)
STEP = Parameter(
    "step",
    "query",
    {"type": "string", "enum": list(STEPS), "default": "hour"},
    "How long each of them is.",
    _step,
    "hour",
)
LIMIT = Parameter(
    "limit",
    "query",
    {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    "At most so many items.",
    _limit,
    DEFAULT_LIMIT,
)
CURSOR = _filter(
    "cursor",
    {"type": "string", "pattern": f"^{_CURSOR}$", "maxLength": _MAX_CURSOR},
    "The next_cursor of the page before.",
    _unpack_cursor,
)
PAGING: Final[tuple[Parameter[Any], ...]] = (LIMIT, CURSOR)
