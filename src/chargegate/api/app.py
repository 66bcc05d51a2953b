"""The whole surface as one ASGI application: the hot route in front, Starlette's router behind it."""

from collections.abc import Iterable, Mapping

from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chargegate.api import intake
from chargegate.api.access import Guard
from chargegate.api.errors import ClientGone, Refused, not_found, refusal, send_refusal
from chargegate.api.headers import SECURITY, trace_id
from chargegate.api.openapi import document
from chargegate.api.operations import Operation
from chargegate.api.parts import Parts, Watched
from chargegate.api.routes import access_list, dead_letters, decisions, health, sessions
from chargegate.api.routes.docs import Docs
from chargegate.keys import AccessKeys


def build(parts: Parts) -> ASGIApp:
    """The application. It speaks HTTP only, and has no lifespan."""
    guard = Guard(parts.access_keys)
    docs = Docs()
    table = [
        *intake.operations(parts),
        *sessions.operations(parts),
        *decisions.operations(parts),
        *dead_letters.operations(parts),
        *access_list.operations(parts),
        *health.operations(parts),
        *docs.operations(),
    ]
    docs.publish(document(table, keys_required=guard.closed))
    hot = intake.Intake(parts, guard)
    rest = _Rest(_router(table, guard))

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == intake.PATH and scope["method"] == "POST":
            await hot(scope, receive, send)
        else:
            await rest(scope, receive, send)

    return application


def build_watched(watched: Watched) -> ASGIApp:
    """Health and metrics alone, for a process that takes no requests."""
    return _Rest(_router(health.operations(watched), Guard(AccessKeys([]))))


def _router(table: Iterable[Operation], guard: Guard) -> Router:
    resources: dict[str, dict[str, Operation]] = {}
    for operation in table:
        resources.setdefault(operation.path, {})[operation.method] = operation
    routes = [Route(path, _Resource(methods, guard)) for path, methods in resources.items()]
    return Router(routes, redirect_slashes=False, default=_nothing_here)


class _Resource:
    """One path: calls what answers the method, or refuses it and says which are allowed (RFC 9110, 15.5.6)."""

    def __init__(self, operations: Mapping[str, Operation], guard: Guard) -> None:
        implied = {"HEAD": operations["GET"]} if "GET" in operations else {}
        self._operations = {**operations, **implied}
        self._guard = guard
        self._allow = ", ".join(sorted(self._operations))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = self._operations.get(scope["method"])
        if operation is None or operation.handler is None:
            message = f"This path answers {self._allow}."
            raise Refused(405, "method_not_allowed", message, headers={"allow": self._allow})
        if operation.access != "open":
            self._guard.admit(dict(scope["headers"]), operation.access)
        response = await operation.handler(Request(scope, receive, send))
        await response(scope, receive, send)


class _Rest:
    """What is around every route but the hot one: headers on each answer, and an answer to each fault."""

    def __init__(self, router: ASGIApp) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["trace_id"] = trace_id(dict(scope["headers"]))

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *SECURITY, (b"x-request-id", scope["trace_id"])]
            await send(message)

        try:
            await self._router(scope, receive, send_marked)
        except ClientGone:
            return
        except Exception as fault:  # noqa: BLE001 - whatever it is, it is logged and the client gets an answer
            await send_refusal(send_marked, refusal(fault))


async def _nothing_here(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise not_found()
