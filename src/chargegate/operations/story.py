"""One request's story, put together from the ledger, the audit, the queue and the log."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from chargegate.keys import Keyring
from chargegate.ledger.base import Ledger
from chargegate.ledger.records import CallbackRecord, DecisionFilter, RequestRecord
from chargegate.model import Decision, Moment, RequestStatus, from_iso
from chargegate.operations.requests import find_request
from chargegate.queues.base import Queue

_PAGE: Final = 500
_MAX_LINES: Final = 10_000
_OF_STORY: Final = frozenset({"timestamp", "event", "request_id", "station_id", "trace_id"})
_IN_ORDER: Final = ("accepted", "taken", "decided", "audited", "replayed", "attempt", "delivered", "given up")
_ORDER: Final = {what: number for number, what in enumerate(_IN_ORDER)}
"""What comes first of steps within the same millisecond. Lines of the log come after them."""

_STANDS: Final = {
    RequestStatus.QUEUED: "it is in the queue, and has no decision yet",
    RequestStatus.COMPLETED: "its callback was delivered",
    RequestStatus.TIMEOUT: "the authorizer did not answer in time, and its callback says so: it was delivered",
    RequestStatus.FAILED: "its callback was given up",
}

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Step(msgspec.Struct, frozen=True):
    """Something that happened to a request. ``after_ms`` is the time since it was accepted, ``took_ms`` how long it
    took, where that is known. ``source`` is where that is written: ledger, audit or log."""

    at: Moment
    after_ms: int
    what: str
    source: str
    took_ms: int | None = None
    details: dict[str, Any] = {}


class Story(msgspec.Struct, frozen=True):
    """A request from its acceptance on. ``stands`` says in words what ``status`` means. ``trace_id`` is from the
    log."""

    request_id: str
    station_id: str
    status: RequestStatus
    stands: str
    client: str
    trace_id: str
    steps: list[Step]


async def story_of(
    ledger: Ledger,
    open_queue: Callable[[], Awaitable[Queue]] | None,
    keyring: Keyring,
    request_id: str,
    lines: Iterable[dict[str, Any]] = (),
) -> Story | None:
    """None where nobody knows the request. ``open_queue`` is called only for a request that the ledger does not have;
    None where nobody but the serving process can look into the queue. ``lines`` are those that the log has about it.
    Raises ``LedgerUnavailable`` and ``QueueUnavailable``."""
    record = await ledger.find(request_id)
    if record is None and open_queue is not None:
        record = await find_request(ledger, await open_queue(), keyring, request_id)
    if record is None:
        return None
    steps = list(_steps(record))
    if record.decision is not None:
        recorded = await ledger.recorded(request_id)
        known = record.callback is not None and record.callback.replays
        # A release that kept no replays kept when the last one began.
        if recorded is not None and recorded.started_at > record.decision.timestamp and not known:
            steps.append(_step(record, recorded.started_at, "replayed", "ledger"))
        if await _is_audited(ledger, record.decision):
            audited = {"driver_token_hash": record.decision.driver_token_hash}
            steps.append(_step(record, record.decision.timestamp, "audited", "audit", details=audited))
    trace_id = ""
    for line in lines:
        trace_id = trace_id or str(line.get("trace_id", ""))
        steps.append(_said(record, line))
    steps.sort(key=lambda step: (step.at, step.source == "log", _ORDER.get(step.what, 0)))
    return Story(record.request_id, record.station_id, record.status, _stands(record), record.client, trace_id, steps)


def lines_about(request_id: str, log: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The lines of a log in JSON that are about a request, the first 10,000 of them. Other lines are passed over."""
    wanted, found = request_id.encode(), 0
    for line in log:
        if wanted not in line:
            continue
        try:
            fields = _decode(line)
        except msgspec.DecodeError:
            continue
        if fields.get("request_id") == request_id:
            yield fields
            found += 1
            if found == _MAX_LINES:
                return


def _steps(record: RequestRecord) -> Iterator[Step]:
    """What the ledger has, in no order. When a request was taken from the queue follows from how long the authorizer
    took."""
    yield _step(record, record.created_at, "accepted", "ledger", details={"client": record.client})
    decision, callback = record.decision, record.callback
    if decision is None:
        return
    took = decision.processing_time_ms
    yield _step(record, decision.timestamp - took, "taken", "ledger")
    why = {"status": str(decision.status), "reason": str(decision.reason)}
    yield _step(record, decision.timestamp, "decided", "ledger", took_ms=took, details=why)
    for attempt in () if callback is None else callback.history:
        came = {"status_code": attempt.status_code, "error": attempt.error}
        yield _step(record, attempt.at, "attempt", "ledger", took_ms=attempt.duration_ms, details=came)
    if callback is not None:
        yield from _replays(record, callback)
    if record.processed_at is not None:
        what = "given up" if record.status is RequestStatus.FAILED else "delivered"
        ended = {} if callback is None else {"attempts": callback.attempts, "error": callback.last_error}
        yield _step(record, record.processed_at, what, "ledger", details=ended)


def _replays(record: RequestRecord, callback: CallbackRecord) -> Iterator[Step]:
    """Each replay, and how the callback had ended before it: with the attempt before, if that is still known."""
    for at in callback.replays or ():
        yield _step(record, at, "replayed", "ledger")
        before = [attempt for attempt in callback.history if attempt.at < at]
        if before:
            ended = min(at - 1, before[-1].at + before[-1].duration_ms)
            yield _step(record, ended, "delivered" if before[-1].error is None else "given up", "ledger")


def _stands(record: RequestRecord) -> str:
    if record.status in _STANDS:
        return _STANDS[record.status]
    return "a worker has it, and asks the authorizer" if record.decision is None else "its callback is under way"


def _step(
    record: RequestRecord,
    at: int,
    what: str,
    source: str,
    *,
    took_ms: int | None = None,
    details: dict[str, Any] | None = None,
) -> Step:
    told = {name: value for name, value in (details or {}).items() if value not in (None, "")}
    return Step(at, at - record.created_at, what, source, took_ms, told)


def _said(record: RequestRecord, line: dict[str, Any]) -> Step:
    try:
        at = from_iso(str(line.get("timestamp")))
    except ValueError:
        at = record.created_at
    shown = {name: value for name, value in line.items() if name not in _OF_STORY}
    return _step(record, at, str(line.get("event", "")), "log", details=shown)


async def _is_audited(ledger: Ledger, decision: Decision) -> bool:
    """Whether the audit has this very decision. It is looked for by station and time, which have an index."""
    at = decision.timestamp
    which = DecisionFilter(station_id=decision.station_id, since=at, until=at + 1)
    after: tuple[int, str] | None = None
    while page := await ledger.decisions(which, _PAGE, after):
        if decision in page:
            return True
        after = (page[-1].timestamp, page[-1].request_id)
    return False
