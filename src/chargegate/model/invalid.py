"""The error of a message that breaks the rules."""

from collections.abc import Mapping


class Invalid(ValueError):
    """A message breaks the rules. ``details`` maps every field at fault to its rule; no value is repeated."""

    def __init__(self, message: str, details: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.details = details or {}


def broken(details: Mapping[str, str]) -> Invalid:
    """The error of a request with faults in these fields."""
    return Invalid("The request breaks the rules of " + ", ".join(details) + ".", dict(details))
