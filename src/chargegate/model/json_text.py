"""What two readers of the same JSON could take for different things: a field given twice, and text that is not UTF-8.
A fast decoder takes the last of two, and skips over the text of fields that nobody asks for."""

import json
from typing import Any, Final

from chargegate.model.invalid import Invalid

_LONGEST_NAME: Final = 19  # a longer one may be a driver token in the wrong place


def doubled_fields(body: bytes) -> dict[str, str]:
    """The fields of an object, and of the objects inside it, that were given more than once, however they are spelled;
    each with the rule. Raises ``Invalid`` for what is not JSON in UTF-8."""
    doubled: dict[str, str] = {}

    def look(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) != len(pairs):
            names = [name for name, _ in pairs]
            doubled.update((_harmless(name), "was given twice") for name in names if names.count(name) > 1)

    try:
        json.loads(body.decode(), object_pairs_hook=look, parse_int=str, parse_float=str)
    except UnicodeDecodeError:
        raise Invalid("The request body must be UTF-8.") from None
    except (ValueError, RecursionError):
        raise Invalid("The request body must be a JSON object.") from None
    return doubled


def _harmless(name: str) -> str:
    """The name as it may be shown."""
    return name if len(name) <= _LONGEST_NAME and name.isidentifier() else "unknown field"
