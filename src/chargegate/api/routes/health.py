"""Health, for people and for probes."""

from typing import Final, Literal

import msgspec
from starlette.responses import Response

from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Call, Routes, respond
from chargegate.model import Millis, now_ms
from chargegate.operations.health import Component, ComponentStatus, check, check_all

route: Final = Routes("Operation", access="open")


class Health(msgspec.Struct):
    """The worst component's status is the service's."""

    status: ComponentStatus
    timestamp: Millis
    components: dict[str, Component]


class Probe(msgspec.Struct):
    status: Literal["UP", "DOWN"]
    timestamp: Millis


@route(
    "GET",
    "/health",
    "How the service and its components are",
    answers={200: Answer("UP or DEGRADED.", Health), 503: Answer("DOWN.", Health)},
)
async def get_health(_call: Call, parts: Parts) -> Response:
    status, checked = await check_all(parts.components)
    health = Health(status, now_ms(), checked)
    return respond(health, 503 if status == "DOWN" else 200)


@route("GET", "/health/live", "Whether the process answers at all", answers={200: Answer("It does.", Probe)})
async def get_liveness(_call: Call, _parts: Parts) -> Response:
    return respond(Probe("UP", now_ms()))


@route(
    "GET",
    "/health/ready",
    "Whether requests should be sent here",
    answers={200: Answer("Yes.", Probe), 503: Answer("No: shutting down, or the queue is down.", Probe)},
)
async def get_readiness(_call: Call, parts: Parts) -> Response:
    if parts.draining() or (await check("queue", parts.components["queue"])).status == "DOWN":
        return respond(Probe("DOWN", now_ms()), 503)
    return respond(Probe("UP", now_ms()))
