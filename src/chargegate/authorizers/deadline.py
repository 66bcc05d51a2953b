"""A time limit around an authorizer."""

import asyncio
from typing import cast

from chargegate.authorizers.base import AuthorizationError, AuthorizationTimeout, Authorizer
from chargegate.model import ChargingRequest, Verdict
from chargegate.observe import log


class Deadline:
    """Gives an authorizer ``timeout_ms`` to answer, then cancels it and raises ``AuthorizationTimeout``.

    A defect of the authorizer, any exception that is not an ``AuthorizationError``, becomes one. A cancellation
    from outside passes unchanged.
    """

    def __init__(self, inner: Authorizer, timeout_ms: int) -> None:
        self._inner = inner
        self._timeout_s = timeout_ms / 1000
        self._loop: asyncio.AbstractEventLoop | None = None

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        # asyncio.timeout does the same in three times the time, and this is asked for every request.
        if self._loop is None:
            self._loop = asyncio.get_running_loop()  # kept: asking for it is a system call before Python 3.12
        task = cast("asyncio.Task[object]", asyncio.current_task(self._loop))
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            task.cancel()

        timer = self._loop.call_later(self._timeout_s, expire)
        try:
            return await self._inner.decide(request, token_hash)
        except AuthorizationError:
            if expired:
                task.uncancel()
            raise
        except asyncio.CancelledError:
            if expired and task.uncancel() == 0:
                raise AuthorizationTimeout("no answer in time") from None
            raise
        except Exception as error:  # noqa: BLE001 - a defect is one failure, not the end of a worker
            if expired:
                task.uncancel()
                raise AuthorizationTimeout("no answer in time") from None
            # Only its type is told, and it is not chained: its message may hold what the request held.
            kind = type(error).__name__
            log.error("authorizer broke", request_id=request.request_id, error=kind)
            raise AuthorizationError(f"the authorizer broke: {kind}") from None
        finally:
            timer.cancel()

    async def check(self) -> None:
        await self._inner.check()

    async def close(self) -> None:
        await self._inner.close()
