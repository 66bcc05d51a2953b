"""Heads of requests to the hot route that were parsed before: to parse one is a tenth of the work for a request, and
most clients send the same head each time, but for the length."""

import asyncio
from typing import Final

from chargegate.api.exchange import Exchange

_MOST: Final = 512
_LONGEST: Final = 1024


class KnownHeads:
    """What a head says depends on its bytes alone. Strangers who send many different ones only make it forget."""

    def __init__(self) -> None:
        self._known: dict[bytes, Exchange] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, head: bytes) -> Exchange | None:
        """An exchange with this head, to be ``repeated``."""
        return self._known.get(head)

    def keep(self, head: bytes, exchange: Exchange) -> None:
        """Remember what was parsed without a fault. The exchange itself is not kept."""
        if len(head) <= _LONGEST:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[head] = exchange.repeated(_NoWire())


class _NoWire:
    """The connection of an exchange that only serves as a pattern."""

    blocked: asyncio.Event | None = None
    date = b""
    stopping = False

    def write(self, data: bytes) -> None: ...

    def read_on(self) -> None: ...

    def answered(self) -> None: ...
