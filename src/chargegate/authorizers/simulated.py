"""An authorizer with a temper, for demos, tests and benchmarks."""

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Final

from chargegate.authorizers.base import AuthorizationError, Authorizer
from chargegate.model import ChargingRequest, Verdict

_FOREVER_S: Final = 1e9


class SimulatedAuthorizer:
    """Another authorizer's verdicts after a random wait between the two ``latency_ms``.

    Of all calls a share of ``error_share`` fails instead, and a share of ``hang_share`` never returns. The same
    ``rng`` seed gives the same waits and outcomes in the order of the calls.
    """

    def __init__(
        self, inner: Authorizer, *, latency_ms: Sequence[int], error_share: float, hang_share: float, rng: Random
    ) -> None:
        self._inner = inner
        self._low_s, self._high_s = (ms / 1000 for ms in latency_ms)
        self._error_share = error_share
        self._trouble_share = error_share + hang_share
        self._rng = rng

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        wait_s = self._rng.uniform(self._low_s, self._high_s)
        fate = self._rng.random()
        await asyncio.sleep(wait_s)
        if fate < self._error_share:
            raise AuthorizationError("a simulated failure")
        if fate < self._trouble_share:
            # A sleep, which the loop holds: a task that waits for a future of its own may be collected as garbage.
            await asyncio.sleep(_FOREVER_S)
        return await self._inner.decide(request, token_hash)

    async def check(self) -> None:
        await self._inner.check()

    async def close(self) -> None:
        await self._inner.close()
