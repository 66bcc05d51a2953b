"""What a route is. The router and the OpenAPI document are both made from these."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from chargegate.api.parts import Parts
from chargegate.keys import AccessKey

T = TypeVar("T")

Schema = Mapping[str, Any]
Access = Literal["open", "client", "admin"]
Method = Literal["GET", "POST", "PUT", "DELETE"]


@dataclass(frozen=True, slots=True)
class Parameter(Generic[T]):
    """A parameter of the path, the query or a header. ``parse`` raises ``ValueError`` with the rule that is broken;
    ``schema`` says the same to machines. ``default`` is its value where it is absent: never in a path."""

    name: str
    place: Literal["path", "query", "header"]
    schema: Schema
    description: str
    parse: Callable[[str], T]
    default: Any = None
    required: bool = False


def header(name: str, description: str, pattern: str = "", *, required: bool = False) -> Parameter[str]:
    """A header for the document. The router does not read it."""
    schema = {"type": "string", **({"pattern": pattern} if pattern else {})}
    return Parameter(name, "header", schema, description, str, required=required)


@dataclass(frozen=True, slots=True)
class Body:
    """A JSON request body: a named schema and an example of it. Where it ``may_be_empty``, no body is as good as an
    empty object, and then a content type may be missing too. ``max_bytes`` is its limit where that is not the one of
    all bodies."""

    name: str
    schema: Schema
    example: Schema
    may_be_empty: bool = False
    max_bytes: int | None = None


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


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a route: ``call[PARAMETER]`` is a parameter's value, ``body`` the JSON object that was sent.
    ``caller`` is None on an open route, which asks for no key. ``scope`` is the request as ASGI has it."""

    values: Mapping[str, Any]
    body: Mapping[str, Any]
    caller: AccessKey | None
    scope: Scope

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """The request's headers, by their names in lower case."""
        return dict(self.scope["headers"])

    def __getitem__(self, parameter: Parameter[T]) -> T:
        value: T = self.values[parameter.name]
        return value


Handler = Callable[[Call, Parts], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method on one path, answered by ``handler``; the hot route has none, because it never comes to the router.

    ``errors`` are the statuses that it may be refused with, besides those that follow from its other fields. Where it
    is ``strict``, a parameter that it does not have is a fault.
    """

    method: Method
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
    strict: bool = False

    def refusals(self, *, keys_required: bool) -> list[int]:
        """Every status that it may be refused with."""
        statuses = {400, 403, *self.errors}
        if self.body:
            statuses |= {413, 415}
        if self.access != "open":
            statuses |= {503, 401} if keys_required else {503}
        return sorted(statuses)


class Routes:
    """The routes of one subject: ``@route("GET", "/path", "What it does", …)`` declares a function as one of them. Its
    name, in camel case, is the route's name in the document."""

    def __init__(self, tag: str, access: Access) -> None:
        self.declared: list[Route] = []
        self._tag = tag
        self._access = access

    def __call__(
        self,
        method: Method,
        path: str,
        summary: str,
        *,
        parameters: Sequence[Parameter[Any]] = (),
        answers: Mapping[int, Answer],
        description: str = "",
        body: Body | None = None,
        errors: Sequence[int] = (),
        strict: bool = False,
    ) -> Callable[[Handler], Handler]:
        def declare(handler: Handler) -> Handler:
            self.declared.append(
                Route(
                    method=method,
                    path=path,
                    name=_camel_case(handler.__name__),
                    handler=handler,
                    access=self._access,
                    tag=self._tag,
                    summary=summary,
                    description=description,
                    parameters=parameters,
                    body=body,
                    answers=answers,
                    errors=errors,
                    strict=strict,
                )
            )
            return handler

        return declare


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def respond(content: object, status: int = 200) -> Response:
    """Something as a JSON answer."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")
