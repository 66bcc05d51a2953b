"""Signing in to the dashboard and out of it."""

from typing import Final

import msgspec
from starlette.responses import Response

from chargegate.api.errors import Refused
from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Body, Call, Routes, respond
from chargegate.keys import ANONYMOUS, AccessKey
from chargegate.model import broken

route: Final = Routes("Dashboard", access="open")

_PATH: Final = "/api/v1/dashboard-session"
_MAX_KEY: Final = 500
_KEY: Final = Body(
    "SignIn",
    {
        "type": "object",
        "required": ["access_key"],
        "properties": {"access_key": {"type": "string", "minLength": 1, "maxLength": _MAX_KEY}},
    },
    {"access_key": "cg_admin_…"},
)


class Visitor(msgspec.Struct):
    """Who is signed in. Where no access keys are configured, everybody is, as ``anonymous``."""

    signed_in: bool
    keys_required: bool
    name: str | None
    role: str | None


@route("GET", _PATH, "Who is signed in to the dashboard", answers={200: Answer("Who it is.", Visitor)})
async def get_dashboard_session(call: Call, parts: Parts) -> Response:
    if not parts.access_keys:
        return respond(_visitor(ANONYMOUS, parts))
    key = await parts.sessions.caller(call.scope, call.headers, "client") if parts.sessions else None
    return respond(_visitor(key, parts))


@route(
    "POST",
    _PATH,
    "Sign in to the dashboard with an access key",
    body=_KEY,
    description="The answer sets a cookie that only the service's own pages can use, and no script can read. It ends"
    " after a while without any action, by signing out, and with the access key.",
    answers={200: Answer("Signed in.", Visitor)},
    errors=[401, 429],
)
async def sign_in(call: Call, parts: Parts) -> Response:
    presented = call.body.get("access_key")
    if not isinstance(presented, str) or not 0 < len(presented) <= _MAX_KEY:
        raise broken({"access_key": f"must be text of 1 to {_MAX_KEY} characters"})
    if not parts.access_keys:
        return respond(_visitor(ANONYMOUS, parts))
    if parts.sessions is None:
        raise Refused(404, "not_found", "There is no dashboard here.")
    key, cookie = parts.sessions.open(presented, call.scope)
    response = respond(_visitor(key, parts))
    response.headers["set-cookie"] = cookie
    return response


@route("DELETE", _PATH, "Sign out of the dashboard", answers={204: Answer("The session is over.")}, errors=[503])
async def sign_out(call: Call, parts: Parts) -> Response:
    response = Response(status_code=204)
    if parts.sessions is not None:
        response.headers["set-cookie"] = await parts.sessions.end(call.scope, call.headers)
    return response


def _visitor(key: AccessKey | None, parts: Parts) -> Visitor:
    required = bool(parts.access_keys)
    return Visitor(False, required, None, None) if key is None else Visitor(True, required, key.name, key.role)
