"""The rules of a charging request, which are in ``model``, as JSON Schema, and the shape of a page."""

from typing import Any, Final

import msgspec

from chargegate.api.routing import Body, Schema
from chargegate.model import (
    DRIVER_TOKEN_PATTERN,
    MAX_CALLBACK_URL,
    MAX_DRIVER_TOKEN,
    MIN_DRIVER_TOKEN,
    OTHER_SPELLINGS,
    UUID_PATTERN,
    callback_url_pattern,
)

EXAMPLE_ID: Final = "01890a5d-ac96-774b-bcce-b302099a8057"
EXAMPLE_STATION: Final = "123e4567-e89b-12d3-a456-426614174000"
EXAMPLE_TOKEN: Final = "EXAMPLE-DRIVER-TOKEN-0001"  # noqa: S105 - names itself an example

UUID: Final[Schema] = {"type": "string", "format": "uuid", "pattern": UUID_PATTERN}
TOKEN: Final[Schema] = {
    "type": "string",
    "pattern": DRIVER_TOKEN_PATTERN,
    "minLength": MIN_DRIVER_TOKEN,
    "maxLength": MAX_DRIVER_TOKEN,
}


def charging_request(*, require_https: bool) -> Body:
    """The body of ``POST /api/v1/charging-session``: each field in exactly one of its two spellings."""
    url = {
        "type": "string",
        "pattern": callback_url_pattern(require_https=require_https),
        "maxLength": MAX_CALLBACK_URL,
        "description": "Where the decision is posted. No user information, no fragment. The host is a name of at most"
        " 253 characters or an IP address, in any of its notations, outside the blocked networks.",
    }
    fields: dict[str, dict[str, Any]] = {
        "station_id": {**UUID, "description": "Comes back in the callback as it was sent."},
        "driver_token": {**TOKEN, "description": "Comes back in the callback, and in no answer."},
        "callback_url": url,
    }
    other = {
        OTHER_SPELLINGS[name]: {**rule, "description": f"Another spelling of {name}."} for name, rule in fields.items()
    }
    return Body(
        "ChargingRequest",
        {
            "type": "object",
            "properties": {**fields, **other},
            "allOf": [
                {"oneOf": [{"required": [name]}, {"required": [spelling]}]}
                for name, spelling in OTHER_SPELLINGS.items()
            ],
        },
        {
            "station_id": EXAMPLE_STATION,
            "driver_token": EXAMPLE_TOKEN,
            "callback_url": "https://example.com/charging/callback",
        },
    )


def page(name: str, item: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The type of a page of a list, under a name for the OpenAPI document."""
    return msgspec.defstruct(name, [("items", list[item]), ("next_cursor", str | None)])  # type: ignore[valid-type]  # made at run time
