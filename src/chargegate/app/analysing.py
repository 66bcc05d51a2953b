"""Builds the analysis of the audit, and what tells an operator of it."""

import time
from contextlib import AsyncExitStack
from typing import Final

from chargegate.app.opening import Opened
from chargegate.audit.analysis import Analysis, Tell, Watch
from chargegate.audit.rules import Thresholds
from chargegate.config import Settings
from chargegate.delivering.signing import Signer
from chargegate.http1 import CallFailed, HttpClient
from chargegate.model import parse_callback_url
from chargegate.observe import log

KEPT_MS: Final = 63_072_000_000
"""Counts and anomalies are kept for two years, as the audit itself is by default."""


def start_analysis(opened: Opened, signer: Signer, stack: AsyncExitStack) -> None:
    """One process of many looks; this one is ready to."""
    settings, database = opened.settings, opened.database
    chosen = settings.analysis
    limits = Thresholds(
        timeouts_per_hour=chosen.timeouts_per_hour,
        station_error_rate=chosen.station_error_rate,
        station_min_decisions=chosen.station_min_decisions,
        silence_hours=chosen.silence_hours,
        silence_min_usual=chosen.silence_min_usual,
        token_stations=chosen.token_stations,
        token_window_ms=chosen.token_window_ms,
        callback_failure_rate=chosen.callback_failure_rate,
        callback_min_ended=chosen.callback_min_ended,
    )
    analysis = Analysis(
        database.counts,
        database.anomalies,
        database.ledger,
        limits,
        tell=_webhook(settings, signer, stack) if chosen.webhook_url else None,
        keep_ms=KEPT_MS,
    )
    stack.push_async_callback(Watch(analysis, chosen.interval_ms).close)


def _webhook(settings: Settings, signer: Signer, stack: AsyncExitStack) -> Tell:
    """The operator's own URL may be in any network, unlike a callback's."""
    target = parse_callback_url(settings.analysis.webhook_url)
    client = HttpClient(max_connections=1, name_servers=settings.callback.name_servers)
    stack.push_async_callback(client.close)
    timeout_s = settings.callback.timeout_ms / 1000

    failing = ""

    async def tell(message_id: str, body: bytes) -> bool:
        nonlocal failing
        headers = signer.headers(message_id, int(time.time()), body)
        try:
            status = (await client.post(target, headers, body, timeout_s)).status
            why = "" if 200 <= status < 300 else f"http_{status}"
        except CallFailed as failure:
            why = failure.reason
        if why and why != failing:  # it is tried again and again, and told once
            log.warning("an anomaly could not be told, and will be", why=why)
        failing = why
        return not why

    return tell
