"""Health, for people and for probes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import msgspec
from starlette.responses import Response

from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Call, Routes, respond
from chargegate.model import Millis, now_ms
from chargegate.observe import log
from chargegate.operations.health import Component, ComponentStatus
from chargegate.storage.budget import ANSWER_S

route: Final = Routes("Operation", access="open")

_WORST_FIRST: Final[tuple[ComponentStatus, ...]] = ("DOWN", "DEGRADED", "UP")


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
    checked = await asyncio.gather(*(_check(name, check) for name, check in parts.components.items()))
    statuses: list[ComponentStatus] = ["UP", *(component.status for component in checked)]
    status = min(statuses, key=_WORST_FIRST.index)
    health = Health(status, now_ms(), dict(zip(parts.components, checked, strict=True)))
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
    if parts.draining() or (await _check("queue", parts.components["queue"])).status == "DOWN":
        return respond(Probe("DOWN", now_ms()), 503)
    return respond(Probe("UP", now_ms()))


async def _check(name: str, check: Callable[[], Awaitable[Component]]) -> Component:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await check()
    except TimeoutError:
        return Component("DOWN", {"error": f"no answer within {ANSWER_S:g} s"})
    except Exception as error:  # noqa: BLE001 - one component's defect must not hide how the others are
        log.warning("health check failed", component=name, error=type(error).__name__)
        return Component("DOWN", {"error": "the check failed"})
