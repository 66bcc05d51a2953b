import ipaddress
import json
import re
import socket
import string
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chargegate.model import (
    CallbackTarget,
    Invalid,
    from_iso,
    is_uuid,
    new_request_id,
    now_ms,
    parse_body,
    parse_callback_url,
    station_fault,
    to_iso,
    token_fault,
    valid_traceparent,
)

STATION = "123E4567-e89b-12d3-a456-426614174000"
TOKEN = "driver-token-0123456789~A"
URL = "https://client.example/hook"
TOKEN_CHARACTERS = string.ascii_letters + string.digits + "._~-"

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=100),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def body(**fields: Any) -> bytes:
    return json.dumps({"station_id": STATION, "driver_token": TOKEN, "callback_url": URL} | fields).encode()


def faults(raw: bytes) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        parse_body(raw)
    return caught.value.details


# Tokens and stations


@given(st.text(TOKEN_CHARACTERS, min_size=20, max_size=80))
def test_every_token_of_the_rule_passes(token: str) -> None:
    assert token_fault(token) is None


@given(anything | st.text(TOKEN_CHARACTERS, max_size=100))
def test_a_token_passes_by_the_rule_alone(value: object) -> None:
    fits = isinstance(value, str) and 20 <= len(value) <= 80 and set(value) <= set(TOKEN_CHARACTERS)
    assert (token_fault(value) is None) is fits


@pytest.mark.parametrize(
    "token",
    [TOKEN + "\n", "\n" + TOKEN, TOKEN + " ", "é" * 20, "a" * 19, "a" * 81, "٣" * 20, TOKEN + "\x00", "", None, 20],
)
def test_near_misses_are_no_tokens(token: object) -> None:
    assert token_fault(token)


@given(st.uuids(), st.randoms())
def test_every_uuid_in_any_case_is_a_station(value: uuid.UUID, rng: Any) -> None:
    text = "".join(rng.choice([c.lower(), c.upper()]) for c in str(value))
    assert station_fault(text) is None
    assert is_uuid(text)


@pytest.mark.parametrize(
    "station",
    [
        STATION + "\n", STATION[:-1], STATION + "0", "{" + STATION + "}", "urn:uuid:" + STATION,
        STATION.replace("-", ""), STATION.replace("1", "g"), "123e4567e-89b-12d3-a456-426614174000",
        "\u0661" + STATION[1:], "", None, 1, [STATION],
    ],
)  # fmt: skip
def test_other_forms_are_no_stations(station: object) -> None:
    assert station_fault(station)


# Callback URLs

labels = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
last_labels = st.from_regex(r"[a-z]{2,8}", fullmatch=True)
names = st.builds(lambda front, last: ".".join([*front, last]), st.lists(labels, max_size=3), last_labels)
paths = st.text("".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in "#\\"), max_size=30).map("/".__add__)
ports = st.none() | st.integers(1, 65535)
schemes = st.sampled_from(["http", "https", "HTTP", "hTTps"])


@given(schemes, names, ports, paths | st.just(""), st.booleans())
def test_a_url_with_a_name_is_taken_apart_as_the_standard_library_does(
    scheme: str, name: str, port: int | None, path: str, upper: bool
) -> None:
    host = name.upper() if upper else name
    url = f"{scheme}://{host}{'' if port is None else f':{port}'}{path}"
    expected = urlsplit(url)
    target = parse_callback_url(url)
    default = {"http": 80, "https": 443}[scheme.lower()]
    assert (target.scheme, target.host, target.port) == (expected.scheme, name, port or default)
    assert target.literal is None
    assert target.path == (path or "/")
    assert target.authority == (name if target.port == default else f"{name}:{target.port}")
    assert target.destination == f"{scheme.lower()}://{name}:{target.port}"


@given(
    st.ip_addresses(v=4), st.integers(0, 3), st.lists(st.sampled_from("dohX"), min_size=4, max_size=4), st.booleans()
)
def test_every_spelling_of_an_ipv4_address_is_that_address(
    address: ipaddress.IPv4Address, dots: int, bases: list[str], final_dot: bool
) -> None:
    """The address in one to four parts, each decimal, octal or hexadecimal. The last part has the remaining bytes."""
    value = int(address)
    parts = [(value >> (24 - 8 * n)) & 0xFF for n in range(dots)] + [value & ((1 << (32 - 8 * dots)) - 1)]
    spelled: dict[str, Callable[[int], str]] = {
        "d": str,
        "o": lambda n: f"0{n:o}",
        "h": lambda n: f"0x{n:x}",
        "X": lambda n: f"0X{n:X}",
    }
    host = ".".join(spelled[base](part) for part, base in zip(parts, bases, strict=False))
    target = parse_callback_url(f"http://{host}{'.' if final_dot else ''}/")
    assert target.literal == address
    assert target.host == str(address)


@given(st.ip_addresses(v=6), st.booleans(), ports)
def test_ipv6_literals(address: ipaddress.IPv6Address, exploded: bool, port: int | None) -> None:
    host = address.exploded.upper() if exploded else address.compressed
    target = parse_callback_url(f"https://[{host}]{'' if port is None else f':{port}'}")
    assert target.literal == address
    assert target.host == str(address)
    assert target.authority == f"[{address}]" + ("" if target.port == 443 else f":{port}")
    assert target.destination == f"https://[{address}]:{target.port}"


