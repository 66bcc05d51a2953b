"""From what an authorizer says, or fails to say, to a decision."""

import time

from chargegate.authorizers.base import AuthorizationError, AuthorizationTimeout, Authorizer, CircuitOpen
from chargegate.keys import SHORT_HASH, Keyring
from chargegate.model import ChargingRequest, Decision, Reason, Status, Verdict, now_ms
from chargegate.observe import Metrics, log


class Decider:
    """Decides every request: whoever cannot be asked any more, or does not answer, makes it ``unknown``."""

    def __init__(self, authorizer: Authorizer, keyring: Keyring, metrics: Metrics, *, max_age_ms: int) -> None:
        self._authorizer = authorizer
        self._keyring = keyring
        self._processing_time = metrics.processing_time
        self._max_age = max_age_ms
        self._decided = {status: metrics.decisions.labels(status.value) for status in Status}

    async def decide(self, request: ChargingRequest, *, malformed: bool) -> Decision:
        """A decision as it would be recorded; nothing remembers it yet. What is malformed or came too late is not
        asked of the authorizer."""
        token_hash = self._keyring.token_hash(request.driver_token)
        elapsed = 0.0
        if malformed:
            verdict = Verdict(Status.INVALID, Reason.MALFORMED)
        elif now_ms() - request.accepted_at > self._max_age:
            verdict = Verdict(Status.UNKNOWN, Reason.EXPIRED_IN_QUEUE)
        else:
            started = time.perf_counter()
            verdict = await self._ask(request, token_hash)
            if not verdict.cached:
                elapsed = time.perf_counter() - started
                self._processing_time.observe(elapsed)
        return Decision(
            request.request_id,
            request.station_id,
            token_hash[:SHORT_HASH],
            verdict.status,
            verdict.reason,
            round(elapsed * 1000),
            now_ms(),
        )

    async def _ask(self, request: ChargingRequest, token_hash: str) -> Verdict:
        try:
            return await self._authorizer.decide(request, token_hash)
        except CircuitOpen:
            return Verdict(Status.UNKNOWN, Reason.CIRCUIT_OPEN)
        except AuthorizationTimeout:
            return Verdict(Status.UNKNOWN, Reason.TIMEOUT)
        except AuthorizationError as error:
            log.warning("authorization failed", request_id=request.request_id, error=str(error))
            return Verdict(Status.UNKNOWN, Reason.ERROR)

    def count(self, decision: Decision) -> None:
        """To be called once a decision is recorded."""
        self._decided[decision.status].inc()
        log.info(
            "decided",
            request_id=decision.request_id,
            station_id=decision.station_id,
            status=decision.status,
            reason=decision.reason,
            processing_time_ms=decision.processing_time_ms,
        )
