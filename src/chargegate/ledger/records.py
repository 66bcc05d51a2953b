"""What a ledger keeps and gives back. Times are Unix milliseconds."""

from typing import Annotated, Final

import msgspec
from msgspec import UNSET, UnsetType

from chargegate.model import Decision, Hidden, Moment, RequestStatus, ShortHash, TokenHash, Without

CLAIM_MS: Final = 3_600_000
"""How long an idempotency key is remembered."""

MAX_HISTORY: Final = 20
"""How many attempts at a callback are kept, and how many replays: the newest."""


class AuditRow(msgspec.Struct, frozen=True, gc=False):
    """A decision with its place in the ledger: ``sequence`` grows with each commit of a writer, whose name is empty
    where the database has only one."""

    sequence: int
    decision: Decision
    writer: str = ""


class AttemptRecord(msgspec.Struct, frozen=True, gc=False):
    """One attempt at a callback: when it began, and what came of it. ``error`` is None where it was delivered."""

    at: Moment
    status_code: int | None
    error: str | None
    duration_ms: int


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """A decision that is in the ledger, with how far its callback has come. ``started_at`` is when delivering began:
    the decision's time, or that of the last replay. ``finished_at`` is None while it goes on. ``history`` is that of
    all attempts and replays, as ``rows.history_text`` writes it."""

    decision: Decision
    attempts: int
    started_at: int
    finished_at: int | None
    history: str = ""


class Finished(msgspec.Struct, frozen=True, gc=False):
    """How a callback ended. ``sealed`` (token and URL, encrypted) is kept only with a dead letter."""

    request_id: str
    status: RequestStatus
    attempts: int
    status_code: int | None
    error: str | None
    at: int
    sealed: bytes | None
    history: str = ""


class CallbackRecord(msgspec.Struct, frozen=True):
    """How a request's callback stands. ``attempts`` are those since the last replay; ``history`` is of all.
    ``replays``: when it was sent again, if it was."""

    attempts: int
    last_status_code: int | None
    last_error: str | None
    delivered_at: Moment | None
    history: tuple[AttemptRecord, ...] = ()
    replays: tuple[Moment, ...] | UnsetType = UNSET


class RequestRecord(msgspec.Struct, frozen=True):
    """A request from its acceptance to the end of its callback."""

    request_id: str
    station_id: str
    status: RequestStatus
    created_at: Moment
    processed_at: Moment | None
    decision: Annotated[Decision | None, Without(("request_id", "station_id", "driver_token_hash"))]
    callback: CallbackRecord | None
    client: str = ""
    """Who sent it; empty where nobody knows, for what an older release recorded."""


class DeadLetter(msgspec.Struct, frozen=True):
    """A callback given up that can be sent again."""

    request_id: str
    station_id: str
    driver_token_hash: ShortHash
    status: str
    reason: str
    created_at: Moment
    failed_at: Moment
    attempts: int
    last_status_code: int | None
    last_error: str | None
    sealed: Annotated[bytes, Hidden()]
    """The encrypted token and URL."""
    client: str = ""


class DroppedAudit(msgspec.Struct, frozen=True):
    """What was dropped of the audit: tables that were a month each, and single rows."""

    tables: list[str]
    rows: int


class DroppedLetters(msgspec.Struct, frozen=True):
    """How many dead letters a step dropped because they were too old, and because there were too many."""

    old: int
    excess: int


class DecisionFilter(msgspec.Struct, frozen=True):
    """Which decisions: each part None for any; ``since`` is included, ``until`` is not."""

    station_id: str | None = None
    status: str | None = None
    since: int | None = None
    until: int | None = None
    reason: str | None = None
    client: str | None = None


class StationStats(msgspec.Struct, frozen=True):
    """How many decisions a station got, by status."""

    station_id: str
    total: int
    allowed: int
    not_allowed: int
    unknown: int
    invalid: int


class Claim(msgspec.Struct, frozen=True):
    """What an idempotency key stands for, for ``CLAIM_MS``."""

    body_digest: str
    request_id: str
    created_at: int


class AccessEntry(msgspec.Struct, frozen=True):
    """One line of the access list. Station ids are in lower case."""

    driver_token_hash: TokenHash
    blocked: bool = False
    valid_from: Moment | None = None
    valid_until: Moment | None = None
    allowed_stations: frozenset[str] = frozenset()
    denied_stations: frozenset[str] = frozenset()
    note: str = ""