PIECES = ["http://", "user@", "127.0.0.1", "[::1]", "0x7f", ":80", "/", "#", "?", "\\", "..", "a", "%31"]


@settings(max_examples=300)
@given(
    st.text(max_size=60)
    | st.text("htps:/@[]#?%.0x127\\ \t\r\n\u3002a", max_size=40).map("http://".__add__)
    | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
)
def test_any_text_is_a_safe_target_or_refused_with_a_rule(text: str) -> None:
    try:
        target = parse_callback_url(text)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        assert str(error).startswith(("must ", "has "))  # noqa: PT017 - as above
        return
    assert re.fullmatch(r"[a-z0-9._:-]+", target.host)
    assert re.fullmatch(r"/[!-~]*", target.path)
    assert "#" not in target.path
    assert "@" not in target.authority
    assert 0 < target.port < 65536
    if target.literal is None:
        with pytest.raises(OSError, match="illegal"):
            socket.inet_aton(target.host.removesuffix("."))


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("", "absolute http or https"),
        (None, "absolute http or https"),
        (7, "absolute http or https"),
        ([], "absolute http or https"),
        ({"a": []}, "absolute http or https"),
        ("/relative", "absolute http or https"),
        ("//client.example/", "absolute http or https"),
        ("ftp://client.example/", "absolute http or https"),
        ("javascript:alert(1)", "absolute http or https"),
        ("http:client.example", "absolute http or https"),
        ("http://", "valid host"),
        ("http:///path", "valid host"),
        ("http://user@client.example/", "no user information"),
        ("http://user:pass@client.example/", "no user information"),
        ("http://@client.example/", "no user information"),
        ("http://client.example/#part", "no fragment"),
        ("http://client.example#", "no fragment"),
        ("http://client.example/a b", "no spaces"),
        (" http://client.example/", "no spaces"),
        ("http://client.example/\n", "no spaces"),
        ("http://client.example/\r\nx: y", "no spaces"),
        ("http://clïent.example/", "non-ASCII"),
        ("http://client.example\\@evil.example/", "backslashes"),
        ("http://client.example:0/", "port outside"),
        ("http://client.example:65536/", "port outside"),
        ("http://client.example:99999/", "port outside"),
        ("http://client.example:1e3/", "valid host, and a port"),
        ("http://client.example:-1/", "valid host, and a port"),
        ("http://[::1/", "valid host"),
        ("http://[::1]x/", "valid host"),
        ("http://[fe80::1%25eth0]/", "valid host"),
        ("http://[1.2.3.4]/", "not a valid IPv6"),
        ("http://[:::]/", "not a valid IPv6"),
        ("http://256.1.1.1/", "not a valid IPv4"),
        ("http://1.2.3.4.5/", "not a valid IPv4"),
        ("http://08.1.1.1/", "not a valid IPv4"),
        ("http://4294967296/", "not a valid IPv4"),
        ("http://client.7/", "not a valid IPv4"),
        ("http://a..b/", "not a valid name"),
        ("http://.example/", "not a valid name"),
        ("http://./", "not a valid name"),
        (f"http://{'a' * 64}.example/", "not a valid name"),
        (f"http://{'.'.join(['a' * 49] * 6)}/", "not a valid name"),
        ("http://%31%32%37.0.0.1/", "valid host"),
        ("http://client.example/" + "a" * 2048, "at most 2048"),
    ],
)
def test_each_rule_of_urls_is_named(url: object, rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as caught:
        parse_callback_url(url)
    assert "client" not in str(caught.value)
    assert "pass" not in str(caught.value)


def test_a_url_of_the_full_length_passes() -> None:
    url = "https://client.example/" + "a" * (2048 - 23)
    assert len(url) == 2048
    assert parse_callback_url(url).path == "/" + "a" * (2048 - 23)


def test_known_urls() -> None:
    assert parse_callback_url("http://Client.Example:8080?x=1") == CallbackTarget(
        "http", "client.example", 8080, "/?x=1", None, "client.example:8080", "http://client.example:8080"
    )
    assert parse_callback_url("http://client.example:443/").authority == "client.example:443"
    assert parse_callback_url("https://client.example:00443/").authority == "client.example"
    assert parse_callback_url("http://2130706433/").literal == ipaddress.IPv4Address("127.0.0.1")
    assert parse_callback_url("http://0x7f.1/").literal == ipaddress.IPv4Address("127.0.0.1")
    assert parse_callback_url("http://[::ffff:127.0.0.1]/").literal == ipaddress.IPv6Address("::ffff:127.0.0.1")


# Bodies


def test_a_right_body_comes_back_as_it_was_sent() -> None:
    station, token, url, target = parse_body(body(unknown={"deep": [1]}))
    assert (station, token, url) == (STATION, TOKEN, URL)
    assert target == parse_callback_url(URL)


def test_the_other_spelling_is_as_good() -> None:
    other = json.dumps({"stationId": STATION, "driverToken": TOKEN, "callbackUrl": URL}).encode()
    assert parse_body(other) == parse_body(body())


@pytest.mark.parametrize(
    ("name", "other"), [("station_id", "stationId"), ("driver_token", "driverToken"), ("callback_url", "callbackUrl")]
)
@pytest.mark.parametrize("value", [None, "same"])
def test_both_spellings_of_one_field_are_an_error(name: str, other: str, value: str | None) -> None:
    right = {"station_id": STATION, "driver_token": TOKEN, "callback_url": URL}[name]
    found = faults(body(**{other: right if value else None}))
    assert list(found) == [name]
    assert "twice" in found[name]


def test_every_field_at_fault_is_named() -> None:
    assert set(faults(b"{}")) == {"station_id", "driver_token", "callback_url"}
    assert set(faults(b"{}").values()) == {"is required"}
    assert set(faults(body(station_id="x", driver_token="x", callback_url="x"))) == {
        "station_id",
        "driver_token",
        "callback_url",
    }


@given(st.dictionaries(st.sampled_from(["station_id", "driver_token", "callback_url", "stationId", "x"]), anything))
def test_any_object_passes_or_names_only_fields(fields: dict[str, object]) -> None:
    try:
        parse_body(json.dumps(fields).encode())
    except Invalid as error:
        assert set(error.details) <= {"station_id", "driver_token", "callback_url"}  # noqa: PT017 - either outcome is right
        assert error.details  # noqa: PT017 - as above


@given(
    st.binary(max_size=60)
    | anything.filter(lambda value: not isinstance(value, dict)).map(lambda v: json.dumps(v).encode())
)
def test_what_is_no_object_is_refused_as_a_whole(raw: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        parse_body(raw)
    if not caught.value.details:
        assert str(caught.value) == "The request body must be a JSON object."


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"null", b"[]", b"[" * 100_000, b'{"a":' * 100_000, b'{"a": "\\ud800"}', b"\xff\xfe{}", b"\xef\xbb\xbf{}",
        body() + b"x", body()[:-1], b"{'station_id': 1}", b'{"a": NaN}',
    ],
)  # fmt: skip
def test_hostile_bodies_are_refused(raw: bytes) -> None:
    assert faults(raw) == {}


