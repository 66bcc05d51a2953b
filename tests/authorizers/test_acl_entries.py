import csv
import hashlib
import io
import string
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chargegate.authorizers.acl_entries import FIELDS, AclLineError, entry_from, read_csv
from chargegate.ledger.records import AccessEntry
from chargegate.model import Invalid, from_iso, to_iso

TOKEN = "driver-token-0123456789~A"
STATION = "123E4567-e89b-12d3-a456-426614174000"
OTHER = "00000000-0000-4000-8000-00000000000b"


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def read(text: str) -> list[AccessEntry]:
    return list(read_csv(io.StringIO(text, newline=""), digest))


tokens = st.text(string.ascii_letters + string.digits + "._~-", min_size=20, max_size=80)
uuids = st.uuids().map(str) | st.uuids().map(lambda uuid: str(uuid).upper())
instants = st.integers(min_value=1, max_value=4_000_000_000_000)
windows = st.tuples(st.none() | instants, st.none() | instants).filter(
    lambda window: None in window or window[0] < window[1]
)
notes = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60)


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    start, end = draw(windows)
    token = draw(tokens)
    return {
        "driver_token": token,
        "blocked": draw(st.booleans()),
        "valid_from": start and to_iso(start),
        "valid_until": end and to_iso(end),
        "allowed_stations": draw(st.lists(uuids, max_size=3)),
        "denied_stations": draw(st.lists(uuids, max_size=3)),
        "note": draw(notes.filter(lambda note: token not in note)),
    }


def as_cells(record: dict[str, Any], columns: Sequence[str]) -> list[str]:
    cells = {name: record[name] or "" for name in FIELDS}
    for name in ("allowed_stations", "denied_stations"):
        cells[name] = ";".join(record[name])
    cells["blocked"] = "YES" if record["blocked"] else ""
    return [cells[name] for name in columns]


@given(
    st.lists(records(), max_size=4, unique_by=lambda record: record["driver_token"]),
    st.permutations(FIELDS),
    st.booleans(),
)
def test_a_csv_and_a_body_that_say_the_same_give_the_same_entry(
    people: list[dict[str, Any]], columns: Sequence[str], marked: bool
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    for person in people:
        person["note"] = person["note"].strip()
        writer.writerow(as_cells(person, columns))
    assert read("\ufeff" * marked + file.getvalue()) == [entry_from(person, digest) for person in people]


@given(records())
def test_an_entry_holds_what_was_written_and_no_token(record: dict[str, Any]) -> None:
    entry = entry_from(record, digest)
    assert entry.driver_token_hash == digest(record["driver_token"])
    assert entry.blocked is record["blocked"]
    for name in ("valid_from", "valid_until"):
        assert getattr(entry, name) == (record[name] and from_iso(record[name]))
    for name in ("allowed_stations", "denied_stations"):
        assert getattr(entry, name) == frozenset(station.lower() for station in record[name])
    assert entry.note == record["note"]
    assert record["driver_token"] not in repr(entry)


def test_only_the_token_is_required() -> None:
    assert entry_from({"driver_token": TOKEN}, digest) == AccessEntry(digest(TOKEN))
    assert entry_from({"driver_token": TOKEN, "valid_from": None}, digest) == AccessEntry(digest(TOKEN))
    assert read(f"driver_token\n{TOKEN}") == [AccessEntry(digest(TOKEN))]


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({}, "is required"),
        ({"driver_token": TOKEN[:19]}, "20 to 80"),
        ({"driver_token": 7}, "20 to 80"),
        ({"driver_token": None}, "20 to 80"),
        ({"blocked": 1}, "true or false"),
        ({"blocked": "true"}, "true or false"),
        ({"blocked": None}, "true or false"),
        ({"valid_from": "yesterday"}, "ISO 8601"),
        ({"valid_from": 1767225600000}, "ISO 8601"),
        ({"valid_until": ""}, "ISO 8601"),
        ({"valid_from": "2026-01-02", "valid_until": "2026-01-01"}, "after valid_from"),
        ({"valid_from": "2026-01-01", "valid_until": "2026-01-01T00:00:00Z"}, "after valid_from"),
        ({"allowed_stations": STATION}, "list of UUIDs"),
        ({"allowed_stations": None}, "list of UUIDs"),
        ({"denied_stations": [STATION, "somewhere"]}, "canonical"),
        ({"denied_stations": [[]]}, "canonical"),
        ({"note": "n" * 501}, "500 characters"),
        ({"note": None}, "500 characters"),
        ({"note": f"card {TOKEN} of Ada"}, "must not contain the driver token"),
        ({"note": "\ud800"}, "valid Unicode"),
        ({"notes": ""}, "is not a field"),
    ],
)
def test_a_field_at_fault_is_named_with_its_rule(fields: dict[str, object], rule: str) -> None:
    whole = fields if not fields else {"driver_token": TOKEN, **fields}
    with pytest.raises(Invalid) as refusal:
        entry_from(whole, digest)
    (name, fault), *others = refusal.value.details.items()
    assert not others
    assert name == ([*fields] or ["driver_token"])[-1]
    assert rule in fault


