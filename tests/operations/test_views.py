"""What is shown of a record follows from its fields: a field more is shown everywhere, unless it is hidden."""

from typing import Annotated

import msgspec

from chargegate.model import Hidden, Millis, Moment, Without
from chargegate.operations.views import columns, shown, view


class Inner(msgspec.Struct):
    name: str
    timestamp: Millis
    at: Moment | None = None


class Outer(msgspec.Struct):
    """A record."""

    name: str
    at: Moment
    stations: frozenset[str]
    inner: Annotated[Inner | None, Without(("name",))]
    secret: Annotated[bytes, Hidden()] = b"secret"


WHOLE = Outer("x", 0, frozenset({"b", "a"}), Inner("x", 5, 1))


def test_times_are_iso_and_sets_are_sorted() -> None:
    assert shown(WHOLE) == {
        "name": "x",
        "at": "1970-01-01T00:00:00.000Z",
        "stations": ["a", "b"],
        "inner": {"timestamp": 5, "at": "1970-01-01T00:00:00.001Z"},
    }
    assert shown(Outer("x", 0, frozenset(), None))["inner"] is None
    assert shown(Inner("x", 5))["at"] is None


def test_the_columns_are_the_fields_that_are_shown() -> None:
    assert columns(Outer) == ("name", "at", "stations", "inner")


def test_the_type_says_the_same() -> None:
    kind = view("Shown", Outer)
    assert kind.__name__ == "Shown"
    assert msgspec.to_builtins(msgspec.convert(shown(WHOLE), kind)) == shown(WHOLE)
    [schema], components = msgspec.json.schema_components([kind], ref_template="{name}")
    assert schema == {"$ref": "Shown"}
    described = components["Shown"]
    assert described["description"] == "A record."
    assert described["required"] == list(described["properties"]) == ["name", "at", "stations", "inner"]
    assert described["properties"]["at"]["format"] == "date-time"
    assert described["properties"]["inner"].keys() == {"anyOf"}
    kinds = described["properties"]["inner"]["anyOf"]  # in an order that differs between versions of msgspec
    assert sorted(kinds, key=str) == [{"$ref": "InnerView"}, {"type": "null"}]
    assert list(components["InnerView"]["properties"]) == ["timestamp", "at"]
