"""Ports of 127.0.0.1 that nobody else takes."""

import contextlib
import itertools
import os
import random
import socket
from typing import Final

_WORKERS: Final = 16  # of pytest-xdist, at most
_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_OWN: Final = range(15_000 + _WORKER, 32_000, _WORKERS)
_turns: Final = itertools.cycle(random.sample(_OWN, len(_OWN)))


def free_port() -> int:
    """A free port below the range of outgoing connections, so that none of these takes it before it is listened on, or
    while its server is down. Each worker of pytest-xdist has ports of its own, because two that are given the same port
    would ask each other's servers."""
    while True:
        port = next(_turns)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
