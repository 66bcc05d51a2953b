"""How one sink stands: what ``/health`` and the metrics say of it."""

from chargegate.model import now_ms
from chargegate.observe import Metrics, log


class SinkState:
    """Why a sink takes no rows at the moment, and since when it lacks one. Every feed has this part of ``Feed``."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._name = name
        self._written = metrics.audit_entries.labels(name)
        self._refused = metrics.audit_refused.labels(name)
        self._failure: str | None = None
        self._waiting_since: int | None = None  # when the oldest row was decided that the sink lacks
        metrics.audit_lag.labels(name).set_function(lambda: self.lag_s)

    @property
    def name(self) -> str:
        return self._name

    @property
    def failure(self) -> str | None:
        """Why the sink takes no rows at the moment, or None."""
        return self._failure

    @property
    def lag_s(self) -> float:
        """The age in seconds of the oldest row that the sink has yet to take; 0 where it has all."""
        since = self._waiting_since
        return 0.0 if since is None else max(0, now_ms() - since) / 1000

    def _failed(self, reason: str, error: str = "") -> None:
        """The sink refused rows. ``error`` is for the log, where it says more than the reason."""
        if self._failure is None:
            log.error("audit sink failed, its rows wait in the ledger", sink=self._name, error=error or reason)
        self._failure = reason

    def _works(self) -> None:
        """The sink took rows."""
        if self._failure is not None:
            log.info("audit sink works again", sink=self._name)
            self._failure = None
