"""A scenario in an event loop of its own, within a limit."""

import asyncio
import contextlib
import warnings
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import uvloop

LIMIT_S: Final = 60
"""For what comes soon: most of it is waiting for a server."""

CLOSED_S: Final = 10
"""For a TLS connection's farewell, which its closing does not always wait for."""

_LISTENING: Final = "0A"


def run(scenario: Coroutine[Any, Any, None], limit_s: float = LIMIT_S) -> None:
    """Run it to its end, and see that no connection stays open that was made meanwhile."""

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
        except BaseException:
            # What failed left connections. An error about one, within uvloop's closing, has it wait for ever.
            warnings.filterwarnings("ignore", "unclosed resource", ResourceWarning)
            raise

    with warnings.catch_warnings():
        uvloop.run(main())


def _connections() -> set[str]:
    """The inodes of this process's TCP connections, as proc(5) tells them."""
    sockets = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them, and what a thread closes meanwhile
            sockets.add(str(descriptor.readlink()))
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {line[9] for line in lines if line[3] != _LISTENING and f"socket:[{line[9]}]" in sockets}
