"""What a command says where nobody reads its output any more, or where the disk is full that it goes to."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

COMMANDS = [
    "audit list",
    "audit stats --json",
    "audit timeouts",
    "audit anomalies",
    "audit export --all",
    "audit rotate",
    "audit restore",
    "audit restore --json",
    "audit restore --output {unique}.csv",
    "audit restore --database {unique}.db",
    "audit verify",
    "audit archive list",
    "audit prune --dry-run",
    "audit backfill --sink csv",
    "acl list",
    "dead-letters list",
    "trace {request_id}",
    "config show",
    "keys create --role client",
    "--help",
]


@pytest.fixture(scope="module")
def stopped(shared_service: Callable[..., Service], receiver: Site) -> tuple[Service, str]:
    """A service that has decided, and the id of a request."""
    running = shared_service(audit__export_dir="exports")
    running.allow()
    asked = [running.ask(receiver.url()) for _ in range(2)]
    for each in asked:
        running.finished(each)
    assert running.stop() == 0
    return running, asked[0].request_id


@pytest.mark.parametrize("arguments", COMMANDS)
def test_output_that_goes_nowhere_is_no_stack_trace(stopped: tuple[Service, str], command: str, arguments: str) -> None:
    service, request_id = stopped

    def run(output: int, unique: str) -> tuple[int, str]:
        words = arguments.format(unique=unique, request_id=request_id).split()
        done = subprocess.run(
            [command, *words],
            cwd=service.folder,
            env=service._environ,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stderr

    reading, writing = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert run(writing, "closed") == (1, "")
        assert run(full, "full") == (1, "chargegate: standard output: No space left on device\n")
    finally:
        os.close(writing)
        os.close(full)


def test_a_process_without_standard_output_works(stopped: tuple[Service, str], command: str) -> None:
    """What is written there must not land in the next file that is opened."""
    service, _ = stopped
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", command, "audit", "restore", "--database", "closed.db"]
    done = subprocess.run(
        shell, cwd=service.folder, env=service._environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (service.folder / "closed.db").read_bytes().startswith(b"SQLite format 3")