@given(st.text(TOKEN_CHARACTERS, min_size=5, max_size=19), st.text(string.ascii_letters, min_size=5, max_size=12))
def test_no_message_repeats_a_value(token: str, station: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_body(body(driver_token=f"<{token}>", station_id=f"<{station}>", callback_url=f"http://<{station}>@x/"))
    told = str(caught.value) + json.dumps(caught.value.details)
    assert f"<{token}>" not in told
    assert f"<{station}>" not in told


# Times and ids


@given(st.integers(0, 253_402_300_799_999))
def test_iso_and_back(ms: int) -> None:
    text = to_iso(ms)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert from_iso(text) == ms
    assert datetime.fromisoformat(text) == datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01", 0),
        ("1970-01-01T00:00:01", 1_000),
        ("1970-01-01T02:00:00+02:00", 0),
        ("2026-01-31T12:00:00Z", 1_769_860_800_000),
        ("2026-01-31T12:00:00.5Z", 1_769_860_800_500),
    ],
)
def test_known_times(text: str, ms: int) -> None:
    assert from_iso(text) == ms


@given(st.text(max_size=30) | st.text("0123456789-:TZ+.W ", max_size=30))
def test_any_text_is_a_time_that_can_be_shown_or_refused(text: str) -> None:
    try:
        ms = from_iso(text)
    except ValueError as error:
        assert str(error) == "must be an ISO 8601 time such as 2026-01-31T12:00:00Z"  # noqa: PT017 - either outcome is right
    else:
        assert from_iso(to_iso(ms)) == ms


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2026-01-01T25:00:00Z", "1767225600000"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="ISO 8601"):
        from_iso(text)


def test_a_request_id_is_a_uuid_of_version_7_made_now() -> None:
    before = now_ms()
    made = [uuid.UUID(new_request_id()) for _ in range(500)]
    after = now_ms()
    assert len(set(made)) == 500
    assert {value.version for value in made} == {7}
    assert {value.variant for value in made} == {uuid.RFC_4122}
    times = [value.int >> 80 for value in made]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= after
    text = new_request_id()
    assert text == str(uuid.UUID(text))
    spread = {bit for value in made for bit in range(74) if value.int >> bit & 1}
    assert len(spread) >= 72


@given(
    st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True)
    | st.text("0123456789abcdef-\n", max_size=60)
)
def test_a_traceparent_passes_by_the_w3c_rule(text: str) -> None:
    parts = text.split("-")
    right = (
        [len(part) for part in parts] == [2, 32, 16, 2]
        and re.fullmatch(r"[0-9a-f-]+", text) is not None
        and parts[0] != "ff"
        and int(parts[1], 16) != 0
        and int(parts[2], 16) != 0
    )
    assert valid_traceparent(text) == (text if right else "")
