"""The whole surface as one ASGI application: the hot route in front, Starlette's router behind it."""

from collections.abc import Iterable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as RoutedPath
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chargegate.api import intake
from chargegate.api.access import Guard
from chargegate.api.bodies import read_object
from chargegate.api.dashboard import Dashboard
from chargegate.api.direct import Surface
from chargegate.api.errors import ClientGone, Refused, not_found, refusal, send_refusal
from chargegate.api.headers import SECURITY, trace_id
from chargegate.api.origins import PREFLIGHT, Origins
from chargegate.api.parameters import read_parameters
from chargegate.api.parts import Parts
from chargegate.api.routes import (
    access_list,
    anomalies,
    dashboard_session,
    dead_letters,
    decisions,
    health,
    metrics,
    overview,
    requests,
    sessions,
    statistics,
)
from chargegate.api.routes.docs import with_document
from chargegate.api.routing import Call, Route
from chargegate.keys import AccessKey, Role


def build(parts: Parts) -> ASGIApp:
    """The application. It speaks HTTP only, and has no lifespan."""
    routes: list[Route] = [intake.route(parts)]
    for subject in (sessions, requests, decisions, statistics, overview, anomalies, dead_letters, access_list):
        routes += subject.route.declared
    if parts.sessions is not None:
        routes += dashboard_session.route.declared
    routes = with_document([*routes, *_monitoring(parts)], keys=parts.access_keys)
    origins = _origins_of(parts)
    hot = intake.Intake(parts, origins)
    other = _Routed(routes, parts, origins, Dashboard().routes() if parts.sessions is not None else ())

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == intake.PATH and scope["method"] == "POST":
            await hot(scope, receive, send)
        else:
            await other(scope, receive, send)

    return Surface(application, hot)


def build_monitoring(parts: Parts) -> ASGIApp:
    """Health and metrics alone, for a process that takes no requests."""
    return _Routed(_monitoring(parts), parts, _origins_of(parts))


def _origins_of(parts: Parts) -> Origins:
    return Origins(keys=parts.access_keys, hosts=parts.allowed_hosts, origins=parts.allowed_origins)


def _monitoring(parts: Parts) -> list[Route]:
    enabled = {health: parts.health_enabled, metrics: parts.metrics_enabled}
    return [route for subject, on in enabled.items() if on for route in subject.route.declared]


class _Path:
    """One path: calls the route of the method, or refuses it and says which are allowed (RFC 9110, 15.5.6)."""

    def __init__(self, routes: Mapping[str, Route], parts: Parts) -> None:
        implied = {"HEAD": routes["GET"]} if "GET" in routes else {}
        self._routes = {**routes, **implied}
        self._parts = parts
        self._guard = Guard(parts.access_keys)
        self._allow = ", ".join(sorted(self._routes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["method"])
        if route is None or route.handler is None:
            if _is_preflight(scope):
                allowed = {"access-control-allow-methods": self._allow, **PREFLIGHT}
                await Response(status_code=204, headers=allowed)(scope, receive, send)
                return
            message = f"This path answers {self._allow}."
            raise Refused(405, "method_not_allowed", message, headers={"allow": self._allow})
        caller = None if route.access == "open" else await self._caller(scope, route.access)
        request = Request(scope, receive, send)
        values = read_parameters(request, route.parameters, strict=route.strict)
        body: dict[str, Any] = {}
        if route.body is not None:
            limit = self._parts.max_body_bytes if route.body.max_bytes is None else route.body.max_bytes
            may_be_empty = route.body.may_be_empty and "by_session" not in scope
            body = await read_object(request, limit, may_be_empty=may_be_empty)
        response = await route.handler(Call(values, body, caller, scope), self._parts)
        if "set_cookie" in scope:
            response.headers["set-cookie"] = scope["set_cookie"]
        await response(scope, receive, send)

    async def _caller(self, scope: Scope, role: Role) -> AccessKey:
        """Whose request it is: by an access key, or by a session of the dashboard, which a key always goes before."""
        headers = dict(scope["headers"])
        sessions = self._parts.sessions
        if sessions is not None and b"cookie" in headers and not headers.keys() & {b"authorization", b"x-api-key"}:
            caller = await sessions.caller(scope, headers, role) if self._parts.access_keys else None
            if caller is not None:
                scope["by_session"] = True
                return caller
        return self._guard.admit(headers, role)


def _is_preflight(scope: Scope) -> bool:
    """Whether a browser asks what an allowed page may send (Fetch Standard, 4.8)."""
    asks = scope["method"] == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )
    return asks and bool(scope["shared_with"])


class _Routed:
    """Every route but the hot one, with the headers that each answer carries, and an answer to each fault."""

    def __init__(
        self, routes: Iterable[Route], parts: Parts, origins: Origins, pages: Iterable[RoutedPath] = ()
    ) -> None:
        self._origins = origins
        paths: dict[str, dict[str, Route]] = {}
        for route in routes:
            paths.setdefault(route.path, {})[route.method] = route
        self._router = Router(
            [*(RoutedPath(path, _Path(methods, parts)) for path, methods in paths.items()), *pages],
            redirect_slashes=False,
            default=_no_such_path,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        scope["trace_id"] = trace_id(headers)
        shared = scope["shared_with"] = self._origins.shared_with(headers) if b"origin" in headers else ()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                security = (field for field in SECURITY if field[0] not in own)
                message["headers"] = [*message["headers"], *security, (b"x-request-id", scope["trace_id"]), *shared]
            await send(message)

        try:
            self._origins.check(scope, headers)
            await self._router(scope, receive, send_with_headers)
        except ClientGone:
            return
        except Exception as fault:  # noqa: BLE001 - whatever it is, it is logged and the client gets an answer
            await send_refusal(send_with_headers, refusal(fault))


async def _no_such_path(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise not_found()
