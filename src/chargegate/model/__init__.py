"""What walks down the street: a charging request, its decision, its callback, and the rules they obey.

The rules are those of the HTTP contract. They are checked when a request comes in and again when one
comes out of a queue, because a broker may be written to by others.
"""

import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

import msgspec

from chargegate.model.shown import Hidden, Iso, Millis, Moment, ShortHash, TokenHash, Without

__all__ = ["Hidden", "Iso", "Millis", "Moment", "ShortHash", "TokenHash", "Without"]

ACCEPTED_MESSAGE: Final = (
    "Request is being processed asynchronously. The result will be sent to the provided callback URL."
)
MAX_CALLBACK_URL: Final = 2048
UUID_PATTERN: Final = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
MIN_DRIVER_TOKEN: Final = 20
MAX_DRIVER_TOKEN: Final = 80
DRIVER_TOKEN_PATTERN: Final = f"^[A-Za-z0-9._~-]{{{MIN_DRIVER_TOKEN},{MAX_DRIVER_TOKEN}}}$"
UUID_RULE: Final = "must be a UUID in its canonical 8-4-4-4-12 form"
OTHER_SPELLINGS: Final = {"station_id": "stationId", "driver_token": "driverToken", "callback_url": "callbackUrl"}

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Status(StrEnum):
    """What was decided; the value is what the callback says."""

    ALLOWED = "allowed"
    NOT_ALLOWED = "not_allowed"
    UNKNOWN = "unknown"
    INVALID = "invalid"


class Reason(StrEnum):
    """Stable codes that say why. A plain ``allowed`` has none."""

    NONE = ""
    NOT_IN_ACL = "driver_not_in_acl"
    BLOCKED = "token_blocked"
    EXPIRED = "token_expired"
    NOT_YET_VALID = "token_not_yet_valid"
    NOT_AT_THIS_LOCATION = "not_at_this_location"
    TIMEOUT = "authorization_timeout"
    ERROR = "authorization_error"
    CIRCUIT_OPEN = "circuit_open"
    EXPIRED_IN_QUEUE = "expired_in_queue"
    MALFORMED = "malformed_request"


class RequestStatus(StrEnum):
    """Where a request stands. The last three are final, until a dead letter is replayed."""

    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"


class Invalid(ValueError):
    """A message breaks the rules. ``details`` maps every field at fault to the rule; no value is repeated."""

    def __init__(self, message: str, details: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.details = details or {}


def broken(details: Mapping[str, str]) -> Invalid:
    """The error of a request with faults in these fields."""
    return Invalid("The request breaks the rules of " + ", ".join(details) + ".", dict(details))


class CallbackTarget(msgspec.Struct, frozen=True):
    """A callback URL taken apart. ``host`` is lower case without brackets; ``literal`` is set where it is an address.

    ``authority`` is the ``Host`` header: brackets around IPv6, no default port. ``destination`` is scheme, host and
    port: what limits and circuits are counted by.
    """

    scheme: str
    host: str
    port: int
    path: str
    literal: IPAddress | None
    authority: str
    destination: str


class ChargingRequest(msgspec.Struct, frozen=True):
    """An accepted request. ``accepted_at`` is Unix milliseconds; fields are as the client sent them."""

    request_id: str
    station_id: str
    driver_token: str
    callback_url: str
    accepted_at: int
    traceparent: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """An authorizer's answer. ``good_until`` (Unix ms) is when it would change by itself; None: not foreseeable.
    ``cached``: it was given before and is used again."""

    status: Status
    reason: str = ""
    good_until: int | None = None
    cached: bool = False


class Decision(msgspec.Struct, frozen=True):
    """One decision about one request. ``timestamp`` is Unix milliseconds. It holds no token, only its short hash."""

    request_id: str
    station_id: str
    driver_token_hash: ShortHash
    status: Status
    reason: str
    processing_time_ms: int
    timestamp: Millis


class CallbackPayload(msgspec.Struct, frozen=True):
    """The callback's body: these three members in this order and nothing else."""

    station_id: str
    driver_token: str
    status: Status


class _Body(msgspec.Struct):
    station_id: Any = msgspec.UNSET
    stationId: Any = msgspec.UNSET  # noqa: N815 - the contract's other spelling
    driver_token: Any = msgspec.UNSET
    driverToken: Any = msgspec.UNSET  # noqa: N815 - the contract's other spelling
    callback_url: Any = msgspec.UNSET
    callbackUrl: Any = msgspec.UNSET  # noqa: N815 - the contract's other spelling


_LABEL: Final = "[A-Za-z0-9_-]{1,63}"
_HOST: Final = rf"(({_LABEL}\.){{0,126}}{_LABEL}\.?|\[[0-9A-Fa-f:.]{{2,45}}\])"
_PORT: Final = (
    "(0{0,4}[1-9]|0{0,3}[1-9][0-9]|0{0,2}[1-9][0-9]{2}|0?[1-9][0-9]{3}|[1-5][0-9]{4}"
    "|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)


def callback_url_pattern(*, require_https: bool) -> str:
    """The regular expression (ECMA-262) of a callback URL, for JSON Schema.

    It does not hold the limits on the length of the URL and of the host's name, nor the rules for IP addresses.
    """
    scheme = "[Hh][Tt][Tt][Pp][Ss]" + ("" if require_https else "?")
    return rf"^{scheme}://{_HOST}(:{_PORT})?([/?][!-\x22$-\x5b\x5d-~]*)?$"


_DEFAULT_PORT: Final = {"http": 80, "https": 443}
_STATION = re.compile(UUID_PATTERN).fullmatch
_TOKEN = re.compile(DRIVER_TOKEN_PATTERN).fullmatch
_URL = re.compile(
    r"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?)://"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:[/?][!-~]*)?)"
).fullmatch
_URL_CHARACTERS = re.compile(r"[!-~]+").fullmatch
_NUMERIC_HOST = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)").fullmatch
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch
_decode_body = msgspec.json.Decoder(_Body).decode


