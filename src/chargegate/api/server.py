"""The HTTP/1.1 server: uvicorn's protocol in our own event loop, with limits on what a client may keep waiting."""

import asyncio
import contextlib
import math
import os
import socket
from email.utils import formatdate
from typing import Final

from starlette.types import ASGIApp
from uvicorn.config import Config

from chargegate.api.connection import Connection, State

KEEP_ALIVE_S: Final = 75  # longer than the 60 s of most load balancers, so that they close first


class Server:
    """Listens on one address. Signals, logging and the loop stay the caller's."""

    def __init__(self) -> None:
        self._state = State()
        self._listener: asyncio.Server | None = None
        self._clock: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port that is listened on, also where 0 was asked for."""
        if self._listener is None:
            raise RuntimeError("not started")
        return int(self._listener.sockets[0].getsockname()[1])

    async def start(
        self, app: ASGIApp, host: str, port: int, *, request_timeout_ms: int, max_connections: float = math.inf
    ) -> None:
        """Return when connections are accepted.

        ``request_timeout_ms`` is how long the head of a request may take, and then its body. A connection beyond
        ``max_connections`` is answered with 503 and closed. Raises ``OSError`` with a message for people if the
        address cannot be listened on.
        """
        config = Config(
            app,
            interface="asgi3",
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        config.load()
        loop = asyncio.get_running_loop()
        self._state.limit = max_connections
        self._tick()
        try:
            self._listener = await loop.create_server(
                lambda: Connection(config, self._state, request_timeout_ms / 1000), host, port, backlog=2048
            )
        except OSError as error:
            self._stop_clock()
            reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
            raise OSError(f"cannot listen on {host} port {port}: {reason}") from None

    def _tick(self) -> None:
        """The ``Date`` header (RFC 9110, 6.6.1), made once a second."""
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._clock = asyncio.get_running_loop().call_later(1, self._tick)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more, let answers under way finish for up to ``grace_s`` seconds, then cut the rest off."""
        if self._listener is None:
            return
        self._listener.close()
        state = self._state
        for connection in tuple(state.connections):
            connection.shutdown()
        if state.connections:
            state.deserted.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(state.deserted.wait(), grace_s)
        for connection in tuple(state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        for task in tuple(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        await self._listener.wait_closed()
        self._stop_clock()
        self._listener = None
