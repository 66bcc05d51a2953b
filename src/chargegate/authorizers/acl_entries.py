"""Access list entries from outside: the body of a REST call, or a line of CSV."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from chargegate.ledger.records import AccessEntry
from chargegate.model import MIN_DRIVER_TOKEN, Invalid, from_iso, station_fault, token_fault

FIELDS: Final = ("driver_token", "blocked", "valid_from", "valid_until", "allowed_stations", "denied_stations", "note")
MAX_NOTE: Final = 500

_STATION_LISTS: Final = ("allowed_stations", "denied_stations")
_BOOLEANS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_SEPARATORS: Final = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ":": "colons"}
_WIDE_MARKS: Final = ("\udcff\udcfe", "\udcfe\udcff")  # of UTF-16 and UTF-32, as surrogateescape shows them
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]").search


class AclLineError(Exception):
    """A line of an access list file breaks a rule. ``message`` names the column and the rule, but no value."""

    def __init__(self, line_number: int, message: str) -> None:
        super().__init__(f"line {line_number}: {message}")
        self.line_number = line_number
        self.message = message


def entry_from(fields: Mapping[str, object], token_hash: Callable[[str], str]) -> AccessEntry:
    """An entry from named fields. ``driver_token`` is required; the other ``FIELDS`` are optional.

    ``blocked`` is a boolean, times are ISO 8601 text or None, station lists are lists of UUIDs, and ``note`` is text
    of at most ``MAX_NOTE`` characters without the token. Raises ``Invalid`` that names every field at fault.
    """
    faults = {_safe_name(name): "is not a field of an access list entry" for name in fields if name not in FIELDS}
    token = fields.get("driver_token")
    if fault := (token_fault(token) if "driver_token" in fields else "is required"):
        faults["driver_token"] = fault
    blocked = fields.get("blocked", False)
    if not isinstance(blocked, bool):
        faults["blocked"] = "must be true or false"
    valid_from = _time(fields, "valid_from", faults)
    valid_until = _time(fields, "valid_until", faults)
    if valid_from is not None and valid_until is not None and valid_until <= valid_from:
        faults["valid_until"] = "must be after valid_from"
    allowed, denied = (_stations(fields, name, faults) for name in _STATION_LISTS)
    note = fields.get("note", "")
    if fault := _note_fault(note, token):
        faults["note"] = fault
    if faults:
        raise Invalid("The access list entry breaks the rules of " + ", ".join(faults) + ".", faults)
    return AccessEntry(
        driver_token_hash=token_hash(str(token)),
        blocked=bool(blocked),
        valid_from=valid_from,
        valid_until=valid_until,
        allowed_stations=allowed,
        denied_stations=denied,
        note=str(note),
    )


def read_csv(lines: Iterable[str], token_hash: Callable[[str], str]) -> Iterator[AccessEntry]:
    """The entries of a CSV file (RFC 4180), one at a time. A byte order mark is allowed. Raises ``AclLineError``.

    The first line names some of ``FIELDS`` in any order, and always ``driver_token``. An empty cell is an absent
    field, ``;`` separates stations, and ``blocked`` is true, false, yes, no, 1 or 0. Blank lines, and empty columns at
    the end, are skipped. A driver may stand in one line only. Open the file with ``newline=""``, and with
    ``errors="surrogateescape"``, so that the error for bytes that are not UTF-8 names their line.
    """
    rows = _rows(lines)
    number, header = next(rows, (1, []))
    while header and not header[-1]:
        header.pop()
    if fault := _header_fault(header):
        raise AclLineError(number, fault)
    lines_of: dict[str, int] = {}
    for number, cells in rows:
        if any(cells[len(header) :]):
            raise AclLineError(number, "fields: must not be more than the columns of the header")
        try:
            fields = {name: _value(name, cell) for name, cell in zip(header, cells, strict=False) if cell}
            entry = entry_from(fields, token_hash)
        except Invalid as error:
            raise AclLineError(number, "; ".join(f"{name}: {rule}" for name, rule in error.details.items())) from None
        first = lines_of.setdefault(entry.driver_token_hash, number)
        if first != number:
            raise AclLineError(number, f"driver_token: is the driver of line {first} again; each may stand there once")
        yield entry


def _rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its first line."""
    reader = csv.reader(_unmarked(lines), strict=True, skipinitialspace=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error:
            raise AclLineError(number, "fields: must be CSV as in RFC 4180") from None
        if any(cells):
            yield number, cells


def _unmarked(lines: Iterable[str]) -> Iterator[str]:
    """The lines without a byte order mark. Raises ``AclLineError`` for text that is not UTF-8 at all."""
    for at, line in enumerate(lines):
        if at == 0 and (line.startswith(_WIDE_MARKS) or "\x00" in line):
            raise AclLineError(1, "the file is in UTF-16 or UTF-32, or no text; it must be in UTF-8")
        yield line.removeprefix("\ufeff") if at == 0 else line


def _header_fault(header: list[str]) -> str | None:
    for character, name in _SEPARATORS.items():
        names = [part.strip(' "') for part in character.join(header).split(character)]
        if any(character in each for each in header) and not set(FIELDS).isdisjoint(names):
            return f"the columns are separated by {name}; they must be separated by commas"
    if header and header[0].lower().startswith("sep="):
        return "sep=: the first line must name the columns"
    for name in header:
        if name not in FIELDS:
            return f"{_safe_name(name)}: is not one of the columns {','.join(FIELDS)}"
    for name in header:
        if header.count(name) > 1:
            return f"{name}: stands twice in the header"
    return None if "driver_token" in header else "driver_token: the header must name this column"


def _value(name: str, cell: str) -> object:
    """A cell as a field of ``entry_from``. A cell that cannot be read stays text, so that ``entry_from`` refuses it."""
    if name == "blocked":
        return _BOOLEANS.get(cell.lower(), cell)
    if name in _STATION_LISTS:
        return [station.strip() for station in cell.rstrip(";").split(";")]
    return cell


def _safe_name(name: str) -> str:
    # An unknown name may be a driver token in the wrong place, which must not be shown.
    return name if len(name) < MIN_DRIVER_TOKEN and name.isidentifier() else "unknown field"


def _time(fields: Mapping[str, object], name: str, faults: dict[str, str]) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        return from_iso(value if isinstance(value, str) else "")
    except ValueError as error:
        faults[name] = str(error)
        return None


def _stations(fields: Mapping[str, object], name: str, faults: dict[str, str]) -> frozenset[str]:
    value = fields.get(name, [])
    if not isinstance(value, list):
        faults[name] = "must be a list of UUIDs"
        return frozenset()
    for station in value:
        if fault := station_fault(station):
            faults[name] = f"each {fault}"
            return frozenset()
    return frozenset(station.lower() for station in value)


def _note_fault(note: object, token: object) -> str | None:
    if not isinstance(note, str) or len(note) > MAX_NOTE:
        return f"must be text of at most {MAX_NOTE} characters"
    if _UNSTORABLE(note):
        return "must be valid Unicode without NUL"
    if isinstance(token, str) and not token_fault(token) and token in note:
        return "must not contain the driver token"
    return None
