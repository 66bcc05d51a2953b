"""Makes a decision of what an authorizer answers, and of its failure to answer."""

import time
from collections.abc import Callable

from chargegate.authorizers.base import AuthorizationError, AuthorizationTimeout, Authorizer, CircuitOpen, NotAsked
from chargegate.keys import SHORT_HASH, Keyring
from chargegate.model import ChargingRequest, Decision, Reason, Status, Verdict, now_ms
from chargegate.observe import Metrics, log, trace_field, traced


class Decider:
    """Decides every request. A request that came too late, or whose authorizer does not answer, is ``unknown``."""

    def __init__(
        self,
        authorizer: Authorizer,
        keyring: Keyring,
        metrics: Metrics,
        *,
        max_age_ms: int,
        known: Callable[[str, str], Verdict | None] = lambda _hash, _station: None,
    ) -> None:
        """``known``: what the authorizer would say of a token's hash and a station, where that is known without asking
        anybody; None where it is not."""
        self._authorizer = authorizer
        self._known = known
        self._cache_looked = metrics.cache_looked
        self._keyring = keyring
        self._processing_time = metrics.processing_time
        self._max_age = max_age_ms
        self._asked: dict[str, float] = {}
        self._failures = 0
        self._decided = {status: metrics.decisions.labels(status.value) for status in Status}

    async def decide(self, request: ChargingRequest, *, malformed: bool) -> Decision:
        """A decision that is to be recorded. The authorizer is not asked about a request that is malformed or came too
        late."""
        token_hash = self._keyring.token_hash(request.driver_token)
        elapsed = 0.0
        if malformed:
            verdict = Verdict(Status.INVALID, Reason.MALFORMED)
        elif now_ms() - request.accepted_at > self._max_age:
            verdict = Verdict(Status.UNKNOWN, Reason.EXPIRED_IN_QUEUE)
        else:
            started = self._asked[request.request_id] = time.perf_counter()
            try:
                verdict = await self._authorizer.decide(request, token_hash)
            except AuthorizationError as error:
                if not isinstance(error, CircuitOpen | NotAsked):
                    self._failures += 1
                verdict = Verdict(Status.UNKNOWN, _reason(request, error))
            else:
                if not verdict.cached:
                    self._failures = 0
            finally:
                self._asked.pop(request.request_id, None)
            if not verdict.cached:
                elapsed = time.perf_counter() - started
                self._processing_time.observe(elapsed)
        return _decision(request, token_hash, verdict, elapsed, now_ms())

    def decide_at_once(self, request: ChargingRequest) -> Decision | None:
        """The decision of a well-formed request; None where somebody must be asked, or it came too late."""
        now = now_ms()
        if now - request.accepted_at > self._max_age:
            return None
        started = time.perf_counter()
        token_hash = self._keyring.token_hash(request.driver_token)
        verdict = self._known(token_hash, request.station_id)
        if verdict is None:
            return None
        self._cache_looked(verdict.cached)
        if not verdict.cached:
            self._processing_time.observe(time.perf_counter() - started)
        return _decision(request, token_hash, verdict, 0, now)

    @property
    def oldest_question_ms(self) -> int:
        """For how long the authorizer has not answered the request that it was asked about first; 0 where it owes no
        answer."""
        first = next(iter(self._asked.values()), None)
        return 0 if first is None else round((time.perf_counter() - first) * 1000)

    @property
    def failures_in_a_row(self) -> int:
        """How many requests the authorizer was asked about since it last gave a verdict."""
        return self._failures

    def count(self, decision: Decision, traceparent: str) -> None:
        """Count and log a decision. To be called once it is recorded."""
        self._decided[decision.status].inc()
        fields = {
            "request_id": decision.request_id,
            "station_id": decision.station_id,
            "status": decision.status,
            "reason": decision.reason,
            "processing_time_ms": decision.processing_time_ms,
        }
        log.step("decided", traced(fields, traceparent))


def _decision(request: ChargingRequest, token_hash: str, verdict: Verdict, elapsed_s: float, now: int) -> Decision:
    return Decision(
        request.request_id,
        request.station_id,
        token_hash[:SHORT_HASH],
        verdict.status,
        verdict.reason,
        round(elapsed_s * 1000) if elapsed_s else 0,
        now,
    )


def _reason(request: ChargingRequest, error: AuthorizationError) -> Reason:
    if isinstance(error, CircuitOpen):
        return Reason.CIRCUIT_OPEN
    if isinstance(error, AuthorizationTimeout):
        return Reason.TIMEOUT
    log.warning(
        "authorization failed", request_id=request.request_id, error=str(error), **trace_field(request.traceparent)
    )
    return Reason.ERROR
