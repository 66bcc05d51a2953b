"""A disk that takes nothing more: the service says so, promises nothing that it cannot keep, and heals by itself.
A log that cannot be written costs nothing but the log."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site


def full(service: Service, *, disk: bool) -> None:
    """Let no file of the service's process grow, or let them grow again; sockets are not touched."""
    assert service.process is not None
    pid = service.process.pid
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if disk else most, most))


def test_a_full_disk(
    service: Callable[..., Service],
    receiver: Site,
    authorizer: Site,
    answer: Callable[..., Reply],
    eventually: Callable[..., Any],
) -> None:
    running = service(authorization__backend="http", authorization__url=authorizer.url("/decide"))
    running.finished(running.ask(receiver.url()))
    token = "under-way-while-it-is-full"
    authorizer.plan(token, answer("allowed", how="held"))
    under_way = running.ask(receiver.url(), driver_token=token)
    eventually(lambda: authorizer.calls_to(token))

    full(running, disk=True)
    authorizer.release(token)
    eventually(lambda: running.ready() == 503)
    refused = [running.body(receiver.url()) for _ in range(20)]
    for number, body in enumerate(refused):
        response = running.post(body, **({"idempotency_key": f"full-{number}"} if number % 2 else {}))
        assert response.status_code == 503
        assert response.json()["status"] == "service_unavailable"
        assert int(response.headers["retry-after"]) > 0
        assert body["driver_token"] not in response.text
    health = running.client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "DOWN")
    assert running.client.get("/health/live").status_code == 200
    # Its decision is not on disk, so it may not be told.
    assert not receiver.calls_to(under_way.callback_url)

    full(running, disk=False)
    eventually(lambda: running.ready() == 200)
    assert running.finished(under_way)["decision"]["status"] == "allowed"
    afterwards = running.ask(receiver.url())
    assert running.finished(afterwards)["status"] == "COMPLETED"
    # The client of a refused request sends it again; the key of one that was never taken must not stand in its way.
    for number, body in enumerate(refused):
        assert not receiver.calls_to(body["callback_url"])
        answered = running.post(body, **({"idempotency_key": f"full-{number}"} if number % 2 else {}))
        assert answered.status_code == 202
        eventually(lambda url=body["callback_url"]: receiver.calls_to(url))
    assert all(len(receiver.calls_to(body["callback_url"])) == 1 for body in refused)

    eventually(lambda: len(running.csv_rows()) == 3 + len(refused), why="the CSV did not catch up")
    assert running.stop() == 0
    assert sorted(row[1] for row in running.csv_rows()) == sorted(row[0] for row in running.audit_rows())


@pytest.mark.parametrize("csv_path", ["authorization_audit.log", "/dev/full"])
def test_only_the_log_and_the_csv_are_on_a_full_disk(
    service: Callable[..., Service], receiver: Site, csv_path: str
) -> None:
    deaf = service(started=False, audit__csv_path=csv_path)
    deaf.log_file = deaf.folder / "full"
    deaf.log_file.symlink_to("/dev/full")
    deaf.start()
    for _ in range(5):
        assert deaf.finished(deaf.ask(receiver.url()))["status"] == "COMPLETED"
    health = deaf.client.get("/health")
    audit = health.json()["components"]["audit"]["status"]
    assert (health.status_code, audit) == (200, "DEGRADED" if csv_path == "/dev/full" else "UP")
    assert deaf.stop() == 0
    assert len(deaf.audit_rows()) == 5


def test_a_log_that_nobody_reads_any_more(service: Callable[..., Service], receiver: Site) -> None:
    unread = service(started=False)
    unread.log_file = unread.folder / "pipe"
    os.mkfifo(unread.log_file)
    reader = os.open(unread.log_file, os.O_RDONLY | os.O_NONBLOCK)
    unread.start()
    os.close(reader)
    for _ in range(5):
        assert unread.finished(unread.ask(receiver.url()))["status"] == "COMPLETED"
    assert unread.client.get("/health").json()["status"] == "UP"
    assert unread.stop() == 0
    assert len(unread.audit_rows()) == len(unread.csv_rows()) == 5


def test_a_log_whose_reader_sleeps(service: Callable[..., Service], receiver: Site) -> None:
    """A pipe holds 64 KiB; what is logged here would fill it many times over."""
    unread = service(started=False)
    unread.log_file = unread.folder / "pipe"
    os.mkfifo(unread.log_file)
    reader = os.open(unread.log_file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        unread.start()
        asked = [unread.ask(receiver.url()) for _ in range(400)]
        assert all(unread.finished(each)["status"] == "COMPLETED" for each in asked)
        assert unread.client.get("/health").json()["status"] == "UP"
        assert unread.stop() == 0
    finally:
        os.close(reader)
