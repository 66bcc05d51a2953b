"""The promises that every ledger makes."""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import msgspec

from chargegate.audit.base import AuditRow
from chargegate.model import Decision, RequestStatus

CLAIM_MS: Final = 3_600_000
"""How long an idempotency key is remembered."""


class LedgerUnavailable(Exception):
    """The database cannot be written or read now; nothing changed. The message says why."""


class Recorded(msgspec.Struct, frozen=True):
    """A decision that is in the ledger, with how far its callback has come. ``started_at`` (Unix ms) is when
    delivering began: the decision's time, or that of the last replay. ``finished_at`` is None while it goes on."""

    decision: Decision
    attempts: int
    started_at: int
    finished_at: int | None
    request_status: RequestStatus


class Finished(msgspec.Struct, frozen=True):
    """How a callback ended. ``sealed`` (token and URL, encrypted) is kept only with a dead letter."""

    request_id: str
    status: RequestStatus
    attempts: int
    status_code: int | None
    error: str | None
    at: int
    sealed: bytes | None


class CallbackRecord(msgspec.Struct, frozen=True):
    attempts: int
    last_status_code: int | None
    last_error: str | None
    delivered_at: int | None


class RequestRecord(msgspec.Struct, frozen=True):
    """A request as a reader sees it; times in Unix ms."""

    request_id: str
    station_id: str
    status: RequestStatus
    created_at: int
    processed_at: int | None
    decision: Decision | None
    callback: CallbackRecord | None


class DeadLetter(msgspec.Struct, frozen=True):
    """A callback given up that can be sent again. ``sealed`` is the encrypted token and URL, never shown."""

    request_id: str
    station_id: str
    driver_token_hash: str
    status: str
    reason: str
    created_at: int
    failed_at: int
    attempts: int
    last_status_code: int | None
    last_error: str | None
    sealed: bytes


class DecisionFilter(msgspec.Struct, frozen=True):
    """Which decisions: each part None for any; times in Unix ms, ``since`` included, ``until`` not."""

    station_id: str | None = None
    status: str | None = None
    since: int | None = None
    until: int | None = None
    reason: str | None = None


class StationStats(msgspec.Struct, frozen=True):
    """Decisions of one station by status."""

    station_id: str
    total: int
    allowed: int
    not_allowed: int
    unknown: int
    invalid: int


class Claim(msgspec.Struct, frozen=True):
    """What an idempotency key stands for, for one hour."""

    body_digest: str
    request_id: str
    created_at: int


class AccessEntry(msgspec.Struct, frozen=True):
    """One line of the access list; times in Unix ms; station ids in lower case; the full keyed hash."""

    driver_token_hash: str
    blocked: bool = False
    valid_from: int | None = None
    valid_until: int | None = None
    allowed_stations: frozenset[str] = frozenset()
    denied_stations: frozenset[str] = frozenset()
    note: str = ""


class Ledger(Protocol):
    """Requests, their one decision each, and how their callbacks ended.

    Every method raises ``LedgerUnavailable`` when the database does not answer. What a write returned from is on
    disk. Lists are newest first, and continue after the ``(time, request_id)`` of the last item.
    """

    def accepted(self, request_id: str, station_id: str, created_at: int) -> None:
        """A request went into a queue that cannot look one up: it shall be found as QUEUED, without a decision, until
        it has one. Best effort: returns at once, never raises, is written soon, and changes no request that is
        known. While the database is away, up to 10,000 wait for it; later ones are dropped."""

    async def record(self, decision: Decision, created_at: int) -> Recorded:
        """Persist a request's decision and its audit row in one commit. If the request has a decision already, that
        one is returned and nothing changes."""
        ...

    async def recorded(self, request_id: str) -> Recorded | None:
        """The decision that a request has."""
        ...

    async def restart(self, request_id: str, at: int) -> None:
        """A dead letter is being replayed: attempts start again at none."""

    async def attempted(self, request_id: str, attempts: int, status_code: int | None, error: str | None) -> None:
        """A callback attempt failed and another will follow."""

    async def finish(self, finished: Finished) -> None:
        """The callback was delivered or given up."""

    async def find(self, request_id: str) -> RequestRecord | None: ...

    async def decisions(
        self, which: DecisionFilter, limit: int, after: tuple[int, str] | None
    ) -> Sequence[Decision]: ...

    async def station_stats(
        self,
        since: int | None,
        until: int | None,
        *,
        station_id: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Sequence[StationStats]:
        """Per-station counts of a time range: all of them, busiest first, or with a ``limit`` a page in the order of
        station ids, after one of them."""
        ...

    async def dead_letters(
        self, since: int | None, until: int | None, limit: int, after: tuple[int, str] | None
    ) -> Sequence[DeadLetter]:
        """By the time at which they were given up."""
        ...

    async def dead_letter(self, request_id: str) -> DeadLetter | None: ...

    async def count_dead_letters(self) -> int: ...

    async def discard(self, request_ids: Sequence[str]) -> int:
        """Forget the sealed token and URL of dead letters: the requests stay FAILED, and are listed and replayed no
        more. Returns how many there were."""
        ...

    async def fail_lost(self, kept: Iterable[str], at: int) -> int:
        """This process's queue forgot: requests that it decided and that are under way, other than ``kept``, are
        FAILED with ``lost_with_the_queue``. Nothing is left to send again, unless one was a dead letter before.
        Returns how many there were."""
        ...

    async def audit_after(self, sequence: int, limit: int) -> list[AuditRow]:
        """Audit rows in the order of their commits, for sinks that follow."""
        ...

    async def sink_position(self, sink: str) -> int: ...

    async def save_sink_position(self, sink: str, sequence: int) -> None: ...

    async def claim(self, key_digest: str, claim: Claim) -> Claim:
        """Let an idempotency key stand for a request. Returns the claim that holds: an earlier one that is less than
        an hour old, or this one."""
        ...

    async def fact(self, name: str, value: str) -> str:
        """Remember a fact about this database the first time; later, what was remembered then."""
        ...

    async def last_fact(self, name: str) -> str | None:
        """What ``replace_fact`` remembered last."""
        ...

    async def replace_fact(self, name: str, value: str) -> None: ...

    async def sealed_prefixes(self, length: int) -> frozenset[bytes]:
        """The different beginnings of everything sealed that is kept, to see early whether it can be opened."""
        ...

    async def check(self) -> None:
        """Raises ``LedgerUnavailable`` if it could not be written now."""

    async def close(self) -> None:
        """Write what ``accepted`` was told, if the database answers. It stays open. May be called twice."""


class AccessList(Protocol):
    """The access list. Same errors as the ledger."""

    async def entry(self, token_hash: str) -> AccessEntry | None: ...

    async def put(self, entries: Sequence[AccessEntry]) -> None:
        """Add entries, or replace those of the same hash, all in one commit."""

    async def remove(self, token_hash: str) -> bool:
        """False where there was none."""
        ...

    async def entries(self, limit: int, after: str | None) -> Sequence[AccessEntry]:
        """In the order of their hashes, after one of them."""
        ...

    async def changes(self, since: int) -> tuple[int, frozenset[str] | None]:
        """The number of the newest change by any process, and the hashes changed after number ``since``;
        None in their place where they are too many or no longer known."""
        ...
