"""Health for people and probes, and metrics."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from chargegate.api.operations import Answer, Millis, Operation, respond
from chargegate.api.parts import Watched
from chargegate.ledger.base import LedgerUnavailable
from chargegate.model import now_ms
from chargegate.observe import log
from chargegate.operations.health import Component, ComponentStatus
from chargegate.queues.base import QueueUnavailable

_PATIENCE_S: Final = 2.0
_WORST_FIRST: Final[tuple[ComponentStatus, ...]] = ("DOWN", "DEGRADED", "UP")


class Health(msgspec.Struct):
    """The worst component's status is the service's."""

    status: ComponentStatus
    timestamp: Millis
    components: dict[str, Component]


class Probe(msgspec.Struct):
    status: Literal["UP", "DOWN"]
    timestamp: Millis


class HealthRoutes:
    def __init__(self, parts: Watched) -> None:
        self._components = parts.components
        self._draining = parts.draining

    async def health(self, _request: Request) -> Response:
        checked = await asyncio.gather(*(_check(name, check) for name, check in self._components.items()))
        statuses: list[ComponentStatus] = ["UP", *(component.status for component in checked)]
        status = min(statuses, key=_WORST_FIRST.index)
        health = Health(status, now_ms(), dict(zip(self._components, checked, strict=True)))
        return respond(health, 503 if status == "DOWN" else 200)

    async def live(self, _request: Request) -> Response:
        return respond(Probe("UP", now_ms()))

    async def ready(self, _request: Request) -> Response:
        if self._draining() or (await _check("queue", self._components["queue"])).status == "DOWN":
            return respond(Probe("DOWN", now_ms()), 503)
        return respond(Probe("UP", now_ms()))


async def _check(name: str, check: Callable[[], Awaitable[Component]]) -> Component:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await check()
    except TimeoutError:
        return Component("DOWN", {"error": f"no answer within {_PATIENCE_S:g} s"})
    except Exception as error:  # noqa: BLE001 - one component's defect must not hide how the others are
        log.warning("health check failed", component=name, error=type(error).__name__)
        return Component("DOWN", {"error": "the check failed"})


class MetricsRoute:
    def __init__(self, parts: Watched) -> None:
        self._metrics = parts.metrics
        self._queue = parts.queue
        self._ledger = parts.ledger

    async def metrics(self, _request: Request) -> Response:
        await asyncio.gather(self._refresh_queue(), self._refresh_dead_letters())
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def _refresh_queue(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                depth = await self._queue.depth()
        except (QueueUnavailable, TimeoutError) as error:
            log.warning("the queue's depth is not known", error=type(error).__name__)
            return
        self._metrics.queue_depth.set(depth.waiting)
        self._metrics.queue_oldest_age.set(depth.oldest_age_ms / 1000)

    async def _refresh_dead_letters(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                count = await self._ledger.count_dead_letters()
        except (LedgerUnavailable, TimeoutError) as error:
            log.warning("the number of dead letters is not known", error=type(error).__name__)
            return
        self._metrics.dead_letters.set(count)


def operations(parts: Watched) -> list[Operation]:
    found = []
    if parts.health_enabled:
        routes = HealthRoutes(parts)
        found += [
            Operation(
                method="GET",
                path="/health",
                name="getHealth",
                handler=routes.health,
                access="open",
                tag="Operation",
                summary="How the service and its components are",
                answers={200: Answer("UP or DEGRADED.", Health), 503: Answer("DOWN.", Health)},
            ),
            Operation(
                method="GET",
                path="/health/live",
                name="getLiveness",
                handler=routes.live,
                access="open",
                tag="Operation",
                summary="Whether the process answers at all",
                answers={200: Answer("It does.", Probe)},
            ),
            Operation(
                method="GET",
                path="/health/ready",
                name="getReadiness",
                handler=routes.ready,
                access="open",
                tag="Operation",
                summary="Whether requests should be sent here",
                answers={200: Answer("Yes.", Probe), 503: Answer("No: shutting down, or the queue is down.", Probe)},
            ),
        ]
    if parts.metrics_enabled:
        found.append(
            Operation(
                method="GET",
                path="/metrics",
                name="getMetrics",
                handler=MetricsRoute(parts).metrics,
                access="open",
                tag="Operation",
                summary="Metrics in Prometheus's text format",
                answers={200: Answer("The metrics.", schema={"type": "string"}, media_type="text/plain")},
            )
        )
    return found
