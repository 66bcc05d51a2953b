"""The access list over HTTP. A token is only ever read from a body; what goes out is its keyed hash."""

import base64
from collections.abc import Mapping
from typing import Final

from starlette.responses import Response

from chargegate.api.errors import Refused, not_found
from chargegate.api.parameters import PAGING, TOKEN_HASH, respond_page
from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Body, Call, Routes, respond
from chargegate.api.schemas import EXAMPLE_STATION, EXAMPLE_TOKEN, TOKEN, UUID, page
from chargegate.authorizers.acl_entries import MAX_NOTE
from chargegate.ledger.records import AccessEntry
from chargegate.model import broken, token_fault
from chargegate.operations import access_list
from chargegate.operations.views import shown, view

route: Final = Routes("Access list", access="admin")

_TIME: Final = {"type": ["string", "null"], "format": "date-time"}
_STATIONS: Final = {"type": "array", "items": UUID, "default": []}
_ENTRY: Final = Body(
    "AccessEntryInput",
    {
        "type": "object",
        "additionalProperties": False,
        "required": ["driver_token"],
        "properties": {
            "driver_token": TOKEN,
            "blocked": {"type": "boolean", "default": False},
            "valid_from": {**_TIME, "description": "The first moment at which it is valid."},
            "valid_until": {**_TIME, "description": "The first moment at which it is not; after valid_from."},
            "allowed_stations": {**_STATIONS, "description": "Empty: all stations."},
            "denied_stations": _STATIONS,
            "note": {
                "type": "string",
                "maxLength": MAX_NOTE,
                "pattern": "^[^\\u0000]*$",
                "default": "",
                "description": "For people. It must not contain the token.",
            },
        },
    },
    {"driver_token": EXAMPLE_TOKEN, "allowed_stations": [EXAMPLE_STATION], "note": "depot fleet"},
)
_QUESTION: Final = Body(
    "AccessQuestion",
    {
        "type": "object",
        "required": ["station_id", "driver_token"],
        "properties": {"station_id": UUID, "driver_token": TOKEN},
    },
    {"station_id": EXAMPLE_STATION, "driver_token": EXAMPLE_TOKEN},
)
_TOKEN: Final = Body(
    "AccessSearch",
    {"type": "object", "required": ["driver_token"], "properties": {"driver_token": TOKEN}},
    {"driver_token": EXAMPLE_TOKEN},
)
_BLOCKED: Final = Body(
    "AccessBlocked",
    {"type": "object", "required": ["blocked"], "properties": {"blocked": {"type": "boolean"}}},
    {"blocked": True},
)
_MAX_FILE: Final = 1024 * 1024
_FILE: Final = Body(
    "AccessListFile",
    {
        "type": "object",
        "properties": {
            "csv": {"type": "string", "description": "The text of the file, as `chargegate acl import` takes it."},
            "csv_base64": {
                "type": "string",
                "contentEncoding": "base64",
                "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
                "description": "Instead of csv: the bytes of the file. Those that are not UTF-8 are a fault of their"
                " line, as with `chargegate acl import`.",
            },
            "store": {"type": "boolean", "default": False, "description": "False: only say what would change."},
        },
        "oneOf": [{"required": ["csv"]}, {"required": ["csv_base64"]}],
    },
    {"csv": f"driver_token,note\n{EXAMPLE_TOKEN},depot fleet\n"},
    max_bytes=_MAX_FILE * 4 // 3 + 1024,
)
_VIEW: Final = view("EntryView", AccessEntry)


@route(
    "GET",
    "/api/v1/acl",
    "The access list, by token hash",
    parameters=PAGING,
    answers={200: Answer("A page of entries.", page("EntryPage", _VIEW))},
)
async def list_access_entries(call: Call, parts: Parts) -> Response:
    return await respond_page(call, access_list.access_entries(parts.access_list))


@route(
    "PUT",
    "/api/v1/acl",
    "Add an entry, or replace the one of the same token",
    body=_ENTRY,
    answers={200: Answer("The entry.", _VIEW)},
)
async def put_access_entry(call: Call, parts: Parts) -> Response:
    entry = await access_list.put_entry(parts.access_list, parts.keyring, call.body)
    parts.access_changed(frozenset({entry.driver_token_hash}))
    return respond(shown(entry))


