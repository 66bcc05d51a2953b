"""An authorizer that is slow and fails at random, for demos, tests and benchmarks."""

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Final

from chargegate.authorizers.base import AuthorizationError, Authorizer
from chargegate.model import ChargingRequest, Verdict

_FOREVER_S: Final = 1e9


class SimulatedAuthorizer:
    """Gives another authorizer's verdicts, after a random wait between the two ``latency_ms``.

    A share of the calls fails (``error_share``, 0 to 1), and another share never returns (``hang_share``). With the
    same seed of ``rng``, calls in the same order get the same waits and outcomes.
    """

    def __init__(
        self, inner: Authorizer, *, latency_ms: Sequence[int], error_share: float, hang_share: float, rng: Random
    ) -> None:
        self._inner = inner
        self._low_s, self._high_s = (ms / 1000 for ms in latency_ms)
        self._error_share = error_share
        self._no_answer_share = error_share + hang_share
        self._rng = rng

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        wait_s = self._rng.uniform(self._low_s, self._high_s)
        outcome = self._rng.random()
        await asyncio.sleep(wait_s)
        if outcome < self._error_share:
            raise AuthorizationError("a simulated failure")
        if outcome < self._no_answer_share:
            # The loop keeps a sleeping task alive. A task that waits for its own future may be garbage-collected.
            await asyncio.sleep(_FOREVER_S)
        return await self._inner.decide(request, token_hash)

    async def check(self) -> None:
        await self._inner.check()

    async def close(self) -> None:
        await self._inner.close()
