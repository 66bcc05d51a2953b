"""What a record looks like outside of the service. JSON, the OpenAPI document and the command line follow from the
record's own fields and their annotations (``model.shown``)."""

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

from chargegate.model import Hidden, Iso, Without, to_iso

IsoTime = Annotated[
    str, Meta(description="ISO 8601, UTC, with milliseconds.", extra_json_schema={"format": "date-time"})
]


class _Field(NamedTuple):
    """A field that is shown. ``type`` is what it looks like outside; ``show`` turns a value, but not None, into that,
    and is None where nothing is to do."""

    name: str
    type: Any
    show: Callable[[Any], Any] | None


def shown(record: msgspec.Struct, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The record's fields as values for JSON, without those that are hidden, and ``without`` these."""
    return _shown(without, record)


def columns(record: type[msgspec.Struct]) -> tuple[str, ...]:
    """The names of the fields that ``shown`` gives."""
    return tuple(field.name for field in _fields(record, ()))


def view(
    name: str, record: type[msgspec.Struct], without: tuple[str, ...] = (), *, optional: tuple[str, ...] = ()
) -> type[msgspec.Struct]:
    """The type of what ``shown`` gives for a record, under a name for the OpenAPI document. The ``optional`` fields,
    which come last, are not shown to everybody."""
    fields: list[Any] = [
        (field.name, field.type | UnsetType, UNSET)
        if field.name in optional or UnsetType in get_args(field.type)
        else (field.name, field.type)
        for field in _fields(record, without)
    ]
    return msgspec.defstruct(name, fields, namespace={"__doc__": record.__doc__})


def _view_of(record: type[msgspec.Struct], without: tuple[str, ...]) -> type[msgspec.Struct]:
    return view(record.__name__.removesuffix("Record") + "View", record, without)


def _all_shown(without: tuple[str, ...], records: Iterable[msgspec.Struct]) -> list[dict[str, Any]]:
    return [_shown(without, record) for record in records]


def _all_iso(times: Iterable[int]) -> list[str]:
    return [to_iso(time) for time in times]


def _shown(without: tuple[str, ...], record: msgspec.Struct) -> dict[str, Any]:
    values = {}
    for name, _, show in _fields(type(record), without):
        value = getattr(record, name)
        if value is UNSET:
            continue
        values[name] = value if value is None or show is None else show(value)
    return values


@lru_cache
def _fields(record: type[msgspec.Struct], without: tuple[str, ...]) -> tuple[_Field, ...]:
    hints = get_type_hints(record, include_extras=True)
    fields = (_field(name, hints[name]) for name in record.__struct_fields__ if name not in without)
    return tuple(field for field in fields if field is not None)


def _field(name: str, hint: Any) -> _Field | None:
    """What is shown of a field of this type; None where it is hidden. A field that may be unset is then left out."""
    if get_origin(hint) in (Union, UnionType) and UnsetType in get_args(hint):
        [inner] = (option for option in get_args(hint) if option is not UnsetType)
        field = _field(name, inner)
        return None if field is None else field._replace(type=field.type | UnsetType)
    kind, annotations, optional = _taken_apart(hint)
    outside: Any = hint
    show: Callable[[Any], Any] | None = None
    if Hidden() in annotations:
        return None
    if Iso() in annotations:
        outside, show = IsoTime, to_iso
    elif kind == frozenset[str]:
        outside, show = list[str], sorted
    elif get_origin(kind) is tuple and Iso() in _taken_apart(get_args(kind)[0])[1]:  # any number of times
        outside, show = list[IsoTime], _all_iso
    elif get_origin(kind) is tuple:  # any number of records
        item = get_args(kind)[0]
        outside, show = list[_view_of(item, ())], partial(_all_shown, ())  # type: ignore[misc]  # made at run time
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        without = next((one.fields for one in annotations if isinstance(one, Without)), ())
        outside, show = _view_of(kind, without), partial(_shown, without)
    return _Field(name, outside | None if optional and show else outside, show)


def _taken_apart(hint: Any) -> tuple[Any, list[Any], bool]:
    """The bare type, its annotations, and whether it may be None."""
    if get_origin(hint) is Annotated:
        kind, annotations, optional = _taken_apart(get_args(hint)[0])
        return kind, [*get_args(hint)[1:], *annotations], optional
    if get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint):
        [inner] = (option for option in get_args(hint) if option is not NoneType)
        kind, annotations, _ = _taken_apart(inner)
        return kind, annotations, True
    return hint, [], False
