"""Runs a test's scenario in an event loop of its own, within a time limit."""

import asyncio
import contextlib
import gc
import traceback
import warnings
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import uvloop

LIMIT_S: Final = 60
"""The default limit. Most scenarios only wait for a server."""

CLOSED_S: Final = 10
"""How long a closed TLS connection may take to end: closing does not always wait for the end of TLS."""

_LISTENING: Final = "0A"


def run(scenario: Coroutine[Any, Any, None], limit_s: float = LIMIT_S) -> None:
    """Run the scenario to its end, and assert that it leaves no connection open."""

    async def main() -> None:
        before = _connections()
        try:
            async with asyncio.timeout(limit_s):
                await scenario
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSED_S):
                    while _connections() - before:
                        await asyncio.sleep(0.01)
            assert not _connections() - before, "a connection was left open"
        except BaseException as error:
            # A scenario that failed leaves connections and clients open. A warning about one of them would make uvloop
            # hang as it closes, because the tests turn warnings into errors, or fail a later test that does no harm.
            warnings.simplefilter("ignore", ResourceWarning)
            _let_go(error)
            raise

    with warnings.catch_warnings():
        uvloop.run(main())


def _let_go(error: BaseException | None) -> None:
    """Free what the failed scenario's functions held, so that it is collected now and not within another test."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


def _connections() -> set[str]:
    """The inodes of this process's TCP connections, read from /proc as proc(5) describes."""
    sockets = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of this listing, or one that a thread has just closed
            sockets.add(str(descriptor.readlink()))
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {line[9] for line in lines if line[3] != _LISTENING and f"socket:[{line[9]}]" in sockets}
