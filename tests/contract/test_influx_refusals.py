"""A time-series database that refuses some decisions for good gets all others, however many it refuses in a row."""

from __future__ import annotations

import uuid
import zlib
from typing import TYPE_CHECKING, Any

import pytest

import outside

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

LIMIT_S = 60


@pytest.mark.parametrize("refused", [1, 30, 120])
@pytest.mark.parametrize("status", [400, 422])
def test_what_it_refuses_holds_up_nothing_behind_it(
    service: Callable[..., Service],
    receiver: Site,
    site: Callable[..., Site],
    reply: Callable[..., Any],
    status: int,
    refused: int,
) -> None:
    poison, taken, away = str(uuid.uuid4()), set(), [True]

    def answer(call: Any) -> Any:
        lines = zlib.decompress(call.body, 31).decode().splitlines()
        if away:
            return reply(503)
        if any(poison in line for line in lines):
            return reply(status, b'{"code":"invalid","message":"a field has another type"}')
        taken.update(lines)
        return reply(204)

    database = site(answer)
    running = service(audit__influx_url=database.url("/"), audit__influx_bucket="b", audit__influx_token="t")
    asked = [running.ask(receiver.url(), station_id=poison) for _ in range(refused)]
    asked += [running.ask(receiver.url()) for _ in range(5)]
    for each in asked:
        running.finished(each)
    away.clear()
    outside.eventually(lambda: len(taken) == 5, LIMIT_S, "what it takes did not come")
    running.finished(running.ask(receiver.url()))
    outside.eventually(lambda: len(taken) == 6, LIMIT_S, "what came later did not come")

    def told() -> bool:
        found = running.metrics()
        return (
            found['audit_sink_refused_total{sink="influx"}'] == refused
            and not found['audit_sink_lag_seconds{sink="influx"}']
        )

    outside.eventually(told, LIMIT_S, "the refusals were not counted")
    assert running.client.get("/health").json()["components"]["audit"]["status"] == "UP"
