import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from chargegate.authorizers.base import AuthorizationError, AuthorizationTimeout, Authorizer, CircuitOpen
from chargegate.authorizers.deadline import Deadline
from chargegate.model import ChargingRequest, Status, Verdict

MakeRequest = Callable[..., ChargingRequest]
Script = Callable[..., Any]

HASH = "ab" * 32
LONG_MS = 60_000


class Hanging:
    """Never answers. After a cancellation it raises, answers late, or hangs again, as the test chose."""

    def __init__(self, when_cancelled: BaseException | Verdict | None = None) -> None:
        self.when_cancelled = when_cancelled
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        self.asked.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            if isinstance(self.when_cancelled, Verdict):
                return self.when_cancelled
            if self.when_cancelled is None:
                raise
            if isinstance(self.when_cancelled, asyncio.CancelledError):
                await asyncio.sleep(3600)
            raise self.when_cancelled from None


def decide(inner: Authorizer, request: ChargingRequest, timeout_ms: int) -> Verdict:
    return asyncio.run(Deadline(inner, timeout_ms).decide(request, HASH))


def test_an_answer_in_time_passes(scripted: Script, make_request: MakeRequest) -> None:
    verdict = Verdict(Status.NOT_ALLOWED, "token_blocked", 5)
    assert decide(scripted(verdict), make_request(), LONG_MS) is verdict


def test_no_answer_in_time_is_a_timeout_and_cancels_the_authorizer(make_request: MakeRequest) -> None:
    inner = Hanging()
    with pytest.raises(AuthorizationTimeout):
        decide(inner, make_request(), 10)
    assert inner.cancelled.is_set()


def test_an_authorizer_that_breaks_when_its_time_is_over_has_timed_out(make_request: MakeRequest) -> None:
    with pytest.raises(AuthorizationTimeout):
        decide(Hanging(ValueError("late")), make_request(), 10)


def test_a_cancellation_from_outside_passes_unchanged(make_request: MakeRequest) -> None:
    async def scenario() -> None:
        inner = Hanging()
        task = asyncio.create_task(Deadline(inner, LONG_MS).decide(make_request(), HASH))
        await inner.asked.wait()
        task.cancel("shutting down")
        with pytest.raises(asyncio.CancelledError, match="shutting down"):
            await task
        assert task.cancelled()

    asyncio.run(scenario())


def test_a_cancellation_from_outside_wins_over_the_timeout(make_request: MakeRequest) -> None:
    async def scenario() -> None:
        inner = Hanging(asyncio.CancelledError())
        task = asyncio.create_task(Deadline(inner, 10).decide(make_request(), HASH))
        await inner.cancelled.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "error", [AuthorizationError("no"), AuthorizationTimeout("late"), CircuitOpen("no", "open", 0)]
)
def test_the_authorizers_own_errors_pass_unchanged(
    error: AuthorizationError, scripted: Script, make_request: MakeRequest
) -> None:
    with pytest.raises(AuthorizationError) as raised:
        decide(scripted(error), make_request(), LONG_MS)
    assert raised.value is error


@pytest.mark.parametrize("error", [ValueError, KeyError, TimeoutError, OSError, RecursionError])
def test_a_defect_is_one_failure_and_tells_only_its_type(
    error: type[Exception],
    scripted: Script,
    make_request: MakeRequest,
    logged: Callable[[], list[dict[str, Any]]],
) -> None:
    request = make_request()
    with pytest.raises(AuthorizationError) as raised:
        decide(scripted(error(f"cannot read {request.driver_token}")), request, LONG_MS)
    assert raised.type is AuthorizationError
    assert raised.value.__suppress_context__
    (event,) = logged()
    assert (event["level"], event["error"], event["request_id"]) == ("error", error.__name__, request.request_id)
    assert request.driver_token not in str(raised.value) + repr(event)


def test_check_and_close_reach_the_authorizer(scripted: Script) -> None:
    inner = scripted(Verdict(Status.ALLOWED))
    deadline = Deadline(inner, LONG_MS)

    async def scenario() -> None:
        await deadline.check()
        await deadline.close()

    asyncio.run(scenario())
    assert (inner.checks, inner.closes) == (1, 1)
