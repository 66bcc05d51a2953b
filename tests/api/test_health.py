"""Health and metrics."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.api.conftest import BODY, SESSION, Service

from chargegate.engines.memory.queue import MemoryQueue
from chargegate.operations.health import Component
from chargegate.queues.base import Depth, QueueUnavailable


async def up() -> Component:
    return Component("UP")


async def degraded() -> Component:
    return Component("DEGRADED", {"circuit": "open"})


async def down() -> Component:
    return Component("DOWN", {"disk": "full"})


async def broken() -> Component:
    raise ValueError("a secret")


async def hanging() -> Component:
    await asyncio.sleep(60)
    return Component("UP")


@pytest.mark.parametrize(
    ("checks", "status", "code"),
    [
        ([up, up], "UP", 200),
        ([up, degraded], "DEGRADED", 200),
        ([degraded, down], "DOWN", 503),
        ([broken, up], "DOWN", 503),
    ],
)
def test_the_worst_component_is_the_service(
    serve: Callable[..., Service], checks: list[Callable[[], object]], status: str, code: int
) -> None:
    service = serve(components=dict(zip(["queue", "authorization"], checks, strict=True)))
    answer = service.http.get("/health")
    assert answer.status_code == code
    health = answer.json()
    assert set(health) == {"status", "timestamp", "components"}
    assert health["status"] == status
    assert isinstance(health["timestamp"], int)
    assert list(health["components"]) == ["queue", "authorization"]
    assert all(set(component) == {"status", "details"} for component in health["components"].values())
    assert "secret" not in answer.text


def test_slow_components_are_down_and_are_asked_together(serve: Callable[..., Service]) -> None:
    service = serve(components=dict.fromkeys(["queue", "a", "b", "c", "d"], hanging))
    answer = service.http.get("/health", timeout=9)  # one after another they would take ten seconds
    assert answer.status_code == 503
    assert {component["status"] for component in answer.json()["components"].values()} == {"DOWN"}


def test_ready_follows_the_queue_and_the_shutdown(serve: Callable[..., Service]) -> None:
    components = {"queue": up, "database": down}
    service = serve(components=components)
    assert service.http.get("/health/ready").json()["status"] == "UP"
    service.draining = True
    answer = service.http.get("/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "DOWN")
    assert service.http.get("/health/live").json()["status"] == "UP"
    service.draining = False
    components["queue"] = down
    assert service.http.get("/health/ready").status_code == 503


def test_metrics_show_queue_and_dead_letters_as_they_are_now(service: Service, client: httpx.Client) -> None:
    client.post(SESSION, json=BODY)
    service.give_up()
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = answer.text.splitlines()
    assert 'charging_requests_total{outcome="accepted"} 1.0' in lines
    assert "queue_depth 1.0" in lines
    assert "dead_letters 1.0" in lines
    assert any(line.startswith("queue_oldest_age_seconds ") for line in lines)


class Gone(MemoryQueue):
    async def depth(self) -> Depth:
        raise QueueUnavailable("gone")


def test_metrics_survive_their_sources(serve: Callable[..., Service], tmp_path: Path) -> None:
    service = serve(queue=Gone(1))
    connection = sqlite3.connect(tmp_path / "api.db")
    connection.execute("DROP TABLE charging_requests")
    connection.close()
    answer = service.http.get("/metrics")
    assert answer.status_code == 200
    assert "process_cpu_seconds_total" in answer.text
