"""A circuit breaker around an authorizer: after too many failures it is not asked for a while.

The pattern is from Michael Nygard's "Release It!" ("Stability Patterns"). The terms are those of resilience4j.
"""

import time
from collections.abc import Callable
from typing import Final

from chargegate.authorizers.base import AuthorizationError, Authorizer, CircuitOpen, NotAsked
from chargegate.model import ChargingRequest, Verdict, now_ms
from chargegate.observe import log

CLOSED: Final = "closed"
HALF_OPEN: Final = "half_open"
OPEN: Final = "open"

_BUCKETS: Final = 10


class _Window:
    """Counts the calls that ended in the last ``length_s`` seconds, and their failures, in ten buckets."""

    def __init__(self, length_s: float) -> None:
        self._bucket_s = length_s / _BUCKETS
        self.clear()

    def clear(self) -> None:
        self._newest = 0
        self._calls = [0] * _BUCKETS
        self._failures = [0] * _BUCKETS
        self.calls = 0
        self.failures = 0

    def count(self, now: float, failures: int) -> None:
        """One call ended; ``failures`` is 0 or 1."""
        tick = int(now / self._bucket_s)
        if tick > self._newest:
            self._drop_before(tick)
        slot = tick % _BUCKETS
        self._calls[slot] += 1
        self._failures[slot] += failures
        self.calls += 1
        self.failures += failures

    def _drop_before(self, tick: int) -> None:
        for passed in range(max(self._newest + 1, tick - _BUCKETS + 1), tick + 1):
            slot = passed % _BUCKETS
            self.calls -= self._calls[slot]
            self.failures -= self._failures[slot]
            self._calls[slot] = self._failures[slot] = 0
        self._newest = tick


class CircuitBreaker:
    """Stops asking an authorizer that fails, and tries again later.

    ``closed``: calls pass. The circuit opens after ``failure_threshold`` failures in a row, or once ``min_calls`` ended
    within the last ``sampling_window_ms`` and ``failure_rate`` of them or more failed.
    ``open``: calls raise ``CircuitOpen``. After ``recovery_timeout_ms`` the circuit is half open, whether somebody
    calls or not: whoever reads the state next sees it change.
    ``half_open``: up to ``half_open_max_calls`` calls at a time pass as probes; others raise ``CircuitOpen``. The first
    probe that ends decides: its success closes the circuit, its failure opens it again.

    Only ``AuthorizationError`` is a failure, and ``NotAsked`` is none. A cancelled call is not counted, and neither is
    a call that began before the last change of state. ``inner`` needs a time limit, so that a probe ends. ``on_change``
    gets every new state. ``clock`` is monotonic, in seconds.
    """

    def __init__(
        self,
        inner: Authorizer,
        *,
        name: str,
        failure_threshold: int,
        failure_rate: float,
        min_calls: int,
        sampling_window_ms: int,
        recovery_timeout_ms: int,
        half_open_max_calls: int,
        on_change: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._name = name
        self._failure_threshold = failure_threshold
        self._failure_rate = failure_rate
        self._min_calls = min_calls
        self._recovery_s = recovery_timeout_ms / 1000
        self._max_probes = half_open_max_calls
        self._on_change = on_change
        self._clock = clock
        self._window = _Window(sampling_window_ms / 1000)
        self._state = CLOSED
        self._generation = 0
        self._failures_in_a_row = 0
        self._probes = 0
        self._probe_at = 0.0
        self._failing_since = 0

    @property
    def state(self) -> str:
        """``closed``, ``half_open`` or ``open``, as it is now."""
        if self._state == OPEN and self._clock() >= self._probe_at:
            self._change(HALF_OPEN)
        return self._state

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        generation = self._generation if self._state == CLOSED else self._probe()
        try:
            verdict = await self._inner.decide(request, token_hash)
        except BaseException as error:
            if isinstance(error, AuthorizationError) and not isinstance(error, NotAsked):
                if generation == self._generation:
                    self._failed()
            elif generation == self._generation and self._state == HALF_OPEN:
                self._probes -= 1
            raise
        if generation == self._generation:
            self._succeeded()
        return verdict

    async def check(self) -> None:
        if self.state != CLOSED:
            raise self._refusal()
        await self._inner.check()

    async def close(self) -> None:
        await self._inner.close()

    def _probe(self) -> int:
        """Let a call pass as a probe, or raise ``CircuitOpen``. Returns the generation that the probe belongs to."""
        if self.state == OPEN or self._probes >= self._max_probes:
            raise self._refusal()
        self._probes += 1
        return self._generation

    def _refusal(self) -> CircuitOpen:
        how = self._state.replace("_", " ")
        return CircuitOpen(f"the circuit {self._name} is {how}", self._state, self._failing_since)

    def _succeeded(self) -> None:
        if self._state == HALF_OPEN:
            self._change(CLOSED)
            return
        self._failures_in_a_row = 0
        self._window.count(self._clock(), 0)
        self._open_if_failing()

    def _failed(self) -> None:
        if self._state == HALF_OPEN:
            self._change(OPEN)
            return
        self._failures_in_a_row += 1
        self._window.count(self._clock(), 1)
        self._open_if_failing()

    def _open_if_failing(self) -> None:
        window = self._window
        if self._failures_in_a_row >= self._failure_threshold or (
            window.calls >= self._min_calls and window.failures / window.calls >= self._failure_rate
        ):
            self._change(OPEN)

    def _change(self, to: str) -> None:
        if self._state == CLOSED:
            self._failing_since = now_ms()
        self._state = to
        self._generation += 1
        self._failures_in_a_row = 0
        self._probes = 0
        if to == OPEN:
            self._probe_at = self._clock() + self._recovery_s
        elif to == CLOSED:
            self._window.clear()
        log.warning("circuit changed", name=self._name, state=to)
        self._on_change(to)
