"""Looks for anomalies on a schedule, in one process of many, and keeps and tells how they begin and end."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import Final

import msgspec

from chargegate.audit.rules import Finding, Key, Rules, Thresholds
from chargegate.ledger.anomalies import SEVERITIES, Anomalies, Anomaly, AnomalyType, Change, Look
from chargegate.ledger.base import RequestReader
from chargegate.ledger.counts import DecisionCounts, count_all
from chargegate.model import new_request_id, now_ms, to_iso
from chargegate.observe import log
from chargegate.storage.recurring import Recurring

MOST_OPEN: Final = 100
"""Of each type, at most so many are open at once: strangers can make many stations and tokens."""

_TOLD_AT_ONCE: Final = 200
_DROPPED_AT_ONCE: Final = 500

Tell = Callable[[str, bytes], Awaitable[bool]]
"""``tell(message_id, body)`` sends a message. Whether it arrived."""


class Analysis:
    """The anomalies of one database."""

    def __init__(
        self,
        counts: DecisionCounts,
        anomalies: Anomalies,
        requests: RequestReader,
        limits: Thresholds,
        *,
        tell: Tell | None,
        keep_ms: int,
    ) -> None:
        """``tell`` is None where nobody wants to be told. What ended longer than ``keep_ms`` ago is forgotten."""
        self._counts = counts
        self._anomalies = anomalies
        self._requests = requests
        self._rules = Rules(counts, anomalies, limits)
        self._tell = tell
        self._keep_ms = keep_ms
        self._holder = token_hex(8)

    async def look(self, now: int, for_ms: int) -> bool:
        """Look at the audit as it is at that time (Unix ms), unless another process did within ``for_ms``. Whether
        this one did. Raises ``LedgerUnavailable``."""
        if not await self._anomalies.take_turn(self._holder, now, for_ms):
            return False
        await count_all(self._counts)
        known = {(one.type, one.subject): one for one in await self._anomalies.open()}
        findings = await self._rules.find(now, known)
        found = {(finding.type, finding.subject): finding for finding in await self._bounded(findings, known)}
        look = Look(
            began=[_begun(finding, now) for key, finding in found.items() if key not in known],
            goes_on=[_gone_on(known[key], finding) for key, finding in found.items() if key in known],
            ended=[msgspec.structs.replace(one, until=now) for key, one in known.items() if key not in found],
        )
        if await self._anomalies.change(self._holder, look, tell=self._tell is not None):
            for one in look.began:
                log.warning("anomaly", **_told(one))
            for one in look.ended:
                log.info("anomaly resolved", **_told(one))
        await self._anomalies.drop_ended(now - self._keep_ms, _DROPPED_AT_ONCE)
        return True

    async def _bounded(self, findings: list[Finding], known: dict[Key, Anomaly]) -> list[Finding]:
        """Those that go on first; then one of each client in turn, so that nobody's hide all others."""
        by_type: defaultdict[AnomalyType, list[Finding]] = defaultdict(list)
        for finding in findings:
            by_type[finding.type].append(finding)
        kept: list[Finding] = []
        for of_type in by_type.values():
            going_on = [finding for finding in of_type if (finding.type, finding.subject) in known]
            new = [finding for finding in of_type if (finding.type, finding.subject) not in known]
            if len(of_type) > MOST_OPEN:
                log.warning("too many anomalies of a type, some are left out", type=of_type[0].type, found=len(of_type))
                new = await self._in_turn(new)
            kept += (going_on + new)[:MOST_OPEN]
        return kept

    async def _in_turn(self, findings: list[Finding]) -> list[Finding]:
        by_client: defaultdict[str, list[Finding]] = defaultdict(list)
        for finding in findings:
            by_client[await self._client_of(finding)].append(finding)
        placed = [(place, client, one) for client, ones in by_client.items() for place, one in enumerate(ones)]
        return [one for _, _, one in sorted(placed, key=lambda item: item[:2])]

    async def _client_of(self, finding: Finding) -> str:
        request_id = finding.request_id or await self._anomalies.latest_request(finding.subject)
        record = await self._requests.find(request_id) if request_id else None
        return record.client if record is not None else ""

    async def tell_all(self, for_ms: int = 0) -> bool:
        """Tell each change that was not told yet, oldest first, until one does not arrive. Whether all did. A change is
        told once more where this process dies before it is noted, under the same message id. ``for_ms``: as for
        ``look``; it is told only while it is this process's turn, and that goes on as long as a message takes."""
        if self._tell is None:
            return True
        while changes := await self._anomalies.untold(_TOLD_AT_ONCE):
            for change in changes:
                word = "resolved" if change.resolved else "opened"
                telling = self._tell(f"{change.anomaly.id}-{word}", _message(change))
                if not await (self._in_own_turn(telling, for_ms) if for_ms else telling):
                    return False
                await self._anomalies.told(change)
        return True

    async def _in_own_turn(self, telling: Awaitable[bool], for_ms: int) -> bool:
        """Otherwise another process would tell the same, because it was not noted yet."""
        task = asyncio.ensure_future(telling)
        try:
            while await self._anomalies.take_turn(self._holder, now_ms(), for_ms):
                done, _ = await asyncio.wait({task}, timeout=for_ms / 3000)
                if done:
                    return task.result()
            return False
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Watch:
    """A task that looks every ``interval_ms``."""

    def __init__(self, analysis: Analysis, interval_ms: int) -> None:
        self._analysis = analysis
        self._interval_ms = interval_ms
        self._pause_ms = interval_ms
        self._recurring = Recurring(self._look, interval_ms / 1000, "the audit cannot be analysed")

    async def _look(self) -> float:
        for_ms = 2 * self._interval_ms
        if await self._analysis.look(now_ms(), for_ms):
            told = await self._analysis.tell_all(for_ms)
            longest = max(self._interval_ms, 300_000)
            self._pause_ms = self._interval_ms if told else min(2 * self._pause_ms, longest)
        return self._pause_ms / 1000

    async def close(self) -> None:
        """A look that is under way is kept or undone by the database."""
        await self._recurring.close()


def _begun(finding: Finding, now: int) -> Anomaly:
    return Anomaly(
        new_request_id(),
        finding.type,
        SEVERITIES[finding.type],
        finding.subject,
        now,
        None,
        finding.description,
        finding.value,
        finding.threshold,
    )


def _gone_on(known: Anomaly, finding: Finding) -> Anomaly:
    return msgspec.structs.replace(
        known, description=finding.description, value=finding.value, threshold=finding.threshold
    )


def _told(one: Anomaly) -> dict[str, str | float]:
    return {
        "type": one.type.value,
        "severity": one.severity.value,
        "subject": one.subject,
        "value": one.value,
        "threshold": one.threshold,
    }


def _message(change: Change) -> bytes:
    """The body of a message: the form that Standard Webhooks recommends."""
    one = change.anomaly
    at = one.until if change.resolved and one.until is not None else one.since
    data = _told(one) | {
        "since": to_iso(one.since),
        "until": to_iso(one.until) if change.resolved and one.until is not None else None,
        "description": one.description,
    }
    kind = "anomaly.resolved" if change.resolved else "anomaly.opened"
    return msgspec.json.encode({"type": kind, "timestamp": to_iso(at), "data": data})
