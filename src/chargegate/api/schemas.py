"""The rules of a charging request as JSON Schema. The rules themselves are in ``model``."""

from typing import Any, Final

from chargegate.api.operations import Body, Schema
from chargegate.model import MAX_CALLBACK_URL

UUID_PATTERN: Final = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
EXAMPLE_ID: Final = "01890a5d-ac96-774b-bcce-b302099a8057"
EXAMPLE_STATION: Final = "123e4567-e89b-12d3-a456-426614174000"
EXAMPLE_TOKEN: Final = "EXAMPLE-DRIVER-TOKEN-0001"  # noqa: S105 - names itself an example

UUID: Final[Schema] = {"type": "string", "format": "uuid", "pattern": UUID_PATTERN}
TOKEN: Final[Schema] = {"type": "string", "pattern": "^[A-Za-z0-9._~-]{20,80}$", "minLength": 20, "maxLength": 80}

_LABEL: Final = "[A-Za-z0-9_-]{1,63}"
_HOST: Final = rf"(({_LABEL}\.){{0,126}}{_LABEL}\.?|\[[0-9A-Fa-f:.]{{2,45}}\])"
_PORT: Final = (
    "(0{0,4}[1-9]|0{0,3}[1-9][0-9]|0{0,2}[1-9][0-9]{2}|0?[1-9][0-9]{3}|[1-5][0-9]{4}"
    "|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
_AFTER_SCHEME: Final = rf"://{_HOST}(:{_PORT})?([/?][!-\x22$-\x5b\x5d-~]*)?$"
_SPELLINGS: Final = {"station_id": "stationId", "driver_token": "driverToken", "callback_url": "callbackUrl"}


def charging_request(*, require_https: bool) -> Body:
    """The body of ``POST /api/v1/charging-session``: each field in exactly one of its two spellings."""
    scheme = "^[Hh][Tt][Tt][Pp][Ss]" + ("" if require_https else "?")
    url = {
        "type": "string",
        "pattern": scheme + _AFTER_SCHEME,
        "maxLength": MAX_CALLBACK_URL,
        "description": "Where the decision is posted. No user information, no fragment. The host is a name of at most"
        " 253 characters or an IP address, in any of its notations, outside the blocked networks.",
    }
    fields: dict[str, dict[str, Any]] = {
        "station_id": {**UUID, "description": "Comes back in the callback as it was sent."},
        "driver_token": {**TOKEN, "description": "Comes back in the callback, and in no answer."},
        "callback_url": url,
    }
    other = {_SPELLINGS[name]: {**rule, "description": f"Another spelling of {name}."} for name, rule in fields.items()}
    return Body(
        "ChargingRequest",
        {
            "type": "object",
            "properties": {**fields, **other},
            "allOf": [
                {"oneOf": [{"required": [name]}, {"required": [spelling]}]} for name, spelling in _SPELLINGS.items()
            ],
        },
        {
            "station_id": EXAMPLE_STATION,
            "driver_token": EXAMPLE_TOKEN,
            "callback_url": "https://example.com/charging/callback",
        },
    )
