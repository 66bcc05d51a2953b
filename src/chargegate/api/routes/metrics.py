"""Metrics for Prometheus."""

import asyncio
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Call, Routes
from chargegate.ledger.anomalies import SEVERITIES
from chargegate.ledger.base import LedgerUnavailable
from chargegate.observe import log
from chargegate.queues.base import QueueUnavailable
from chargegate.storage.budget import ANSWER_S

route: Final = Routes("Operation", access="open")


@route(
    "GET",
    "/metrics",
    "Metrics in Prometheus's text format",
    answers={200: Answer("The metrics.", schema={"type": "string"}, media_type="text/plain")},
)
async def get_metrics(_call: Call, parts: Parts) -> Response:
    parts.metrics.disks.refresh()
    await asyncio.gather(_refresh_queue(parts), _refresh_dead_letters(parts), _refresh_anomalies(parts))
    return Response(parts.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _refresh_queue(parts: Parts) -> None:
    try:
        async with asyncio.timeout(ANSWER_S):
            depth = await parts.queue.depth()
    except (QueueUnavailable, TimeoutError) as error:
        log.warning("the queue's depth is not known", error=type(error).__name__)
        return
    parts.metrics.queue_depth.set(depth.waiting)
    parts.metrics.queue_oldest_age.set(depth.oldest_age_ms / 1000)


async def _refresh_anomalies(parts: Parts) -> None:
    try:
        async with asyncio.timeout(ANSWER_S):
            counts = await parts.anomalies.count_open()
    except (LedgerUnavailable, TimeoutError) as error:
        log.warning("the number of anomalies is not known", error=type(error).__name__)
        return
    for kind, severity in SEVERITIES.items():
        parts.metrics.anomalies.labels(kind.value, severity.value).set(counts.get(kind, 0))


async def _refresh_dead_letters(parts: Parts) -> None:
    try:
        async with asyncio.timeout(ANSWER_S):
            count = await parts.ledger.count_dead_letters()
    except (LedgerUnavailable, TimeoutError) as error:
        log.warning("the number of dead letters is not known", error=type(error).__name__)
        return
    parts.metrics.dead_letters.set(count)