def test_every_field_at_fault_is_named() -> None:
    wrong = {name: object() for name in (*FIELDS, "extra")}
    with pytest.raises(Invalid) as refusal:
        entry_from(wrong, digest)
    assert set(refusal.value.details) == {*FIELDS, "extra"}


def test_the_longest_note_is_taken() -> None:
    assert entry_from({"driver_token": TOKEN, "note": "n" * 500}, digest).note == "n" * 500


@given(st.dictionaries(tokens | st.sampled_from(FIELDS), tokens | st.lists(tokens), min_size=1))
@example({"driver_token": TOKEN, "note": TOKEN})
@example({TOKEN: "anything"})
def test_a_refusal_repeats_no_token_from_wherever_it_stands(fields: dict[str, object]) -> None:
    given_tokens = {text for text in [*fields, *fields.values()] if isinstance(text, str) and text not in FIELDS}
    given_tokens.update(text for value in fields.values() if isinstance(value, list) for text in value)
    shown = ""
    try:
        entry_from(fields, digest)
    except Invalid as refusal:
        shown = str(refusal) + repr(refusal.details)
    assert not [token for token in given_tokens if token in shown]


HEADER = ",".join(FIELDS)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "driver_token: the header must name this column"),
        ("blocked,note\n", 1, "driver_token: the header must name this column"),
        ("\ndriver_token,color\n", 2, "color: is not one of the columns"),
        (f"{TOKEN},true\n", 1, "unknown field: is not one of the columns"),
        ("driver_token,note,note\n", 1, "note: stands twice in the header"),
        (f"{HEADER}\n\n{TOKEN},maybe\n", 3, "blocked: must be true or false"),
        (f"{HEADER}\n,true\n", 2, "driver_token: is required"),
        (f"{HEADER}\n{TOKEN},,soon\n", 2, "valid_from: must be an ISO 8601 time"),
        (f"{HEADER}\n{TOKEN},,2026-01-02,2026-01-01\n", 2, "valid_until: must be after valid_from"),
        (f"{HEADER}\n{TOKEN},,,,{STATION};;{OTHER}\n", 2, "allowed_stations: each must be a UUID"),
        (f"{HEADER}\n{TOKEN},,,,;\n", 2, "allowed_stations: each must be a UUID"),
        (f"{HEADER}\n{TOKEN},,,,,garage\n", 2, "denied_stations: each must be a UUID"),
        (f"{HEADER}\n{TOKEN},maybe,soon\n", 2, "blocked: must be true or false; valid_from: must be"),
        (f"driver_token\n{TOKEN},true\n", 2, "fields: must not be more than the columns"),
        (f'{HEADER}\n{TOKEN},,,,,,"two\nlines"\n{TOKEN}!\n', 4, "driver_token: must be 20 to 80"),
        (f'{HEADER}\n{TOKEN},,,,,,"open\n', 2, "fields: must be CSV"),
        (f'{HEADER}\n"{TOKEN}"x\n', 2, "fields: must be CSV"),
        (f"{HEADER}\n{TOKEN},,,,,,Zo\udcff\n", 2, "note: must be valid Unicode"),
        (f"{HEADER}\n{TOKEN}\n\n{TOKEN}2\n{TOKEN},true\n", 5, "driver_token: is the driver of line 2 again"),
        ("driver_token;blocked\n", 1, "the columns are separated by semicolons"),
        ("driver_token\tblocked\n", 1, "the columns are separated by tabs"),
        ('note|"driver_token"\n', 1, "the columns are separated by vertical bars"),
        ("driver_token;note;,,\n", 1, "the columns are separated by semicolons"),
        ("driver_token;note, with a comma\n", 1, "the columns are separated by semicolons"),
        ("sep=;\ndriver_token\n", 1, "sep=: the first line must name the columns"),
        ("driver_token,,note\n", 1, "unknown field: is not one of the columns"),
    ],
)
def test_a_malformed_line_is_named_with_its_column_and_rule(text: str, line: int, message: str) -> None:
    with pytest.raises(AclLineError) as refusal:
        read(text)
    assert refusal.value.line_number == line
    assert refusal.value.message.startswith(message)
    assert str(refusal.value) == f"line {line}: {refusal.value.message}"
    for value in (TOKEN, "maybe", "soon", "garage", "2026-01-02"):
        assert value not in str(refusal.value)


