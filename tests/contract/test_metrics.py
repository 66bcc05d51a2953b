"""What `/metrics` tells, after traffic of a known kind."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

PROCESS = (
    "cpu_seconds_total",
    "resident_memory_bytes",
    "virtual_memory_bytes",
    "open_fds",
    "max_fds",
    "start_time_seconds",
)


@pytest.fixture(scope="module")
def gate(shared_service: Callable[..., Service]) -> Service:
    return shared_service(queue__max_size=321)


def grown(service: Service, before: dict[str, float], name: str) -> float:
    return service.metrics().get(name, 0) - before.get(name, 0)


def test_a_decision_is_looked_for_in_the_cache_once(gate: Service, receiver: Site) -> None:
    """The token is in no list, because a change of the list empties what it touches, up to a second later."""
    before = gate.metrics()
    token, station = f"driver-{uuid.uuid4().hex}", str(uuid.uuid4())
    for _ in range(3):
        gate.finished(gate.ask(receiver.url(), driver_token=token, station_id=station))
    gate.finished(gate.ask(receiver.url(), driver_token=token))
    assert grown(gate, before, 'decision_cache_total{outcome="hit"}') == 2
    assert grown(gate, before, 'decision_cache_total{outcome="miss"}') == 2


def test_without_a_cache_nothing_is_looked_for(service: Callable[..., Service], receiver: Site) -> None:
    gate = service(authorization__cache_ttl_ms=0)
    for _ in range(2):
        gate.finished(gate.ask(receiver.url()))
    assert gate.metrics()['authorization_status_total{status="not_allowed"}'] == 2
    assert gate.metrics()['decision_cache_total{outcome="hit"}'] == 0
    assert gate.metrics()['decision_cache_total{outcome="miss"}'] == 0


def test_the_table_of_the_specification(gate: Service, receiver: Site, eventually: Callable[..., Any]) -> None:
    """Throughput, audit entries, the distribution of statuses, processing times, the depth of the queue, looks into the
    cache, and the sinks' lag."""
    before = gate.metrics()
    token = gate.allow()
    for body in ({"driver_token": token}, {}, {}):
        gate.finished(gate.ask(receiver.url(), **body))
    assert gate.post({}).status_code == 400
    for name, expected in (
        ('charging_requests_total{outcome="accepted"}', 3),
        ('authorization_status_total{status="allowed"}', 1),
        ('authorization_status_total{status="not_allowed"}', 2),
        ("authorization_processing_time_seconds_count", 3),
        ('audit_log_entries_total{sink="database"}', 3),
        ('callback_deliveries_total{outcome="delivered"}', 3),
        ("end_to_end_seconds_count", 3),
    ):
        assert grown(gate, before, name) == expected, name
    eventually(lambda: grown(gate, before, 'audit_log_entries_total{sink="csv"}') == 3)
    now = gate.metrics()
    assert (
        sum(value for name, value in now.items() if name.startswith("charging_requests_total"))
        == sum(value for name, value in before.items() if name.startswith("charging_requests_total")) + 4
    )
    assert now["queue_depth"] == 0
    assert now["queue_max_size"] == 321
    assert now["queue_oldest_age_seconds"] == 0
    eventually(lambda: gate.metrics()["requests_in_flight"] == 0)
    eventually(lambda: gate.metrics()['audit_sink_lag_seconds{sink="csv"}'] == 0)
    looks = [grown(gate, before, f'decision_cache_total{{outcome="{outcome}"}}') for outcome in ("hit", "miss")]
    assert sum(looks) == 3


def test_disks_are_those_that_are_written_to(gate: Service, eventually: Callable[..., Any]) -> None:
    disk = os.statvfs(gate.data)
    size = disk.f_blocks * disk.f_frsize

    def free() -> int:
        return os.statvfs(gate.data).f_bavail * disk.f_frsize

    for folder in ("data", "audit"):
        assert gate.metrics()[f'disk_size_bytes{{folder="{folder}"}}'] == size
        eventually(lambda name=folder: abs(gate.metrics()[f'disk_free_bytes{{folder="{name}"}}'] - free()) < size / 100)


def test_the_process_tells_of_itself(gate: Service) -> None:
    values = gate.metrics()
    assert all(values[f"process_{name}"] > 0 for name in PROCESS)