def now_ms() -> int:
    """The wall clock in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def to_iso(ms: int) -> str:
    """Unix milliseconds as ISO 8601 in UTC with milliseconds: ``2026-01-31T12:00:00.000Z``."""
    second, rest = divmod(ms, 1000)
    return f"{_iso_second(second)}.{rest:03}Z"


@lru_cache(maxsize=64)
def _iso_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


def from_iso(text: str) -> int:
    """An ISO 8601 date or time as Unix milliseconds; UTC where it names no zone. Raises ``ValueError``."""
    try:
        moment = datetime.fromisoformat(text)
        ms = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
        to_iso(ms)  # what could not be shown again is out of range
    except (ValueError, OverflowError):
        raise ValueError("must be an ISO 8601 time such as 2026-01-31T12:00:00Z") from None
    return ms


def new_request_id() -> str:
    """A UUID version 7 (RFC 9562, 5.7): unguessable, and close in time is close in a table's index."""
    value = (now_ms() << 80) | int.from_bytes(next(_random), "big")
    value = value & ~(0xF000 << 64) & ~(0xC000 << 48) | (0x7000 << 64) | (0x8000 << 48)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _random_bytes() -> Iterator[bytes]:
    """Ten at a time out of one system call for many. Two threads cannot get the same: a generator runs in one."""
    while True:
        block = os.urandom(10 * 256)
        for start in range(0, len(block), 10):
            yield block[start : start + 10]


_random = _random_bytes()


