"""Wraps a request as a message: what routes it stays readable, and what nobody on the way may read is sealed.

The sealed part is bound to all that stands in the clear beside it, so that a message in which somebody changed the
station or the time cannot be opened. What a dead letter keeps is bound to its request and its decision. Neither can
stand in for the other.
"""

from typing import Final, NamedTuple

import msgspec

from chargegate.keys import CannotOpen, KeyMissing, Keyring
from chargegate.model import (
    CallbackTarget,
    ChargingRequest,
    Decision,
    Invalid,
    parent_of,
    parse_callback_url,
    station_fault,
    token_fault,
)
from chargegate.queues.base import Message


class _Sealed(msgspec.Struct, array_like=True, gc=False):
    driver_token: str
    callback_url: str
    traceparent: str = ""
    replayed_at: int = 0
    client: str = ""
    traced: bool = False


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A message taken apart by a worker. ``target`` is None where no callback can be sent. ``known`` is False where the
    message holds no request that could be sent again, and ``fault`` then says why, without what is in it."""

    request: ChargingRequest
    replayed_at: int
    target: CallbackTarget | None
    malformed: bool
    known: bool = True
    fault: str = ""


class Carried(Message, frozen=True, gc=False):
    """A message that still has what was sealed in it, so that a worker in the same process need not open it. What is
    stored and sent of it is what is stored and sent of any message."""

    opened: Opened | None = None


class BoundTo(NamedTuple):
    """What stands in the clear beside the sealed part of a dead letter."""

    request_id: str
    station_id: str
    driver_token_hash: str
    status: str
    reason: str
    client: str


_MESSAGE: Final = "message"
_DEAD_LETTER: Final = "dead letter"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Sealed).decode


def wrap(keyring: Keyring, request: ChargingRequest, replayed_at: int = 0) -> Message:
    """Seal a request. ``replayed_at`` (Unix ms) marks a replay: the decision that was made is sent again, unless its
    callback was delivered, or given up, at that time or later."""
    body = _sealed(keyring, request, replayed_at)
    parent = request.traceparent and parent_of(request.traceparent)
    return Message(request.request_id, request.station_id, request.accepted_at, body, parent)


def carry(keyring: Keyring, request: ChargingRequest, target: CallbackTarget) -> Carried:
    """As ``wrap``, for a request that was just validated. ``target`` is what its callback URL says."""
    body = _sealed(keyring, request, 0)
    opened = Opened(request, 0, target, False)
    parent = request.traceparent and parent_of(request.traceparent)
    return Carried(request.request_id, request.station_id, request.accepted_at, body, parent, opened)


def _sealed(keyring: Keyring, request: ChargingRequest, replayed_at: int) -> bytes:
    return keyring.seal(
        _plain(request, replayed_at), request.request_id, _MESSAGE, request.station_id, str(request.accepted_at)
    )


def unwrap(keyring: Keyring, message: Message) -> tuple[ChargingRequest, int]:
    """The request and its ``replayed_at``.

    Raises ``KeyMissing`` where the key is not at hand, another ``CannotOpen`` where no key will do, and ``Invalid``
    where the content is not a request.
    """
    plain = keyring.open(message.body, message.request_id, _MESSAGE, message.station_id, str(message.accepted_at))
    return _read(plain, message.request_id, message.station_id, message.accepted_at)


def seal_dead_letter(keyring: Keyring, request: ChargingRequest, decision: Decision) -> bytes:
    """What a dead letter keeps, to send the request's decision again."""
    bound = BoundTo(
        request.request_id,
        request.station_id,
        decision.driver_token_hash,
        decision.status.value,
        str(decision.reason),
        request.client,
    )
    return keyring.seal(_plain(request, 0), *_texts(bound))


def open_dead_letter(keyring: Keyring, sealed: bytes, bound: BoundTo, accepted_at: int) -> ChargingRequest:
    """The request of a dead letter, as one that is accepted at this time (Unix ms). Raises ``CannotOpen`` also where
    something beside the sealed part was changed."""
    plain = keyring.open(sealed, *_texts(bound))
    try:
        return _read(plain, bound.request_id, bound.station_id, accepted_at)[0]
    except Invalid as error:
        raise CannotOpen(str(error)) from None


def _texts(bound: BoundTo) -> tuple[str, ...]:
    return bound.request_id, _DEAD_LETTER, *bound[1:]


def _plain(request: ChargingRequest, replayed_at: int) -> bytes:
    return _encode(
        _Sealed(
            request.driver_token,
            request.callback_url,
            request.traceparent,
            replayed_at,
            request.client,
            request.traced,
        )
    )


def _read(plain: bytes, request_id: str, station_id: str, accepted_at: int) -> tuple[ChargingRequest, int]:
    try:
        sealed = _decode(plain)
    except msgspec.DecodeError:
        raise Invalid("The sealed part is not a request.") from None
    request = ChargingRequest(
        request_id,
        station_id,
        sealed.driver_token,
        sealed.callback_url,
        accepted_at,
        sealed.traceparent,
        sealed.client,
        sealed.traced,
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
    if type(message) is Carried and message.opened is not None:
        return message.opened
    try:
        request, replayed_at = unwrap(keyring, message)
    except KeyMissing:
        raise
    except (CannotOpen, Invalid) as error:
        request = ChargingRequest(message.request_id, message.station_id, "", "", message.accepted_at)
        return Opened(request, 0, None, True, known=False, fault=str(error))
    target, broken = examine(request)
    return Opened(request, replayed_at, target, bool(broken))
