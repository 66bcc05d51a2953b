"""What an operation is: the routes and the OpenAPI document are both made from these."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

T = TypeVar("T")

Schema = Mapping[str, Any]
Handler = Callable[[Request], Awaitable[Response]]
Access = Literal["open", "client", "admin"]

Millis = Annotated[int, Meta(description="Unix milliseconds.")]
IsoTime = Annotated[
    str, Meta(description="ISO 8601, UTC, with milliseconds.", extra_json_schema={"format": "date-time"})
]


@dataclass(frozen=True, slots=True)
class Parameter(Generic[T]):
    """A parameter of the path, the query or a header. ``parse`` raises ``ValueError`` with the rule that is broken;
    ``schema`` says the same to machines. What stands in a path is always required."""

    name: str
    place: Literal["path", "query", "header"]
    schema: Schema
    description: str
    parse: Callable[[str], T]
    required: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """A JSON request body: a named schema and an example of it."""

    name: str
    schema: Schema
    example: Schema


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no error: a msgspec struct as JSON, what ``schema`` describes, or nothing."""

    description: str
    model: type[msgspec.Struct] | None = None
    schema: Schema | None = None
    media_type: str = "application/json"
    example: Schema | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """A POST that the service makes later, to what ``url`` is: a runtime expression (OpenAPI 3.1, 4.8.20.4).
    ``answers`` maps a status, a range such as ``2XX``, or ``default`` to what the service takes it for."""

    name: str
    url: str
    summary: str
    description: str
    parameters: Sequence[Parameter[Any]]
    body: Body
    answers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method on one path. ``errors`` are the statuses it may be answered with besides 401 and 403, which follow
    from ``access``. The hot route has no handler: it is answered before the router is asked."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    name: str
    handler: Handler | None
    access: Access
    tag: str
    summary: str
    description: str = ""
    parameters: Sequence[Parameter[Any]] = ()
    body: Body | None = None
    answers: Mapping[int, Answer]
    errors: Sequence[int] = ()
    callback: Callback | None = None


def respond(content: msgspec.Struct, status: int = 200) -> Response:
    """A struct as a JSON answer."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")