def one_line(text: str) -> str:
    """The text with everything that does not print escaped, so that it can forge no line and no colour."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_uuid(text: str) -> bool:
    """Whether the text is a UUID in its canonical form, in any letter case."""
    return _STATION(text) is not None


def station_fault(value: object) -> str | None:
    """The rule that a station id breaks, or None."""
    if isinstance(value, str) and _STATION(value):
        return None
    return UUID_RULE


def token_fault(value: object) -> str | None:
    """The rule that a driver token breaks, or None."""
    if isinstance(value, str) and _TOKEN(value):
        return None
    return "must be 20 to 80 characters, each of A-Z a-z 0-9 . _ ~ -"


def valid_traceparent(text: str) -> str:
    """The W3C ``traceparent`` if it is well formed, else an empty string."""
    return text if _TRACEPARENT(text) else ""


def parse_callback_url(value: object) -> CallbackTarget:
    """Take a callback URL apart.

    Raises ``ValueError`` with the rule that it breaks. Decimal, octal and hexadecimal spellings of an IPv4
    address are recognised as the address that they mean, as every resolver would read them.
    """
    if not isinstance(value, str) or not value:
        raise ValueError("must be an absolute http or https URL")
    return _parse_url(value)


@lru_cache(maxsize=2048)
def _parse_url(value: str) -> CallbackTarget:
    if len(value) > MAX_CALLBACK_URL:
        raise ValueError(f"must be at most {MAX_CALLBACK_URL} characters")
    match = _URL(value)
    if match is None or "#" in value or "\\" in value:
        raise ValueError(_url_fault(value))
    scheme = match["scheme"].lower()
    port = int(match["port"]) if match["port"] else _DEFAULT_PORT[scheme]
    if not 0 < port < 65536:
        raise ValueError("has a port outside 1 to 65535")
    path = match["path"]
    if not path.startswith("/"):
        path = "/" + path
    if match["v6"] is not None:
        try:
            v6 = ipaddress.IPv6Address(match["v6"])
        except ValueError:
            raise ValueError("has a host that is not a valid IPv6 address") from None
        return _target(scheme, str(v6), port, path, v6)
    host, literal = _named_host(match["name"].lower())
    return _target(scheme, host, port, path, literal)


def _named_host(host: str) -> tuple[str, IPAddress | None]:
    bare = host.removesuffix(".")
    if not 0 < len(bare) <= 253 or not all(0 < len(label) <= 63 for label in bare.split(".")):
        raise ValueError("has a host that is not a valid name")
    if not _NUMERIC_HOST(bare):
        return host, None
    try:
        literal = ipaddress.IPv4Address(socket.inet_aton(bare))
    except OSError:
        raise ValueError("has a host that is not a valid IPv4 address") from None
    return str(literal), literal


def _target(scheme: str, host: str, port: int, path: str, literal: IPAddress | None) -> CallbackTarget:
    bracketed = f"[{host}]" if ":" in host else host
    authority = bracketed if port == _DEFAULT_PORT[scheme] else f"{bracketed}:{port}"
    return CallbackTarget(scheme, host, port, path, literal, authority, f"{scheme}://{bracketed}:{port}")


def _url_fault(value: str) -> str:
    if not _URL_CHARACTERS(value) or "\\" in value:
        return "must have no spaces, control characters, backslashes or non-ASCII characters (percent-encode them)"
    scheme, separator, rest = value.partition("://")
    if not separator or scheme.lower() not in _DEFAULT_PORT:
        return "must be an absolute http or https URL"
    if "#" in rest:
        return "must have no fragment"
    if "@" in re.split(r"[/?]", rest, maxsplit=1)[0]:
        return "must have no user information"
    return "must have a valid host, and a port, if any, of digits"


def parse_body(
    body: bytes, target_fault: Callable[[CallbackTarget], str | None] | None = None
) -> tuple[str, str, str, CallbackTarget]:
    """Decode and validate a request body: ``(station_id, driver_token, callback_url, target)``, as they were sent.

    ``target_fault`` gives the rule that a well-formed target breaks all the same, or None. Raises ``Invalid`` that
    names every field at fault.
    """
    try:
        raw = _decode_body(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        # msgspec reports the same class for broken JSON and for JSON that is not an object.
        raise Invalid("The request body must be a JSON object.") from None
    details: dict[str, str] = {}
    station = _one_spelling("station_id", raw.station_id, "stationId", raw.stationId, details)
    token = _one_spelling("driver_token", raw.driver_token, "driverToken", raw.driverToken, details)
    url = _one_spelling("callback_url", raw.callback_url, "callbackUrl", raw.callbackUrl, details)
    if "station_id" not in details and (fault := station_fault(station)):
        details["station_id"] = fault
    if "driver_token" not in details and (fault := token_fault(token)):
        details["driver_token"] = fault
    target = None
    if "callback_url" not in details:
        try:
            target = parse_callback_url(url)
        except ValueError as error:
            details["callback_url"] = str(error)
        else:
            if target_fault is not None and (fault := target_fault(target)):
                details["callback_url"] = fault
    if details or target is None:
        raise broken(details)
    return station, token, url, target


def _one_spelling(name: str, value: Any, other_name: str, other: Any, details: dict[str, str]) -> Any:
    if other is msgspec.UNSET:
        if value is msgspec.UNSET:
            details[name] = "is required"
        return value
    if value is not msgspec.UNSET:
        details[name] = f"was given twice, also as {other_name}"
    return other
