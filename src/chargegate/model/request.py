"""A charging request and the rules for its fields.

The rules are those of the HTTP contract. They are checked when a request comes in, and again when it comes out of a
queue, because others may write to a broker.
"""

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from chargegate.model.callback_url import CallbackTarget, parse_callback_url
from chargegate.model.ids import UUID_RULE, is_uuid
from chargegate.model.invalid import Invalid, broken
from chargegate.model.json_text import doubled_fields

ACCEPTED_MESSAGE: Final = (
    "Request is being processed asynchronously. The result will be sent to the provided callback URL."
)
MIN_DRIVER_TOKEN: Final = 20
MAX_DRIVER_TOKEN: Final = 80
DRIVER_TOKEN_PATTERN: Final = f"^[A-Za-z0-9._~-]{{{MIN_DRIVER_TOKEN},{MAX_DRIVER_TOKEN}}}$"
DRIVER_TOKEN_RULE: Final = f"must be {MIN_DRIVER_TOKEN} to {MAX_DRIVER_TOKEN} characters, each of A-Z a-z 0-9 . _ ~ -"
OTHER_SPELLINGS: Final = {"station_id": "stationId", "driver_token": "driverToken", "callback_url": "callbackUrl"}

_token = re.compile(DRIVER_TOKEN_PATTERN).fullmatch


class ChargingRequest(msgspec.Struct, frozen=True, gc=False):
    """An accepted request. Its fields are as the client sent them; ``accepted_at`` is in Unix milliseconds.

    ``client`` is the name of the client that sent it; empty where nobody knows, for what an older release accepted.
    ``traceparent`` is its whole trace context (``trace_context``). ``traced``: spans are made of it, and that context
    has the span ``accept``, not the client's, as its parent.
    """

    request_id: str
    station_id: str
    driver_token: str
    callback_url: str
    accepted_at: int
    traceparent: str = ""
    client: str = ""
    traced: bool = False


class _Body(msgspec.Struct, gc=False):
    station_id: Any = msgspec.UNSET
    stationId: Any = msgspec.UNSET  # noqa: N815 - the contract's other spelling
    driver_token: Any = msgspec.UNSET
    driverToken: Any = msgspec.UNSET  # noqa: N815 - the contract's other spelling
    callback_url: Any = msgspec.UNSET
    callbackUrl: Any = msgspec.UNSET  # noqa: N815 - the contract's other spelling


_QUOTES_OF_THREE_FIELDS: Final = 12
_decode_body = msgspec.json.Decoder(_Body).decode


def station_fault(value: object) -> str | None:
    """The rule that a station id breaks, or None."""
    return None if isinstance(value, str) and is_uuid(value) else UUID_RULE


def token_fault(value: object) -> str | None:
    """The rule that a driver token breaks, or None."""
    return None if isinstance(value, str) and _token(value) else DRIVER_TOKEN_RULE


def parse_body(
    body: bytes, target_fault: Callable[[CallbackTarget], str | None] | None = None
) -> tuple[str, str, str, CallbackTarget]:
    """Decode and validate a request body: ``(station_id, driver_token, callback_url, target)``, as they were sent.

    ``target_fault`` gives a rule of this installation that a well-formed callback URL breaks, or None. Raises
    ``Invalid`` that names every field at fault.
    """
    try:
        raw = _decode_body(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        # msgspec reports the same class for broken JSON and for JSON that is not an object.
        raise Invalid("The request body must be a JSON object.") from None
    details: dict[str, str] = {}
    station = _one_spelling("station_id", raw.station_id, raw.stationId, details)
    token = _one_spelling("driver_token", raw.driver_token, raw.driverToken, details)
    url = _one_spelling("callback_url", raw.callback_url, raw.callbackUrl, details)
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
    # Where nothing is at fault there are three names and three texts. With no more quotes than these, nothing else.
    if details or target is None or body.count(b'"') > _QUOTES_OF_THREE_FIELDS or not body.isascii():
        details |= doubled_fields(body)
    if details or target is None:
        raise broken(details)
    return station, token, url, target


def _one_spelling(name: str, value: Any, other: Any, details: dict[str, str]) -> Any:
    if other is msgspec.UNSET:
        if value is msgspec.UNSET:
            details[name] = "is required"
        return value
    if value is not msgspec.UNSET:
        details[name] = f"was given twice, also as {OTHER_SPELLINGS[name]}"
    return other
