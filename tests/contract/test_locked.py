"""Another program locks the embedded database for long: clients are told soon, and all goes on when it is free."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from contract.faults import locked

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

ANSWER_S = 2.0
ROOM_S = 1.0  # for a machine that is busy with other tests


@pytest.mark.parametrize("statement", ["BEGIN EXCLUSIVE", "BEGIN IMMEDIATE"])
def test_a_database_that_is_locked(
    service: Callable[..., Service],
    receiver: Site,
    authorizer: Site,
    answer: Callable[..., Reply],
    eventually: Callable[..., Any],
    statement: str,
) -> None:
    running = service(authorization__backend="http", authorization__url=authorizer.url("/decide"))
    before = [running.ask(receiver.url()) for _ in range(3)]
    assert all(running.finished(each) for each in before)
    token = f"under-way-while-locked-{statement[6:]}"
    authorizer.plan(token, answer("allowed", how="held"))
    under_way = running.ask(receiver.url(), driver_token=token)
    eventually(lambda: authorizer.calls_to(token))

    refused = []
    with locked(running, statement):
        authorizer.release(token)
        waits: list[float] = []
        health: list[tuple[int, Any]] = []

        def ask(number: int) -> None:
            body = running.body(receiver.url())
            refused.append(body)
            began = time.monotonic()
            response = running.post(body, **({"idempotency_key": f"locked-{number}"} if number % 2 else {}))
            waits.append(time.monotonic() - began)
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0

        def look() -> None:
            response = running.client.get("/health")
            health.append((response.status_code, response.json()["components"]))

        for turn in range(3):
            threads = [threading.Thread(target=ask, args=(10 * turn + number,)) for number in range(6)]
            threads.append(threading.Thread(target=look))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(waits) == 18
        assert max(waits) < ANSWER_S + ROOM_S, waits
        assert {status for status, _ in health} == {503}
        assert all(parts["queue"]["status"] == parts["database"]["status"] == "DOWN" for _, parts in health)
        assert running.client.get("/health/live").status_code == 200
        assert running.client.get("/api/v1/decisions").status_code == 200
        assert not receiver.calls_to(under_way.callback_url)

    eventually(lambda: running.ready() == 200)
    assert running.finished(under_way)["decision"]["status"] == "allowed"
    for body in refused:
        assert not receiver.calls_to(body["callback_url"])
    after = [running.ask(receiver.url()) for _ in range(3)]
    assert all(running.finished(each)["status"] == "COMPLETED" for each in after)
    eventually(lambda: len(running.csv_rows()) == 7)
    assert running.stop() == 0
    wanted = Counter(each.request_id for each in (*before, under_way, *after))
    assert Counter(row[0] for row in running.audit_rows()) == wanted
    assert Counter(row[1] for row in running.csv_rows()) == wanted
    assert (
        Counter(call.headers["webhook-id"] for call in receiver.calls if call.headers["webhook-id"] in wanted) == wanted
    )
