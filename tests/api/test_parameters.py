"""Cursors and query parameters keep what their documented patterns promise."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargegate.api.parameters import CURSOR, LIMIT, STATUS, TOKEN_HASH, pack_cursor
from chargegate.model import Status

TIMES = st.integers(-(2**63), 2**63 - 1)


@given(TIMES, st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=80))
def test_a_cursor_comes_back(time: int, name: str) -> None:
    cursor = pack_cursor(time, name)
    assert CURSOR.parse(cursor) == (time, name)
    assert re.search(CURSOR.schema["pattern"], cursor)


@given(st.from_regex(CURSOR.schema["pattern"].replace("$", r"\Z"), fullmatch=True))
def test_whatever_has_the_form_of_a_cursor_is_one(text: str) -> None:
    time, name = CURSOR.parse(text)
    assert -(2**63) <= time < 2**63
    assert "\x00" not in name
    name.encode()


@given(st.text())
def test_whatever_has_not_is_refused(text: str) -> None:
    if not re.fullmatch(CURSOR.schema["pattern"], text):
        with pytest.raises(ValueError, match="next_cursor"):
            CURSOR.parse(text)


@given(st.text() | st.integers().map(str))
def test_a_limit_is_a_number_in_its_range(text: str) -> None:
    try:
        number = LIMIT.parse(text)
    except ValueError:
        assert not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1000)
    else:
        assert 1 <= number <= 1000
        assert number == int(text)


@given(st.sampled_from(Status), st.data())
def test_a_status_in_any_letter_case(status: Status, data: st.DataObject) -> None:
    text = "".join(data.draw(st.sampled_from([letter, letter.upper()])) for letter in status)
    assert STATUS.parse(text) == status
    assert re.search(STATUS.schema["pattern"], text)


@given(st.text(max_size=70))
def test_other_values_are_refused_with_their_rule(text: str) -> None:
    if not re.fullmatch(STATUS.schema["pattern"], text):
        with pytest.raises(ValueError, match=r"^must be one of allowed, "):
            STATUS.parse(text)
    if not re.fullmatch(TOKEN_HASH.schema["pattern"], text):
        with pytest.raises(ValueError, match=r"^must be 64 hexadecimal digits$"):
            TOKEN_HASH.parse(text)
