"""What the machine allows a process: too few open files stop the start; later they are its own fault, and nobody
else's."""

from __future__ import annotations

import os
import resource
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

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
        (64, {"callback.max_connections": 1, "queue.consumer_concurrency": 1}, ["callback.max_connections"]),
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


@pytest.fixture
def no_more_files() -> Callable[[Service], AbstractContextManager[None]]:
    """While it lasts, the service's process can open nothing more."""

    @contextmanager
    def limited(service: Service) -> Iterator[None]:
        assert service.process is not None
        pid = service.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # The lowest number that is not in use, so that not even one that is closed and opened again is to be had.
        used = {int(file.name) for file in Path(f"/proc/{pid}/fd").iterdir()}
        lowest = next(number for number in range(len(used) + 1) if number not in used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    return limited


def cpu_s(service: Service) -> float:
    assert service.process is not None
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_no_file_left_is_told_once_and_passes(
    service: Callable[..., Service],
    receiver: Site,
    no_more_files: Callable[[Service], AbstractContextManager[None]],
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
