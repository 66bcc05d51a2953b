"""The promises that every database makes, in narrow protocols. One class of an engine keeps all that ``Ledger`` joins.

Every method raises ``LedgerUnavailable`` when the database does not answer. What a write returned from is on disk.
Lists are newest first, and continue after the ``(time, request_id)`` of the last item. Times are Unix milliseconds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from chargegate.ledger.records import (
    AccessEntry,
    AuditRow,
    Claim,
    DeadLetter,
    DecisionFilter,
    DroppedAudit,
    DroppedLetters,
    Finished,
    Recorded,
    RequestRecord,
    StationStats,
)
from chargegate.model import Decision
from chargegate.storage.group_commit import Then
from chargegate.storage.unavailable import RaisedAs, Unavailable


class LedgerUnavailable(Unavailable):
    """The database cannot be written or read now; nothing changed. The message says why."""


ledger_unavailable: Final = RaisedAs(LedgerUnavailable)


class DecisionLedger(Protocol):
    """Requests, their one decision each, and how their callbacks ended: what a worker writes."""

    async def record(self, decision: Decision, created_at: int, client: str = "") -> Recorded:
        """Persist the decision of a client's request and its audit row in one commit. If the request has a decision
        already, that one is returned and nothing changes."""
        ...

    def record_then(
        self, decision: Decision, created_at: int, client: str, done: Callable[[Recorded | Exception], None]
    ) -> None:
        """As ``record``, for one that is no coroutine: ``done`` is called with what it would return, or raise."""

    async def recorded(self, request_id: str) -> Recorded | None:
        """The decision that a request has."""
        ...

    async def restart(self, request_id: str, at: int, history: str | None = None) -> None:
        """A dead letter is being replayed: attempts start again at none. ``history`` is the one from now on; None: it
        stays."""

    async def attempted(
        self, request_id: str, attempts: int, status_code: int | None, error: str | None, history: str = ""
    ) -> None:
        """A callback attempt failed and another will follow."""

    async def finish(self, finished: Finished) -> None:
        """The callback was delivered or given up."""

    def finish_soon(self, finished: Finished, then: Then) -> None:
        """As ``finish``, but nobody waits, and nothing is raised while the database does not answer: it is tried again
        until it does. ``then`` is called in the event loop once it is on disk. What is written soon may be lost with
        this process."""

    async def fail_lost(self, kept: Iterable[str], at: int) -> int:
        """This process's queue lost its messages: requests that this process decided and that are under way, other
        than ``kept``, are FAILED with ``lost_with_the_queue``. Nothing is left to send again, unless one was a dead
        letter before. Returns how many there were."""
        ...


class AcceptedLedger(Protocol):
    """Requests that went into a queue which cannot look one up."""

    def accepted(self, request_id: str, station_id: str, created_at: int, client: str = "") -> None:
        """The client's request shall be found as QUEUED, without a decision, until it has one. Best effort: returns at
        once, never raises, is written soon, and changes no request that is known. While the database is away, up to
        10,000 wait for it; later ones are dropped."""


class RequestReader(Protocol):
    """Requests and decisions as readers see them."""

    async def find(self, request_id: str) -> RequestRecord | None: ...

    async def find_all(self, request_ids: Sequence[str]) -> Sequence[RequestRecord]:
        """Those of these requests that it has, in any order."""
        ...

    async def queued(self, limit: int, after: str | None) -> Sequence[RequestRecord]:
        """Requests that were only ``accepted``, by their ids, the greatest first, below one of them."""
        ...

    async def decisions(
        self, which: DecisionFilter, limit: int, after: tuple[int, str] | None
    ) -> Sequence[Decision]: ...

    async def latest_delivered(self, since: int, limit: int) -> Sequence[int]:
        """How long it took, in ms, from accepting a request to delivering its callback: the latest ones that were
        delivered since then."""
        ...

    async def station_stats(
        self,
        since: int | None,
        until: int | None,
        *,
        station_id: str | None = None,
        client: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Sequence[StationStats]:
        """Per-station counts of a time range: all of them, busiest first, or with a ``limit`` a page in the order of
        station ids, after one of them."""
        ...


class DeadLetters(Protocol):
    """Callbacks that were given up, by the time at which they were."""

    async def dead_letters(
        self,
        since: int | None,
        until: int | None,
        limit: int,
        after: tuple[int, str] | None,
        *,
        client: str | None = None,
    ) -> Sequence[DeadLetter]: ...

    async def dead_letter(self, request_id: str) -> DeadLetter | None: ...

    async def count_dead_letters(self) -> int: ...

    async def discard(self, request_ids: Sequence[str]) -> int:
        """Forget the sealed token and URL of dead letters: the requests stay FAILED, and are listed and replayed no
        more. Returns how many there were."""
        ...


class AuditSource(Protocol):
    """Audit rows in the order of their commits, and how far each sink has followed them."""

    async def audit_after(self, sequence: int, limit: int) -> list[AuditRow]: ...

    async def audit_beside(self, rows: Sequence[AuditRow]) -> list[AuditRow]:
        """The other audit rows, of every writer, that are about the same station, with the same status and in the same
        millisecond as one of these; at most ``MOST_BESIDE`` (``ledger.moments``)."""
        ...

    async def sink_position(self, sink: str) -> int: ...

    async def save_sink_position(self, sink: str, sequence: int) -> None: ...


class AuditHistory(Protocol):
    """Audit rows of every writer, by their time."""

    async def audit_between(
        self, sink: str, since: int | None, until: int | None, after: tuple[int, str] | None, limit: int
    ) -> list[AuditRow]:
        """Oldest first, after the ``(time, request_id)`` of one of them. Rows that a writer has yet to give to
        ``sink``, by its saved position, are left out."""
        ...


class AuditRetention(Protocol):
    """How old audit rows go."""

    async def audit_before(self, at: int, *, exported: bool = False) -> DroppedAudit:
        """What ``drop_audit_before`` would drop now."""
        ...

    async def drop_audit_before(
        self,
        at: int,
        on_dropped: Callable[[int], None] | None = None,
        *,
        exported: bool = False,
        signed: Mapping[str, int] | None = None,
    ) -> DroppedAudit:
        """Drop audit rows that were decided before ``at``, and before now: where each month is a table, the months that
        ended by then, else row by row, a few in each transaction. Nobody who writes waits for it for long. What is not
        counted yet is counted first, and the counts stay. Decisions of requests that have not ended stay, and so do
        those of dead letters. With ``exported`` only what is in a file that counts (``ledger.exports``); a month with
        any other row stays whole. ``on_dropped`` is told how many rows went.

        ``signed``: for each writer the sequence up to which it was signed that rows go. Rows that have a link beyond
        it stay: they got it, or their request ended, after that was signed. Raises ``LedgerUnavailable`` where a month
        has such a row, and while someone reads the audit for long."""
        ...


class Retention(Protocol):
    """How dead letters and requests go, when they are old or too many. Each call is one short transaction, which reads
    what it drops by an index, and may be made by several processes at once."""

    async def drop_dead_letters(self, before: int, most: int, limit: int) -> DroppedLetters:
        """Drop at most ``limit`` dead letters, oldest first: those given up before then, and what is more than
        ``most``, always of the client who holds most of them. Their sealed token and URL are forgotten. Their requests
        stay FAILED, and are listed and replayed no more."""
        ...

    async def drop_finished(self, before: int, limit: int) -> int:
        """Drop at most ``limit`` of the requests whose callback ended before then, oldest first, and return how many
        there were. Dead letters and requests that have not ended stay, and so do audit rows."""
        ...


class IdempotencyClaims(Protocol):
    """Which request an idempotency key stands for."""

    async def claim(self, key_digest: str, claim: Claim) -> Claim:
        """Let an idempotency key stand for a request. Returns the claim that holds: an earlier one that is less than
        an hour old, or this one."""
        ...

    async def release(self, key_digest: str, claim: Claim) -> None:
        """The key stands for this claim's request no longer. A claim of another request stays."""

    async def replace(self, key_digest: str, held: Claim, claim: Claim) -> bool:
        """Let the key stand for ``claim`` if it stands for exactly ``held``. Whether it stands for ``claim`` now."""
        ...


