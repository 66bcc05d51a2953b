"""What a database gives and takes when one is copied into another, page by page.

A page is one commit. Nothing is taken from what the target holds: run again, a copy goes on, or changes nothing. A
request that is there without a decision gets the one that was made; one that is there with the same decision gets the
end that it came to since.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from chargegate.ledger.base import AccessList
from chargegate.ledger.chain import RowLink
from chargegate.ledger.exports import ExportedFile
from chargegate.ledger.records import Claim
from chargegate.model import Decision


class Unmergeable(Exception):
    """Two databases that cannot become one. The message says which rule forbids it."""


class StoredRequest(msgspec.Struct, frozen=True):
    """A request as it lies in a database; times in Unix ms. ``sequence`` is the audit row's, and None where the
    request has no decision. Of a request that was dropped because it is old, only the decision is left: ``status`` is
    empty, and nothing but the audit row is copied."""

    request_id: str
    station_id: str
    decision: Decision | None
    status: str
    created_at: int
    started_at: int
    processed_at: int | None
    attempts: int
    last_status_code: int | None
    last_error: str | None
    sealed: bytes | None
    client: str
    history: str
    sequence: int | None


class WaitingRequest(msgspec.Struct, frozen=True):
    """A request in the same database's queue. ``place`` grows along the queue, ``body`` is the message's sealed part,
    and ``client`` is known once somebody has opened that."""

    place: int
    request_id: str
    station_id: str
    accepted_at: int
    body: bytes
    client: str = ""


class KeptClaim(msgspec.Struct, frozen=True):
    """An idempotency key's claim."""

    key_digest: str
    claim: Claim


CountKind = Literal["of_all", "of_stations"]

BEFORE_COUNTS: Final = (-1, "")
"""Where a copy of counts begins."""


class LedgerSource(Protocol):
    """Raises ``LedgerUnavailable``. Every page continues after the last item of the one before."""

    access_list: AccessList

    async def requests(self, after: str, limit: int) -> Sequence[StoredRequest]: ...

    async def waiting(self, after: int, limit: int) -> Sequence[WaitingRequest]: ...

    async def claims(self, after: str, limit: int, since: int) -> Sequence[KeptClaim]:
        """Those made after ``since``."""
        ...

    async def values(self) -> Sequence[tuple[str, str]]: ...

    async def links(self, after: int, limit: int) -> Sequence[RowLink]:
        """Of the chain of the audit rows, after a number."""
        ...

    async def exports(self, after: int, limit: int) -> Sequence[ExportedFile]:
        """After a number."""
        ...

    async def gone_counts(self, kind: CountKind, after: tuple[int, str], limit: int) -> Sequence[tuple[Any, ...]]:
        """The counts of rows that were dropped, in the shortest units of their kind: the unit's start, the status or
        station, and the columns of ``counts.OF_ALL`` or ``counts.OF_STATION``. After the first two of one of them.
        All rows are counted when this is called."""
        ...

    async def close(self) -> None: ...


class LedgerTarget(Protocol):
    """Raises ``LedgerUnavailable``, and ``ValueError`` for a value that its tables do not take. Every method whose name
    begins with ``put`` says how many rows are new or changed."""

    access_list: AccessList

    async def put_requests(self, requests: Sequence[StoredRequest]) -> tuple[int, int]:
        """Requests, and audit rows."""
        ...

    async def put_waiting(self, requests: Sequence[WaitingRequest]) -> int: ...

    async def put_claims(self, claims: Sequence[KeptClaim]) -> int: ...

    async def put_values(self, values: Sequence[tuple[str, str]]) -> int: ...

    async def put_links(self, links: Sequence[RowLink]) -> int: ...

    async def refuse_others(self, files: Sequence[ExportedFile]) -> None:
        """Raises ``Unmergeable`` where other files than these have their numbers."""
        ...

    async def put_exports(self, files: Sequence[ExportedFile]) -> int:
        """Raises ``Unmergeable`` as ``refuse_others`` does."""
        ...

    async def counts_place(self, kind: CountKind) -> tuple[int, str]:
        """After which of ``gone_counts`` a copy goes on."""
        ...

    async def put_counts(self, kind: CountKind, counts: Sequence[tuple[Any, ...]]) -> int:
        """Add counts to those of all units that hold them, once."""
        ...

    async def close(self) -> None: ...
