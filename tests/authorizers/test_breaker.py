import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from chargegate.authorizers.base import AuthorizationError, AuthorizationTimeout, CircuitOpen, NotAsked
from chargegate.authorizers.breaker import CircuitBreaker
from chargegate.model import ChargingRequest, Status, Verdict

MakeRequest = Callable[..., ChargingRequest]
Script = Callable[..., Any]

HASH = "ab" * 32
VERDICT = Verdict(Status.ALLOWED)
WINDOW_S = 10
RECOVERY_S = 3


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Turn:
    def __await__(self) -> Generator[None, Any, Any]:
        return (yield)


class Paused:
    """Suspends each call until the test continues it with an outcome. It needs no event loop."""

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        outcome = await _Turn()
        if isinstance(outcome, Verdict):
            return outcome
        raise outcome

    async def check(self) -> None:
        pass


class Call:
    """A suspended call through a breaker. Raises ``CircuitOpen`` if the breaker refuses it."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._steps = breaker.decide(None, HASH)
        self._steps.send(None)

    def end(self, outcome: Verdict | BaseException) -> None:
        if isinstance(outcome, Verdict):
            with pytest.raises(StopIteration) as stop:
                self._steps.send(outcome)
            assert stop.value.value is outcome
        elif isinstance(outcome, asyncio.CancelledError):
            with pytest.raises(asyncio.CancelledError):
                self._steps.throw(outcome)
        else:
            with pytest.raises(type(outcome)):
                self._steps.send(outcome)


FAILURE = AuthorizationError("no")
CANCELLED = asyncio.CancelledError()


class Circuit:
    """A breaker with a clock and calls that the test controls."""

    def __init__(self, **options: float) -> None:
        self.clock = Clock()
        self.changes: list[str] = []
        settings = {
            "failure_threshold": 3,
            "failure_rate": 1.0,
            "min_calls": 1000,
            "sampling_window_ms": WINDOW_S * 1000,
            "recovery_timeout_ms": RECOVERY_S * 1000,
            "half_open_max_calls": 1,
        }
        self.breaker = CircuitBreaker(
            Paused(), name="authorizer", on_change=self.changes.append, clock=self.clock, **{**settings, **options}
        )

    @property
    def state(self) -> str:
        return self.breaker.state

    def begin(self) -> Call:
        return Call(self.breaker)

    def call(self, *outcomes: Verdict | BaseException) -> None:
        for outcome in outcomes:
            self.begin().end(outcome)

    def refuses(self) -> bool:
        try:
            call = self.begin()
        except CircuitOpen:
            return True
        call.end(CANCELLED)
        return False

    def checked(self) -> str:
        """The state as ``check`` tells it."""
        try:
            asyncio.run(self.breaker.check())
        except CircuitOpen as refused:
            return refused.state
        return "closed"

    def opened(self) -> "Circuit":
        self.call(FAILURE, FAILURE, FAILURE)
        assert self.state == "open"
        return self


def test_failures_in_a_row_open_it() -> None:
    circuit = Circuit()
    circuit.call(FAILURE, FAILURE, VERDICT, FAILURE, FAILURE)
    assert circuit.state == "closed"
    circuit.call(AuthorizationTimeout("late"))
    assert circuit.state == "open"
    assert circuit.refuses()


def test_that_nobody_was_asked_is_no_failure() -> None:
    circuit = Circuit()
    circuit.call(*[NotAsked("no socket")] * 10)
    assert circuit.state == "closed"
    circuit.opened().clock.now += RECOVERY_S
    circuit.call(NotAsked("no socket"))  # a probe that says nothing, so that the next call is one
    assert circuit.state == "half_open"
    circuit.call(VERDICT)
    assert circuit.state == "closed"


def test_a_share_of_failures_opens_it_once_there_are_enough_calls() -> None:
    circuit = Circuit(failure_threshold=1000, failure_rate=0.3, min_calls=10)
    circuit.call(FAILURE, FAILURE, FAILURE, *[VERDICT] * 6)
    assert circuit.state == "closed"
    circuit.call(VERDICT)
    assert circuit.state == "open"


def test_a_share_below_the_rate_does_not_open_it() -> None:
    circuit = Circuit(failure_threshold=1000, failure_rate=0.3, min_calls=10)
    circuit.call(FAILURE, FAILURE, *[VERDICT] * 8, VERDICT, FAILURE)
    assert circuit.state == "closed"


def test_calls_older_than_the_window_do_not_count() -> None:
    circuit = Circuit(failure_threshold=1000, failure_rate=0.5, min_calls=4)
    circuit.call(FAILURE, FAILURE, FAILURE)
    circuit.clock.now += WINDOW_S
    circuit.call(FAILURE)
    assert circuit.state == "closed"
    circuit.clock.now += WINDOW_S * 0.8
    circuit.call(FAILURE, FAILURE, FAILURE)
    assert circuit.state == "open"


@pytest.mark.parametrize("silence_s", range(WINDOW_S, 2 * WINDOW_S + 3))
def test_a_silence_as_long_as_the_window_empties_it(silence_s: int) -> None:
    circuit = Circuit(failure_threshold=1000, failure_rate=0.5, min_calls=WINDOW_S + 2)
    for _ in range(WINDOW_S):
        circuit.clock.now += 1
        circuit.call(FAILURE)
    circuit.clock.now += silence_s
    circuit.call(*[FAILURE] * (WINDOW_S + 1))
    assert circuit.state == "closed"
    circuit.call(FAILURE)
    assert circuit.state == "open"


def test_an_open_circuit_refuses_until_the_recovery_time_is_over() -> None:
    circuit = Circuit().opened()
    circuit.clock.now += RECOVERY_S - 0.5
    assert circuit.refuses()
    assert circuit.checked() == "open"
    circuit.clock.now += 0.5
    probe = circuit.begin()
    assert circuit.state == "half_open"
    assert circuit.refuses()
    assert circuit.checked() == "half_open"
    probe.end(VERDICT)
    assert circuit.state == "closed"
    assert circuit.checked() == "closed"


@pytest.mark.parametrize("read", [lambda circuit: circuit.state, lambda circuit: circuit.checked()])
def test_an_open_circuit_is_half_open_in_time_without_a_call(read: Callable[[Circuit], str]) -> None:
    circuit = Circuit().opened()
    circuit.clock.now += RECOVERY_S - 0.5
    assert read(circuit) == "open"
    circuit.clock.now += 0.5
    assert read(circuit) == "half_open"
    assert circuit.changes == ["open", "half_open"]
    circuit.clock.now += 1000
    assert read(circuit) == "half_open"
    assert circuit.changes == ["open", "half_open"]


def test_since_when_it_is_not_proven_is_when_it_left_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 5_000}
    monkeypatch.setattr("chargegate.authorizers.breaker.now_ms", lambda: clock["now"])

    def since() -> int:
        with pytest.raises(CircuitOpen) as refused:
            asyncio.run(circuit.breaker.check())
        return refused.value.since

    circuit = Circuit().opened()
    assert since() == 5_000
    for clock["now"] in (6_000, 7_000):  # trials that fail
        circuit.clock.now += RECOVERY_S
        assert since() == 5_000
        circuit.call(FAILURE)
        assert since() == 5_000
    circuit.clock.now += RECOVERY_S
    circuit.call(VERDICT)
    clock["now"] = 9_000
    circuit.opened()
    assert since() == 9_000


def test_a_probe_that_fails_opens_it_for_the_whole_recovery_time_again() -> None:
    circuit = Circuit().opened()
    circuit.clock.now += RECOVERY_S + 100
    circuit.call(FAILURE)
    assert circuit.state == "open"
    circuit.clock.now += RECOVERY_S - 0.5
    assert circuit.refuses()
    circuit.clock.now += 0.5
    assert not circuit.refuses()


def test_a_success_closes_it_with_an_empty_window_and_no_failures_in_a_row() -> None:
    circuit = Circuit(failure_rate=0.5, min_calls=4).opened()
    circuit.clock.now += RECOVERY_S
    circuit.call(VERDICT, FAILURE, FAILURE)
    assert circuit.state == "closed"
    circuit.call(FAILURE)
    assert circuit.state == "open"


@pytest.mark.parametrize("given_back", [CANCELLED, ValueError("a defect")])
def test_what_is_neither_success_nor_failure_gives_the_probes_place_back(given_back: BaseException) -> None:
    circuit = Circuit().opened()
    circuit.clock.now += RECOVERY_S
    for _ in range(5):
        circuit.call(given_back)
        assert circuit.state == "half_open"
    circuit.call(VERDICT)
    assert circuit.state == "closed"


def test_cancelled_calls_count_neither_way_while_closed() -> None:
    circuit = Circuit(failure_rate=0.5, min_calls=4)
    circuit.call(FAILURE, CANCELLED, FAILURE, *[CANCELLED] * 10)
    assert circuit.state == "closed"
    circuit.call(FAILURE)
    assert circuit.state == "open"


def test_late_results_of_an_earlier_state_change_nothing() -> None:
    circuit = Circuit(half_open_max_calls=2)
    late = [circuit.begin() for _ in range(6)]
    circuit.opened()
    late.pop().end(VERDICT)
    assert circuit.state == "open"
    circuit.clock.now += RECOVERY_S
    first, second = circuit.begin(), circuit.begin()
    late.pop().end(VERDICT)
    late.pop().end(FAILURE)
    late.pop().end(CANCELLED)
    assert circuit.state == "half_open"
    assert circuit.refuses()
    first.end(VERDICT)
    second.end(FAILURE)
    late.pop().end(FAILURE)
    late.pop().end(FAILURE)
    assert circuit.state == "closed"
    circuit.call(FAILURE, FAILURE)
    assert circuit.state == "closed"


def test_changes_are_told_and_logged(logged: Callable[[], list[dict[str, Any]]]) -> None:
    circuit = Circuit().opened()
    circuit.clock.now += RECOVERY_S
    circuit.call(FAILURE)
    circuit.clock.now += RECOVERY_S
    circuit.call(VERDICT)
    assert circuit.changes == ["open", "half_open", "open", "half_open", "closed"]
    assert [(event["name"], event["state"]) for event in logged()] == [("authorizer", to) for to in circuit.changes]


def test_an_open_circuit_does_not_ask_and_close_passes_on(scripted: Script, make_request: MakeRequest) -> None:
    inner = scripted(FAILURE)
    breaker = CircuitBreaker(
        inner,
        name="authorizer",
        failure_threshold=2,
        failure_rate=1.0,
        min_calls=100,
        sampling_window_ms=1000,
        recovery_timeout_ms=60_000,
        half_open_max_calls=1,
        on_change=lambda _state: None,
    )

    async def scenario() -> None:
        for _ in range(5):
            with pytest.raises(AuthorizationError):
                await breaker.decide(make_request(), HASH)
        await breaker.close()

    asyncio.run(scenario())
    assert (inner.calls, inner.closes) == (2, 1)


class BreakerMachine(RuleBasedStateMachine):
    """Compares the breaker with a simple model that keeps every call of the window in a list."""

    calls = Bundle("calls")

    @initialize(
        threshold=st.integers(1, 4),
        rate=st.sampled_from([0.25, 0.5, 1.0]),
        min_calls=st.integers(1, 6),
        max_probes=st.integers(1, 3),
    )
    def begin_closed(self, threshold: int, rate: float, min_calls: int, max_probes: int) -> None:
        self.circuit = Circuit(
            failure_threshold=threshold, failure_rate=rate, min_calls=min_calls, half_open_max_calls=max_probes
        )
        self.threshold, self.rate, self.min_calls, self.max_probes = threshold, rate, min_calls, max_probes
        self.turn = 0
        self.enter("closed")

    def enter(self, state: str) -> None:
        self.state = state
        self.turn += 1
        self.row = 0
        self.ended = []
        self.probes = 0
        self.since = self.circuit.clock.now

    @rule(target=calls)
    def start(self) -> Any:
        if self.state == "open" or (self.state == "half_open" and self.probes == self.max_probes):
            with pytest.raises(CircuitOpen):
                self.circuit.begin()
            return multiple()
        self.probes += self.state == "half_open"
        return self.circuit.begin(), self.turn

    @rule(call=consumes(calls), failed=st.booleans())
    def end(self, call: tuple[Call, int], failed: bool) -> None:
        call, turn = call
        call.end(FAILURE if failed else VERDICT)
        if turn != self.turn:
            return
        if self.state == "half_open":
            self.enter("open" if failed else "closed")
            return
        self.row = self.row + 1 if failed else 0
        now = int(self.circuit.clock.now)
        self.ended = [(second, bad) for second, bad in self.ended if second > now - WINDOW_S] + [(now, failed)]
        bad = sum(bad for _, bad in self.ended)
        if self.row >= self.threshold or (len(self.ended) >= self.min_calls and bad >= self.rate * len(self.ended)):
            self.enter("open")

    @rule(call=consumes(calls))
    def cancel(self, call: tuple[Call, int]) -> None:
        call, turn = call
        call.end(CANCELLED)
        self.probes -= turn == self.turn and self.state == "half_open"

    @rule(seconds=st.sampled_from([0.25, 1, RECOVERY_S, WINDOW_S, 1000]))
    def wait(self, seconds: float) -> None:
        self.circuit.clock.now += seconds
        if self.state == "open" and self.circuit.clock.now >= self.since + RECOVERY_S:
            self.enter("half_open")

    @invariant()
    def agree(self) -> None:
        assert self.circuit.state == self.state
        assert self.probes <= self.max_probes


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
