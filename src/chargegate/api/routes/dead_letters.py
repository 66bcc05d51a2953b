"""Callbacks given up: listed, and sent again with the decision already made."""

import asyncio
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from chargegate.api.errors import not_found
from chargegate.api.operations import Answer, IsoTime, Millis, Operation, respond
from chargegate.api.parameters import (
    CURSOR,
    DEFAULT_LIMIT,
    FROM,
    LIMIT,
    PAGING,
    REQUEST_ID,
    TO,
    Query,
    from_path,
    page_of,
)
from chargegate.api.parts import Parts
from chargegate.ledger.records import DeadLetter
from chargegate.model import now_ms, to_iso

_AT_ONCE: Final = 100
_AGAIN: Final = "The decision already made will be sent to the callback URL again."


class DeadLetterItem(msgspec.Struct):
    request_id: str
    station_id: str
    driver_token_hash: str
    status: str
    reason: str
    created_at: IsoTime
    failed_at: IsoTime
    attempts: int
    last_status_code: int | None
    last_error: str | None


class DeadLetterPage(msgspec.Struct):
    items: list[DeadLetterItem]
    next_cursor: str | None


class Replayed(msgspec.Struct):
    status: str
    message: str
    request_id: str
    timestamp: Millis


class RangeReplayed(msgspec.Struct):
    status: str
    replayed: int
    timestamp: Millis


class DeadLetters:
    def __init__(self, parts: Parts) -> None:
        self._ledger = parts.ledger
        self._replay = parts.replay

    async def list(self, request: Request) -> Response:
        query = Query(request)
        since, until = query.read(FROM), query.read(TO)
        limit = query.read(LIMIT) or DEFAULT_LIMIT
        after = query.read(CURSOR)
        query.check()
        found = await self._ledger.dead_letters(since, until, limit + 1, after)
        letters, cursor = page_of(found, limit, lambda letter: (letter.failed_at, letter.request_id))
        return respond(DeadLetterPage([_item(letter) for letter in letters], cursor))

    async def replay(self, request: Request) -> Response:
        request_id = from_path(request, REQUEST_ID)
        letter = await self._ledger.dead_letter(request_id)
        if letter is None:
            raise not_found("There is no dead letter with this id.")
        await self._replay(letter)
        return respond(Replayed("accepted", _AGAIN, letter.request_id, now_ms()), 202)

    async def replay_range(self, request: Request) -> Response:
        query = Query(request)
        query.refuse_all_but(FROM, TO)
        since, until = query.read(FROM), query.read(TO)
        query.check()
        replayed, after = 0, None
        while letters := await self._ledger.dead_letters(since, until, _AT_ONCE, after):
            outcomes = await asyncio.gather(*map(self._replay, letters), return_exceptions=True)
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
            replayed += len(letters)
            after = (letters[-1].failed_at, letters[-1].request_id)
        return respond(RangeReplayed("accepted", replayed, now_ms()), 202)


def _item(letter: DeadLetter) -> DeadLetterItem:
    return DeadLetterItem(
        letter.request_id,
        letter.station_id,
        letter.driver_token_hash,
        letter.status,
        letter.reason,
        to_iso(letter.created_at),
        to_iso(letter.failed_at),
        letter.attempts,
        letter.last_status_code,
        letter.last_error,
    )


def operations(parts: Parts) -> list[Operation]:
    letters = DeadLetters(parts)
    return [
        Operation(
            method="GET",
            path="/api/v1/dead-letters",
            name="listDeadLetters",
            handler=letters.list,
            access="admin",
            tag="Dead letters",
            summary="Callbacks given up, newest first",
            description="from and to are about failed_at.",
            parameters=[FROM, TO, *PAGING],
            answers={200: Answer("A page of dead letters.", DeadLetterPage)},
            errors=[400, 503],
        ),
        Operation(
            method="POST",
            path="/api/v1/dead-letters/replay",
            name="replayDeadLetters",
            handler=letters.replay_range,
            access="admin",
            tag="Dead letters",
            summary="Send a range of dead letters again",
            description="from and to are about failed_at; without them all are sent. Any other parameter is refused,"
            " because a misspelt one would send all. If it ends in 503, some may have been put back"
            " already; sending it again does no harm.",
            parameters=[FROM, TO],
            answers={202: Answer("How many were put back into the queue.", RangeReplayed)},
            errors=[400, 503],
        ),
        Operation(
            method="POST",
            path="/api/v1/dead-letters/{request_id}/replay",
            name="replayDeadLetter",
            handler=letters.replay,
            access="admin",
            tag="Dead letters",
            summary="Send a dead letter again",
            description="The decision already made is sent, never a new one.",
            parameters=[REQUEST_ID],
            answers={202: Answer("It is back in the queue.", Replayed)},
            errors=[400, 404, 503],
        ),
    ]
