"""The access list over HTTP. A token is only ever read from a body; what goes out is its keyed hash."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from chargegate.api.bodies import read_object
from chargegate.api.errors import not_found
from chargegate.api.operations import Answer, Body, IsoTime, Operation, respond
from chargegate.api.parameters import (
    CURSOR,
    DEFAULT_LIMIT,
    LIMIT,
    PAGING,
    TOKEN_HASH,
    Query,
    from_path,
    page_of,
)
from chargegate.api.parts import Parts
from chargegate.api.routes.sessions import optional_iso
from chargegate.api.schemas import EXAMPLE_STATION, EXAMPLE_TOKEN, TOKEN, UUID
from chargegate.authorizers.acl import judge
from chargegate.authorizers.acl_entries import MAX_NOTE, entry_from
from chargegate.ledger.records import AccessEntry
from chargegate.model import Status, broken, now_ms, station_fault, token_fault

_TIME = {"type": ["string", "null"], "format": "date-time"}
_STATIONS = {"type": "array", "items": UUID, "default": []}
_ENTRY = Body(
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
_QUESTION = Body(
    "AccessQuestion",
    {
        "type": "object",
        "required": ["station_id", "driver_token"],
        "properties": {"station_id": UUID, "driver_token": TOKEN},
    },
    {"station_id": EXAMPLE_STATION, "driver_token": EXAMPLE_TOKEN},
)


class EntryView(msgspec.Struct):
    """``driver_token_hash`` is the full keyed hash, 64 hexadecimal digits."""

    driver_token_hash: str
    blocked: bool
    valid_from: IsoTime | None
    valid_until: IsoTime | None
    allowed_stations: list[str]
    denied_stations: list[str]
    note: str


class EntryPage(msgspec.Struct):
    items: list[EntryView]
    next_cursor: str | None


class Judgement(msgspec.Struct):
    """What would be decided now."""

    station_id: str
    status: Status
    reason: str


class AccessListRoutes:
    def __init__(self, parts: Parts) -> None:
        self._list = parts.access_list
        self._token_hash = parts.keyring.token_hash
        self._changed = parts.access_changed
        self._limit = parts.max_body_bytes

    async def list(self, request: Request) -> Response:
        query = Query(request)
        limit = query.read(LIMIT) or DEFAULT_LIMIT
        after = query.read(CURSOR)
        query.check()
        found = await self._list.entries(limit + 1, after[1] if after else None)
        entries, cursor = page_of(found, limit, lambda entry: (0, entry.driver_token_hash))
        return respond(EntryPage([_view(entry) for entry in entries], cursor))

    async def put(self, request: Request) -> Response:
        entry = entry_from(await read_object(request, self._limit), self._token_hash)
        await self._list.put([entry])
        self._changed(frozenset({entry.driver_token_hash}))
        return respond(_view(entry))

    async def remove(self, request: Request) -> Response:
        token_hash = from_path(request, TOKEN_HASH)
        if not await self._list.remove(token_hash):
            raise not_found("There is no entry with this hash.")
        self._changed(frozenset({token_hash}))
        return Response(status_code=204)

    async def check(self, request: Request) -> Response:
        fields = await read_object(request, self._limit)
        station, token = fields.get("station_id"), fields.get("driver_token")
        faults = {
            "station_id": station_fault(station) if "station_id" in fields else "is required",
            "driver_token": token_fault(token) if "driver_token" in fields else "is required",
        }
        details = {name: fault for name, fault in faults.items() if fault}
        if details:
            raise broken(details)
        entry = await self._list.entry(self._token_hash(str(token)))
        verdict = judge(entry, str(station), now_ms())
        return respond(Judgement(str(station), verdict.status, verdict.reason))


def _view(entry: AccessEntry) -> EntryView:
    return EntryView(
        entry.driver_token_hash,
        entry.blocked,
        optional_iso(entry.valid_from),
        optional_iso(entry.valid_until),
        sorted(entry.allowed_stations),
        sorted(entry.denied_stations),
        entry.note,
    )


def operations(parts: Parts) -> list[Operation]:
    routes = AccessListRoutes(parts)
    return [
        Operation(
            method="GET",
            path="/api/v1/acl",
            name="listAccessEntries",
            handler=routes.list,
            access="admin",
            tag="Access list",
            summary="The access list, by token hash",
            parameters=PAGING,
            answers={200: Answer("A page of entries.", EntryPage)},
            errors=[400, 503],
        ),
        Operation(
            method="PUT",
            path="/api/v1/acl",
            name="putAccessEntry",
            handler=routes.put,
            access="admin",
            tag="Access list",
            summary="Add an entry, or replace the one of the same token",
            body=_ENTRY,
            answers={200: Answer("The entry.", EntryView)},
            errors=[400, 413, 415, 503],
        ),
        Operation(
            method="POST",
            path="/api/v1/acl/check",
            name="checkAccess",
            handler=routes.check,
            access="admin",
            tag="Access list",
            summary="What the access list would decide; recorded nowhere",
            body=_QUESTION,
            answers={200: Answer("The verdict.", Judgement)},
            errors=[400, 413, 415, 503],
        ),
        Operation(
            method="DELETE",
            path="/api/v1/acl/{driver_token_hash}",
            name="deleteAccessEntry",
            handler=routes.remove,
            access="admin",
            tag="Access list",
            summary="Remove an entry",
            parameters=[TOKEN_HASH],
            answers={204: Answer("It is gone.")},
            errors=[400, 404, 503],
        ),
    ]
