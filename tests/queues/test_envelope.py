import os

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chargegate.keys import CannotOpen, Keyring
from chargegate.model import ChargingRequest, Invalid
from chargegate.queues.base import Message
from chargegate.queues.envelope import examine, unwrap, wrap

KEYRING = Keyring([os.urandom(32)], os.urandom(32))
REQUEST = ChargingRequest(
    "0198c0de-0000-7000-8000-000000000001",
    "123E4567-e89b-12d3-a456-426614174000",
    "driver-token-0123456789~A",
    "https://client.example/hook?secret=1",
    1_767_225_600_000,
    "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01",
    "north",
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=50)
@given(st.builds(ChargingRequest, text, text, text, text, st.integers(0, 2**62), text, text), st.integers(0, 2**62))
def test_what_is_wrapped_is_unwrapped(request: ChargingRequest, replayed_at: int) -> None:
    assert unwrap(KEYRING, wrap(KEYRING, request, replayed_at)) == (request, replayed_at)


def test_what_the_last_release_sealed_is_a_request_of_no_known_client() -> None:
    four = [REQUEST.driver_token, REQUEST.callback_url, REQUEST.traceparent, 7]
    sealed = KEYRING.seal(msgspec.msgpack.encode(four), REQUEST.request_id)
    message = Message(REQUEST.request_id, REQUEST.station_id, REQUEST.accepted_at, sealed)
    assert unwrap(KEYRING, message) == (msgspec.structs.replace(REQUEST, client=""), 7)


def test_token_and_url_are_sealed_and_what_routes_is_in_clear() -> None:
    message = wrap(KEYRING, REQUEST)
    assert (message.request_id, message.station_id, message.accepted_at) == (
        REQUEST.request_id,
        REQUEST.station_id,
        REQUEST.accepted_at,
    )
    for hidden in (REQUEST.driver_token, REQUEST.callback_url, "client.example", REQUEST.traceparent, REQUEST.client):
        assert hidden.encode() not in message.body


def test_a_body_is_bound_to_its_request_id() -> None:
    message = wrap(KEYRING, REQUEST)
    moved = msgspec.structs.replace(message, request_id="0198c0de-0000-7000-8000-000000000002")
    with pytest.raises(CannotOpen):
        unwrap(KEYRING, moved)


@settings(max_examples=50)
@given(st.binary(max_size=80))
def test_what_nobody_sealed_cannot_be_opened(body: bytes) -> None:
    with pytest.raises(CannotOpen):
        unwrap(KEYRING, Message(REQUEST.request_id, REQUEST.station_id, 0, body))


@settings(max_examples=100)
@given(st.binary(max_size=80) | st.lists(st.integers(0, 2**62) | text, max_size=5).map(msgspec.msgpack.encode))
def test_a_sealed_body_is_a_request_or_invalid(plain: bytes) -> None:
    message = Message(REQUEST.request_id, REQUEST.station_id, 0, KEYRING.seal(plain, REQUEST.request_id))
    try:
        request, _ = unwrap(KEYRING, message)
    except Invalid as error:
        assert REQUEST.request_id not in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert request.request_id == REQUEST.request_id


def test_examine_finds_nothing_wrong_with_a_right_request() -> None:
    target, broken = examine(REQUEST)
    assert broken == {}
    assert target is not None
    assert target.destination == "https://client.example:443"


def test_examine_names_every_field_at_fault_and_keeps_the_target_if_it_can() -> None:
    short = msgspec.structs.replace(REQUEST, driver_token="short", station_id="nowhere")
    target, broken = examine(short)
    assert set(broken) == {"driver_token", "station_id"}
    assert target is not None
    target, broken = examine(msgspec.structs.replace(short, callback_url="ftp://client.example/"))
    assert set(broken) == {"driver_token", "station_id", "callback_url"}
    assert target is None
    assert not any("short" in rule or "nowhere" in rule or "client.example" in rule for rule in broken.values())
