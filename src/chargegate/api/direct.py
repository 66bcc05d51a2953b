"""The way of the hot route past ASGI: no task and no messages for a request that came whole and has no fault."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from chargegate.api.exchange import Exchange


class Direct(Protocol):
    """Accepts requests to one path that came whole. Whatever is unusual about one is left to the application, which
    also refuses what is at fault, so that there is one place for each of these."""

    path: bytes
    """The target as it is sent, without a query."""

    def examine(self, exchange: Exchange, body: bytes, client: tuple[str, int] | None) -> Any:
        """What ``accept`` needs; None leaves the request to the application. It changes nothing."""

    def accept(self, whole: Any) -> None:
        """Take the request over, and answer it, now or later, with ``Exchange.respond``. It raises nothing."""


class Surface:
    """An ASGI application that may have a direct way to one of its routes."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], direct: Direct | None = None) -> None:
        self._app = app
        self.direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