@route(
    "POST",
    "/api/v1/acl/check",
    "What the access list would decide; recorded nowhere",
    body=_QUESTION,
    answers={200: Answer("The verdict.", access_list.Judgement)},
)
async def check_access(call: Call, parts: Parts) -> Response:
    return respond(await access_list.check_access(parts.access_list, parts.keyring, call.body))


@route(
    "POST",
    "/api/v1/acl/search",
    "Find the entry of a token",
    body=_TOKEN,
    description="The token is in the body, because an address is written to logs.",
    answers={200: Answer("The entry.", _VIEW)},
    errors=[404],
)
async def find_access_entry(call: Call, parts: Parts) -> Response:
    token = call.body.get("driver_token")
    if fault := token_fault(token) if "driver_token" in call.body else "is required":
        raise broken({"driver_token": fault})
    entry = await parts.access_list.entry(parts.keyring.token_hash(str(token)))
    if entry is None:
        raise not_found("There is no entry of this token.")
    return respond(shown(entry))


@route(
    "POST",
    "/api/v1/acl/{driver_token_hash}/blocked",
    "Block an entry, or let it in again",
    parameters=[TOKEN_HASH],
    body=_BLOCKED,
    answers={200: Answer("The entry.", _VIEW)},
    errors=[404],
)
async def block_access_entry(call: Call, parts: Parts) -> Response:
    blocked = call.body.get("blocked")
    if not isinstance(blocked, bool):
        raise broken({"blocked": "must be true or false" if "blocked" in call.body else "is required"})
    entry = await access_list.block_entry(parts.access_list, call[TOKEN_HASH], blocked=blocked)
    if entry is None:
        raise not_found("There is no entry with this hash.")
    parts.access_changed(frozenset({entry.driver_token_hash}))
    return respond(shown(entry))


@route(
    "POST",
    "/api/v1/acl/import",
    "Add or replace the entries of a CSV file, or say what that would change",
    body=_FILE,
    description="One wrong line, and nothing is stored: the answer says which, in fault."
    " A file of more than 1 MiB is for `chargegate acl import`.",
    answers={200: Answer("What changes, or would change.", access_list.Changes)},
)
async def import_access_entries(call: Call, parts: Parts) -> Response:
    content, faults = _content(call.body)
    store = call.body.get("store", False)
    if not isinstance(store, bool):
        faults["store"] = "must be true or false"
    if faults:
        raise broken(faults)
    if len(content) > _MAX_FILE:
        raise Refused(413, "payload_too_large", f"The file must be at most {_MAX_FILE} bytes.")
    changes, hashes = await access_list.import_bytes(parts.access_list, parts.keyring, content, store=store)
    if hashes:
        parts.access_changed(hashes)
    return respond(changes)


def _content(body: Mapping[str, object]) -> tuple[bytes, dict[str, str]]:
    """The bytes of the file, and what is wrong with the fields that have them."""
    text, packed = body.get("csv"), body.get("csv_base64")
    if "csv" in body and "csv_base64" in body:
        return b"", {"csv_base64": "must not be there beside csv"}
    if "csv_base64" in body:
        try:
            return base64.b64decode(packed.encode("ascii") if isinstance(packed, str) else b"*", validate=True), {}
        except ValueError:
            return b"", {"csv_base64": "must be base64"}
    if isinstance(text, str):
        return text.encode(), {}
    return b"", {"csv": "must be text" if "csv" in body else "is required"}


@route(
    "DELETE",
    "/api/v1/acl/{driver_token_hash}",
    "Remove an entry",
    parameters=[TOKEN_HASH],
    answers={204: Answer("It is gone.")},
    errors=[404],
)
async def delete_access_entry(call: Call, parts: Parts) -> Response:
    token_hash = call[TOKEN_HASH]
    if not await parts.access_list.remove(token_hash):
        raise not_found("There is no entry with this hash.")
    parts.access_changed(frozenset({token_hash}))
    return Response(status_code=204)
