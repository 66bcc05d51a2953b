"""Wraps a request as a message: what routes it stays readable, and what nobody on the way may read is sealed."""

import msgspec

from chargegate.keys import CannotOpen, KeyMissing, Keyring
from chargegate.model import (
    CallbackTarget,
    ChargingRequest,
    Invalid,
    parse_callback_url,
    station_fault,
    token_fault,
)
from chargegate.queues.base import Message


class _Sealed(msgspec.Struct, array_like=True):
    driver_token: str
    callback_url: str
    traceparent: str = ""
    replayed_at: int = 0
    client: str = ""


class Opened(msgspec.Struct, frozen=True):
    """A message taken apart by a worker. ``target`` is None where no callback can be sent; ``sealed`` is what a dead
    letter may keep of the message: None where no key opens it."""

    request: ChargingRequest
    replayed_at: int
    target: CallbackTarget | None
    malformed: bool
    sealed: bytes | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Sealed).decode


def wrap(keyring: Keyring, request: ChargingRequest, replayed_at: int = 0) -> Message:
    """Seal a request. ``replayed_at`` (Unix ms) marks a replay: the decision that was made is sent again, unless its
    callback was delivered, or given up, at that time or later."""
    plain = _encode(
        _Sealed(request.driver_token, request.callback_url, request.traceparent, replayed_at, request.client)
    )
    body = keyring.seal(plain, request.request_id)
    return Message(request.request_id, request.station_id, request.accepted_at, body, request.traceparent)


def unwrap(keyring: Keyring, message: Message) -> tuple[ChargingRequest, int]:
    """The request and its ``replayed_at``.

    Raises ``KeyMissing`` where the key is not at hand, another ``CannotOpen`` where no key will do, and ``Invalid``
    where the content is not a request.
    """
    plain = keyring.open(message.body, message.request_id)
    try:
        sealed = _decode(plain)
    except msgspec.DecodeError:
        raise Invalid("The sealed part is not a request.") from None
    request = ChargingRequest(
        message.request_id,
        message.station_id,
        sealed.driver_token,
        sealed.callback_url,
        message.accepted_at,
        sealed.traceparent,
        sealed.client,
    )
    return request, sealed.replayed_at


def client_of(keyring: Keyring, message: Message) -> str:
    """Whose request it is; empty where nobody knows, or no key at hand opens it."""
    try:
        return unwrap(keyring, message)[0].client
    except (CannotOpen, Invalid):
        return ""


def examine(request: ChargingRequest) -> tuple[CallbackTarget | None, dict[str, str]]:
    """The callback target of a request from a queue, and the rules that it breaks, by field. Others may write to a
    broker too. The target is None where the URL is at fault."""
    target = None
    broken = {}
    if fault := station_fault(request.station_id):
        broken["station_id"] = fault
    if fault := token_fault(request.driver_token):
        broken["driver_token"] = fault
    try:
        target = parse_callback_url(request.callback_url)
    except ValueError as error:
        broken["callback_url"] = str(error)
    return target, broken


def open_message(keyring: Keyring, message: Message) -> Opened:
    """What is to be done for a message. One that no key opens, or that holds no request, is a malformed request.
    Raises ``KeyMissing`` where another process may have the key."""
    replayed_at, sealed = 0, message.body
    try:
        request, replayed_at = unwrap(keyring, message)
    except KeyMissing:
        raise
    except (CannotOpen, Invalid) as error:
        request = ChargingRequest(message.request_id, message.station_id, "", "", message.accepted_at)
        if isinstance(error, CannotOpen):
            return Opened(request, 0, None, True, None)
    target, broken = examine(request)
    return Opened(request, replayed_at, target, bool(broken), sealed)
