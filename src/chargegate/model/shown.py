"""Annotations of a record's fields that say how they are shown outside: over HTTP, in its document, on the command
line. What has none is shown as it is."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta


@dataclass(frozen=True, slots=True)
class Iso:
    """A time in Unix milliseconds is shown as ISO 8601 in UTC."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """The field is shown nowhere."""


@dataclass(frozen=True, slots=True)
class Without:
    """These fields of the record in this field are not shown, because the outer record shows them already."""

    fields: tuple[str, ...]


Moment = Annotated[int, Iso()]
Millis = Annotated[int, Meta(description="Unix milliseconds.")]
"""A time that is shown as a number: only fields called ``timestamp`` are."""
ShortHash = Annotated[str, Meta(description="The first 16 hexadecimal digits of the token's keyed hash.")]
TokenHash = Annotated[str, Meta(description="The token's full keyed hash, 64 hexadecimal digits.")]