@pytest.mark.parametrize(
    ("cell", "blocked"),
    [("True", True), ("1", True), ("yEs", True), ("FALSE", False), ("0", False), ("no", False), ("", False)],
)
def test_blocked_in_every_spelling(cell: str, blocked: bool) -> None:
    assert [entry.blocked for entry in read(f"driver_token,blocked\n{TOKEN},{cell}\n")] == [blocked]


def test_blank_lines_spaces_and_line_ends_of_any_kind_do_not_matter() -> None:
    text = f"\r\n driver_token , allowed_stations\r\n\r\n  \r\n,,\r\n {TOKEN} , {STATION} ; {OTHER};\r\n"
    assert read(text) == [AccessEntry(digest(TOKEN), allowed_stations=frozenset({STATION.lower(), OTHER}))]


def test_empty_columns_at_the_end_do_not_matter() -> None:
    rows = f"driver_token,blocked,,,\n{TOKEN},yes,,,\n{TOKEN}2,,,,,,,\n"
    assert [(entry.blocked, entry.driver_token_hash) for entry in read(rows)] == [
        (True, digest(TOKEN)),
        (False, digest(TOKEN + "2")),
    ]
    with pytest.raises(AclLineError, match="line 2: fields"):
        read(f"driver_token,,\n{TOKEN},,yes\n")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_another_encoding_is_named(encoding: str) -> None:
    content = f"driver_token\n{TOKEN}\n".encode(encoding)
    with pytest.raises(AclLineError, match="line 1: the file is in UTF-16"):
        list(read_csv(io.TextIOWrapper(io.BytesIO(content), "utf-8", "surrogateescape", newline=""), digest))


cells = st.sampled_from([*FIELDS, "", "yes", TOKEN, "2026-01-01", STATION, '"', "\x00", "\ufeff"]) | st.text(max_size=8)
tables = st.lists(st.lists(cells, max_size=8), max_size=6)


@given(tables, st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["utf-8", "utf-16"]))
def test_any_table_is_read_or_refused_and_no_driver_stands_twice(
    table: list[list[str]], separator: str, end: str, encoding: str
) -> None:
    text = end.join(map(separator.join, table))
    content = text.encode(encoding, "surrogatepass")
    lines = io.TextIOWrapper(io.BytesIO(content), "utf-8", "surrogateescape", newline="")
    try:
        hashes = [entry.driver_token_hash for entry in read_csv(lines, digest)]
    except AclLineError as refusal:
        assert TOKEN not in str(refusal)  # noqa: PT017 - either outcome is right
        assert str(refusal).isprintable()  # noqa: PT017
    else:
        assert len(hashes) == len(set(hashes))


def test_entries_before_a_malformed_line_are_read() -> None:
    entries = read_csv([f"{HEADER}\n", f"{TOKEN}\n", "short\n"], digest)
    assert next(entries).driver_token_hash == digest(TOKEN)
    with pytest.raises(AclLineError, match="line 3"):
        next(entries)


def read_or_refusal(text: str) -> list[AccessEntry] | AclLineError:
    try:
        return read(text)
    except AclLineError as refusal:
        return refusal


@given(st.text(max_size=80) | tokens, st.text(max_size=80) | tokens)
@example("driver_token", TOKEN)
@example("driver_token", '"' + "x" * 200_000)
def test_any_text_is_read_or_refused_by_its_line(first: str, second: str) -> None:
    text = f"{first}\n{second}\n"
    outcome = read_or_refusal(text)
    if isinstance(outcome, AclLineError):
        assert 1 <= outcome.line_number <= len(list(io.StringIO(text, newline="")))
    else:
        assert "driver_token" in text