class SharedClaims(Protocol):
    """Claims of idempotency keys that several processes confirm to each other, in a cache. It can be done without:
    nothing here raises."""

    async def confirmed(self, key_digest: str) -> Claim | None:
        """What a key stands for, if its request is known to be safe."""
        ...

    async def claim(self, key_digest: str, claim: Claim, until: int) -> Claim | None:
        """Let a key stand for a request until then (Unix ms), while the ledger cannot. The claim that holds: an
        earlier one, or this one; None where nothing can be remembered."""
        ...

    async def release(self, key_digest: str, claim: Claim) -> None:
        """A claim that was made here holds no longer. Another one stays."""

    async def replace(self, key_digest: str, held: Claim, claim: Claim, until: int) -> bool:
        """As ``IdempotencyClaims.replace``, for claims that were made here, until then (Unix ms). False also where
        nothing can be remembered."""
        ...

    async def confirm(self, key_digest: str, claim: Claim, until: int) -> None:
        """The claimed request is safe. This is remembered until then (Unix ms)."""


class NamedValues(Protocol):
    """Values that this database keeps for the service, by name."""

    async def put_value_if_absent(self, name: str, value: str) -> str:
        """Keep a value unless there is one. Returns the one that is kept."""
        ...

    async def value(self, name: str) -> str | None: ...

    async def put_value(self, name: str, value: str) -> None: ...

    async def values_of(self, prefix: str) -> dict[str, str]:
        """All values whose names begin so, by their names. There should be few."""
        ...

    async def drop_values(self, names: Sequence[str]) -> None:
        """Keep these values no longer. A name without one is ignored."""


class Ledger(
    DecisionLedger,
    AcceptedLedger,
    RequestReader,
    DeadLetters,
    AuditSource,
    AuditHistory,
    AuditRetention,
    IdempotencyClaims,
    NamedValues,
    Protocol,
):
    """All of it, in one database."""

    async def sealed_prefixes(self, length: int) -> frozenset[bytes]:
        """The different beginnings of everything sealed that it keeps, to see early whether that can be opened."""
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
