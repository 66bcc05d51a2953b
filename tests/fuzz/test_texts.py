"""Texts from outside that several rules read: any text passes, or is refused in the one way that is foreseen."""

import csv
import io
import ipaddress
from typing import Final

from hypothesis import strategies as st

from chargegate.authorizers.acl_entries import FIELDS, AclLineError, read_csv
from chargegate.delivering.retry import retry_after_ms
from chargegate.model import Invalid, parse_body, parse_callback_url
from trying import few_or_many, try_many

SUITE: Final = 400
SOAK: Final = 100_000
NOW: Final = 1_769_860_800_000

HOST: Final = st.one_of(
    st.text(max_size=30),
    st.ip_addresses().map(str),
    st.from_regex(r"[0-9a-fx.]{1,20}", fullmatch=True),
    st.sampled_from(
        ["localhost", "[::1]", "[::ffff:127.0.0.1]", "0", "127.1", "a" * 64, "xn--", "\uff11\uff12\uff17.0.0.1", "a。b"]
    ),
)
URL: Final = st.one_of(
    st.text(max_size=60),
    st.builds(
        "{}{}{}{}{}".format,
        st.sampled_from(["http://", "https://", "HTTP://", "ftp://", "//", "http:/", ""]),
        st.sampled_from(["", "", "user@", "user:pass@"]),
        HOST,
        st.sampled_from(["", ":", ":80", ":0", ":65536", ":x", ":-1", ":" + "9" * 30]),
        st.one_of(st.sampled_from(["", "/", "?", "#", "/%", "/a b", "\\"]), st.text(max_size=20).map("/{}".format)),
    ),
)


@few_or_many(SUITE, SOAK)
def test_callback_urls(examples: int) -> None:
    def check(url: str) -> None:
        try:
            target = parse_callback_url(url)
        except ValueError as error:
            assert str(error).isprintable()  # noqa: PT017 - either outcome is right
            return
        assert target.scheme in ("http", "https")
        assert 0 < target.port < 65536
        assert target.path.isascii()
        assert not set(target.path + target.authority) & set(" \r\n\t\x00")
        assert target.literal is None or ipaddress.ip_address(str(target.literal)) == target.literal

    try_many(examples, URL, check)


@few_or_many(SUITE, SOAK)
def test_retry_after(examples: int) -> None:
    dates = st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    numbers = st.integers().map(str) | st.floats().map(str) | st.from_regex(r"[0-9]{1,400}", fullmatch=True)

    def check(value: str) -> None:
        waited = retry_after_ms(value, NOW)
        assert isinstance(waited, int)
        assert waited >= 0

    try_many(examples, st.one_of(st.text(max_size=40), dates, numbers), check)


CELL: Final = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", "true", "false", "2026-01-01", "driver-0123456789-0123456789", "x;y", '"', "'", "=1+1", "\x00"]
    ),
)


@few_or_many(SUITE, SOAK)
def test_lines_of_the_access_list(examples: int) -> None:
    def written(rows: list[list[str]]) -> str:
        text = io.StringIO()
        csv.writer(text).writerows([list(FIELDS), *rows])
        return text.getvalue()

    rows = st.lists(st.lists(CELL, max_size=9), max_size=4).map(written)
    raw = st.text(max_size=200)

    def check(text: str) -> None:
        try:
            entries = list(read_csv(io.StringIO(text, newline=""), lambda token: token[::-1]))
        except AclLineError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
            return
        assert all(entry.driver_token_hash for entry in entries)

    try_many(examples, st.one_of(rows, raw, raw.map((",".join(FIELDS) + "\n{}").format)), check)


@few_or_many(SUITE, SOAK)
def test_bodies(examples: int) -> None:
    names = st.sampled_from(["station_id", "stationId", "driver_token", "callback_url", "station\\u005fid", "x", "\\"])
    values = st.sampled_from(
        ["1", "null", '"x"', "{}", "[1]", '"\\ud800"', "1e999", "9" * 5000, '"https://a.example/"', "NaN", "[" * 2000]
    )
    members = st.lists(st.tuples(names, values).map(lambda pair: f'"{pair[0]}":{pair[1]}'), max_size=8)
    bodies = members.map(lambda each: ("{" + ",".join(each) + "}").encode())

    def check(body: bytes) -> None:
        try:
            parse_body(body)
        except Invalid as error:
            assert all(name.isprintable() for name in error.details)  # noqa: PT017 - either outcome is right

    try_many(examples, st.one_of(bodies, st.binary(max_size=200), st.text(max_size=100).map(str.encode)), check)
