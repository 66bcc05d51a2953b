"""Callbacks given up: listed, and sent again with the decision already made."""

from typing import Final

import msgspec
from starlette.responses import Response

from chargegate.api.errors import not_found
from chargegate.api.parameters import CLIENT, FROM, PAGING, REQUEST_ID, TO, respond_page
from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Body, Call, Routes, respond
from chargegate.api.schemas import page
from chargegate.keys import CannotOpen
from chargegate.ledger.records import DeadLetter
from chargegate.model import Millis, now_ms
from chargegate.observe import log
from chargegate.operations import dead_letters
from chargegate.operations.views import view

route: Final = Routes("Dead letters", access="admin")

_NO_FIELDS: Final = Body(
    "NoFields", {"type": "object", "description": "It may be left out.", "properties": {}}, {}, may_be_empty=True
)
_MESSAGE: Final = "The decision already made will be sent to the callback URL again."


class Discarded(msgspec.Struct):
    """How many were forgotten."""

    status: str
    discarded: int
    timestamp: Millis


class Replayed(msgspec.Struct):
    status: str
    message: str
    request_id: str
    timestamp: Millis


class RangeReplayed(msgspec.Struct):
    status: str
    replayed: int
    timestamp: Millis


@route(
    "GET",
    "/api/v1/dead-letters",
    "Callbacks given up, newest first",
    parameters=[CLIENT, FROM, TO, *PAGING],
    description="from and to are about failed_at.",
    answers={200: Answer("A page of dead letters.", page("DeadLetterPage", view("DeadLetterItem", DeadLetter)))},
)
async def list_dead_letters(call: Call, parts: Parts) -> Response:
    return await respond_page(call, dead_letters.dead_letters(parts.ledger, call[FROM], call[TO], call[CLIENT]))


@route(
    "POST",
    "/api/v1/dead-letters/replay",
    "Send a range of dead letters again",
    parameters=[CLIENT, FROM, TO],
    body=_NO_FIELDS,
    strict=True,
    description="from and to are about failed_at; without them all are sent. Any other parameter is refused,"
    " because a misspelt one would send all. What was changed in the database cannot be opened and is passed over."
    " If it ends in 503, some may have been put back already; sending it again does no harm.",
    answers={202: Answer("How many were put back into the queue.", RangeReplayed)},
)
async def replay_dead_letters(call: Call, parts: Parts) -> Response:
    replayed = await dead_letters.replay_range(
        parts.ledger, parts.queue, parts.keyring, since=call[FROM], until=call[TO], client=call[CLIENT]
    )
    return respond(RangeReplayed("accepted", replayed, now_ms()), 202)


@route(
    "POST",
    "/api/v1/dead-letters/{request_id}/replay",
    "Send a dead letter again",
    parameters=[REQUEST_ID],
    body=_NO_FIELDS,
    description="The decision already made is sent, never a new one.",
    answers={202: Answer("It is back in the queue.", Replayed)},
    errors=[404],
)
async def replay_dead_letter(call: Call, parts: Parts) -> Response:
    letter = await parts.ledger.dead_letter(call[REQUEST_ID])
    if letter is None:
        raise not_found("There is no dead letter with this id.")
    try:
        await dead_letters.replay(parts.queue, parts.keyring, letter)
    except CannotOpen as error:
        log.error("dead letter cannot be opened", request_id=letter.request_id, why=str(error))
        raise not_found("This dead letter cannot be opened: the log says why.") from None
    return respond(Replayed("accepted", _MESSAGE, letter.request_id, now_ms()), 202)


@route(
    "POST",
    "/api/v1/dead-letters/discard",
    "Forget a range of dead letters, for good",
    parameters=[CLIENT, FROM, TO],
    body=_NO_FIELDS,
    strict=True,
    description="Their tokens and URLs are erased, so that they can never be sent again; the decisions stay. from and"
    " to are about failed_at; without them all are forgotten. Any other parameter is refused.",
    answers={200: Answer("How many were forgotten.", Discarded)},
)
async def discard_dead_letters(call: Call, parts: Parts) -> Response:
    discarded = await dead_letters.discard_range(parts.ledger, call[FROM], call[TO], call[CLIENT])
    return respond(Discarded("discarded", discarded, now_ms()))


@route(
    "POST",
    "/api/v1/dead-letters/{request_id}/discard",
    "Forget a dead letter, for good",
    parameters=[REQUEST_ID],
    body=_NO_FIELDS,
    description="Its token and URL are erased, so that it can never be sent again; the decision stays.",
    answers={200: Answer("It is forgotten.", Discarded)},
    errors=[404],
)
async def discard_dead_letter(call: Call, parts: Parts) -> Response:
    discarded = await parts.ledger.discard([call[REQUEST_ID]])
    if not discarded:
        raise not_found("There is no dead letter with this id.")
    return respond(Discarded("discarded", discarded, now_ms()))
