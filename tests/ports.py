"""Ports of 127.0.0.1 that nobody else takes."""

import contextlib
import os
import random
import socket
from typing import Final

_FIRST, _END = 15_000, 32_000
_WORKERS: Final = 16  # of pytest-xdist, at most
_given: set[int] = set()


def free_port() -> int:
    """A free port below the range of outgoing connections, so that none of these takes it before it is listened on, or
    while its server is down. Each worker of pytest-xdist has ports of its own: two that are given the same port would
    ask each other's servers. Each is given once, unless all were."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    own = range(_FIRST + worker, _END, _WORKERS)
    if len(_given) >= len(own) // 2:
        _given.clear()
    while True:
        port = random.choice(own)
        if port in _given:
            continue
        _given.add(port)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
