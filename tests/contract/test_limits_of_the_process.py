"""What the machine allows a process: too few open files stop the start; later they are its own fault, and nobody
else's."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from contract.faults import no_more_files

PATH = "/api/v1/charging-session"

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site


def launcher(command: str, files: int) -> list[str]:
    return ["sh", "-c", f'ulimit -n {files}; exec "$0" "$@"', command]


def said(service: Service) -> str:
    """The one line that is no event."""
    (line,) = [line for line in service.log.splitlines() if not line.startswith("{")]
    return line


@pytest.mark.parametrize(
    ("files", "settings", "names"),
    [
        (64, {}, ["callback.max_connections"]),
        (24, {"callback.max_connections": 1, "queue.consumer_concurrency": 1}, ["callback.max_connections"]),
        (256, {"callback.max_connections": 400}, ["callback.max_connections = 400"]),
        (
            256,
            {"authorization.backend": "http", "authorization.url": "http://127.0.0.1:1/"},
            ["callback.max_connections = 100", "queue.consumer_concurrency = 256"],
        ),
    ],
)
def test_too_few_open_files_stop_the_start(
    service: Callable[..., Service], command: str, files: int, settings: dict[str, Any], names: list[str]
) -> None:
    small = service(started=False)
    small.configure(**settings)
    small.spawn(*launcher(command, files))
    assert small.ended() == 1, small.log
    line = said(small)
    for word in (*names, "open files", str(files), "needed", "ulimit"):
        assert word in line
    assert "Traceback" not in small.log


def test_enough_for_the_settings_is_enough(service: Callable[..., Service], command: str, receiver: Site) -> None:
    small = service(started=False)
    small.configure(**{"callback.max_connections": 20, "callback.max_connections_per_destination": 5})
    small.start(*launcher(command, 128))
    asked = [small.ask(receiver.url()) for _ in range(50)]
    assert {small.finished(each)["status"] for each in asked} == {"COMPLETED"}


def cpu_s(service: Service) -> float:
    assert service.process is not None
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_no_file_left_is_told_once_and_passes(
    service: Callable[..., Service],
    receiver: Site,
    eventually: Callable[..., Any],
) -> None:
    running = service()
    running.finished(running.ask(receiver.url()))

    def callbacks() -> str:
        return running.client.get("/health").json()["components"]["callbacks"]["status"]

    assert callbacks() == "UP"
    with no_more_files(running):
        eventually(lambda: callbacks() == "DEGRADED", 20, lambda: running.log)
        assert running.client.get("/health").status_code == 200
        cpu, began = cpu_s(running), time.monotonic()
        others = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(20)]
        eventually(lambda: time.monotonic() - began > 2 and callbacks() == "DEGRADED")
        assert cpu_s(running) - cpu < (time.monotonic() - began) / 2, "it spins"
        for other in others:
            other.close()
        told = [line for line in running.log.splitlines() if "too many open files" in line.lower()]
        assert len(told) == 1, told
    eventually(lambda: callbacks() == "UP", 20, lambda: running.log)
    assert running.finished(running.ask(receiver.url()))["status"] == "COMPLETED"
    assert "files can be opened again" in running.log
    assert "Traceback" not in running.log


def test_a_callback_waits_for_a_file_and_uses_no_attempt(
    service: Callable[..., Service],
    site: Callable[..., Site],
    eventually: Callable[..., Any],
) -> None:
    """No connection to any receiver was made before, so that each callback needs a file."""
    running = service(callback__retry_delay_ms=1)
    receivers = [site() for _ in range(8)]
    running.metrics()
    with no_more_files(running):
        asked = [running.ask(each.url()) for each in receivers for _ in range(3)]
        eventually(lambda: not_sent(running) > 4 * len(asked), 30, lambda: running.log)
        assert not any(each.calls for each in receivers)
        assert {running.session(each.request_id)["status"] for each in asked} <= {"QUEUED", "PROCESSING"}
        callbacks = running.client.get("/health").json()["components"]["callbacks"]
        assert callbacks["details"]["open_circuits"] == 0
    for each in asked:
        found = running.finished(each)
        assert (found["status"], found["callback"]["attempts"]) == ("COMPLETED", 1)
    assert sum(len(each.calls) for each in receivers) == len(asked)
    assert running.metrics()["dead_letters"] == 0


def not_sent(service: Service) -> float:
    return service.metrics().get('callback_deliveries_total{outcome="not_sent"}', 0)


def test_the_authorizer_is_asked_when_there_is_a_file_again(
    service: Callable[..., Service],
    site: Callable[..., Site],
    answer: Callable[..., Any],
    receiver: Site,
) -> None:
    """That it could not be asked opens no circuit and uses up no retry."""
    authorizer = site(lambda _call: answer("allowed"))
    running = service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        authorization__max_retries=0,
        authorization__circuit_breaker__failure_threshold=1,
    )
    running.metrics()
    with no_more_files(running):
        asked = [running.ask(receiver.url()) for _ in range(20)]
        began = time.monotonic()
        while time.monotonic() - began < 3:
            states = {running.session(each.request_id)["status"] for each in asked}
            assert states <= {"QUEUED", "PROCESSING"}, running.log
        assert not authorizer.calls
    assert {running.finished(each)["decision"]["status"] for each in asked} == {"allowed"}
    assert running.metrics()['circuit_breaker_state{name="authorization"}'] == 0


def test_no_database_needs_a_file_more_than_at_the_start(
    service: Callable[..., Service], site: Callable[..., Site], answer: Callable[..., Any], receiver: Site
) -> None:
    """Whatever was not asked for yet: requests under way, many at once, statistics, and a key that is known."""
    running = service(authorization__backend="http", authorization__url=site(lambda _call: answer("allowed")).url("/"))
    body = running.body(receiver.url())
    assert running.client.get("/health/live").status_code == 200  # a connection, which stays open
    with no_more_files(running):
        key = {"idempotency-key": "one"}
        request_ids = {running.client.post(PATH, json=body, headers=key).json()["request_id"] for _ in range(2)}
        assert len(request_ids) == 1
        for path in (
            *[f"{PATH}/{request_id}" for request_id in request_ids] * 10,
            *("/api/v1/requests", "/api/v1/decisions", "/api/v1/statistics", "/api/v1/dead-letters", "/api/v1/acl"),
        ):
            assert running.client.get(path).status_code == 200, path


def test_who_could_not_be_asked_in_time_is_not_to_blame(
    service: Callable[..., Service],
    site: Callable[..., Site],
    answer: Callable[..., Any],
    receiver: Site,
    eventually: Callable[..., Any],
) -> None:
    authorizer = site(lambda _call: answer("allowed"))
    running = service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        authorization__timeout_ms=2000,
        authorization__circuit_breaker__failure_threshold=1,
    )
    running.metrics()
    with no_more_files(running):
        asked = [running.ask(receiver.url()) for _ in range(5)]
        for each in asked:
            decision = eventually(lambda each=each: running.session(each.request_id)["decision"], 20)
            assert (decision["status"], decision["reason"]) == ("unknown", "authorization_timeout")
    assert running.finished(running.ask(receiver.url()))["decision"]["status"] == "allowed"
