import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from chargegate.authorizers.base import AuthorizationError, Authorizer
from chargegate.authorizers.simulated import SimulatedAuthorizer
from chargegate.model import ChargingRequest, Status, Verdict

MakeRequest = Callable[..., ChargingRequest]
Script = Callable[..., Any]

HASH = "ab" * 32
VERDICT = Verdict(Status.NOT_ALLOWED, "token_blocked", 5)


def simulated(
    inner: Authorizer, *, errors: float = 0.0, hangs: float = 0.0, rng: Random | None = None
) -> SimulatedAuthorizer:
    return SimulatedAuthorizer(inner, latency_ms=[0, 0], error_share=errors, hang_share=hangs, rng=rng or Random(1))


async def outcomes(authorizer: Authorizer, request: ChargingRequest, calls: int) -> list[Verdict | str]:
    """The outcomes of sequential calls: a verdict, "error", or "hang" for a call that does not return."""
    found = []
    for _ in range(calls):
        task = asyncio.create_task(authorizer.decide(request, HASH))
        for _turn in range(10):
            await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            found.append("hang")
        else:
            found.append("error" if isinstance(task.exception(), AuthorizationError) else task.result())
    return found


@pytest.mark.parametrize(
    ("errors", "hangs", "outcome"), [(0, 0, VERDICT), (1, 0, "error"), (0, 1, "hang")], ids=["none", "all", "hang"]
)
def test_the_shares_at_their_ends(
    errors: float, hangs: float, outcome: object, scripted: Script, make_request: MakeRequest
) -> None:
    inner = scripted(VERDICT)
    authorizer = simulated(inner, errors=errors, hangs=hangs)
    assert asyncio.run(outcomes(authorizer, make_request(), 5)) == [outcome] * 5
    assert inner.calls == (5 if outcome is VERDICT else 0)


def test_shares_mix_and_the_same_seed_gives_the_same_outcomes(scripted: Script, make_request: MakeRequest) -> None:
    def sample() -> list[Verdict | str]:
        authorizer = simulated(scripted(VERDICT), errors=0.4, hangs=0.2, rng=Random(7))
        return asyncio.run(outcomes(authorizer, make_request(), 30))

    first = sample()
    assert {str(outcome) for outcome in first} == {str(VERDICT), "error", "hang"}
    assert first.count("error") > first.count("hang")
    assert sample() == first


def test_waits_are_drawn_between_the_latencies(scripted: Script, make_request: MakeRequest) -> None:
    class Recorded(Random):
        ranges: list[tuple[float, float]] = []  # noqa: RUF012 - one instance

        def uniform(self, a: float, b: float) -> float:
            self.ranges.append((a, b))
            return 0.0

    authorizer = SimulatedAuthorizer(
        scripted(VERDICT), latency_ms=[50, 200], error_share=0, hang_share=0, rng=Recorded(1)
    )
    assert asyncio.run(authorizer.decide(make_request(), HASH)) is VERDICT
    assert Recorded.ranges == [(0.05, 0.2)]


def test_check_and_close_reach_the_authorizer(scripted: Script) -> None:
    inner = scripted(VERDICT)

    async def scenario() -> None:
        await simulated(inner, errors=1).check()
        await simulated(inner).close()

    asyncio.run(scenario())
    assert (inner.checks, inner.closes) == (1, 1)
