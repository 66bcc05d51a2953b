"""What the analysis of the audit found, and what it asks of a database. Times are Unix milliseconds."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final, Protocol

import msgspec

from chargegate.model import Hidden, Moment


class AnomalyType(StrEnum):
    """The kinds of anomalies."""

    TIMEOUTS = "HIGH_TIMEOUT_RATE"
    STATION_ERRORS = "STATION_HIGH_ERROR_RATE"
    STATION_SILENT = "STATION_SILENT"
    TOKEN_DENIED = "TOKEN_DENIED_WIDELY"  # noqa: S105 - not a password
    CALLBACKS = "CLIENT_CALLBACKS_FAILING"


class Severity(StrEnum):
    """How urgent an anomaly is."""

    WARNING = "WARNING"
    CRITICAL = "CRITICAL"


SEVERITIES: Final = {
    AnomalyType.TIMEOUTS: Severity.WARNING,
    AnomalyType.STATION_ERRORS: Severity.CRITICAL,
    AnomalyType.STATION_SILENT: Severity.WARNING,
    AnomalyType.TOKEN_DENIED: Severity.CRITICAL,
    AnomalyType.CALLBACKS: Severity.WARNING,
}


class Anomaly(msgspec.Struct, frozen=True):
    """Something unusual, from its beginning to its end; ``until`` is None while it lasts. ``subject``: the station, the
    token's short hash or the client that it is about; for all of them ``authorization``."""

    id: Annotated[str, Hidden()]
    type: AnomalyType
    severity: Severity
    subject: str
    since: Moment
    until: Moment | None
    description: str
    value: float
    threshold: float


class Change(msgspec.Struct, frozen=True):
    """The beginning or the end of an anomaly, which is to be told."""

    anomaly: Anomaly
    resolved: bool


class Look(msgspec.Struct, frozen=True):
    """What one look at the audit found: anomalies that began, those that go on, and those that ended, which have
    their ``until``."""

    began: list[Anomaly]
    goes_on: list[Anomaly]
    ended: list[Anomaly]


class Suspect(msgspec.Struct, frozen=True):
    """Something that a rule may find, with the number that speaks for it. ``request_id`` is one of its requests, and
    empty where none is known."""

    subject: str
    number: float
    request_id: str = ""


class Anomalies(Protocol):
    """Raises ``LedgerUnavailable``."""

    async def take_turn(self, holder: str, now: int, for_ms: int) -> bool:
        """Whether this process shall analyse now: one of many does, until ``for_ms`` later, and may go on with it. A
        turn that ends later than that was taken by a wrong clock and does not count."""
        ...

    async def erring_stations(self, since: int, least_errors: int, limit: int) -> Sequence[Suspect]:
        """Stations with at least so many ``unknown`` and ``invalid`` decisions since the start of the hour that holds
        ``since``, those with most of them first."""
        ...

    async def silent_stations(
        self, usual: Sequence[int], week_before: Sequence[int], now: Sequence[int], least: float, limit: int
    ) -> Sequence[Suspect]:
        """Stations without a decision in the hours that start at ``now``, that had at least ``least`` times
        ``len(usual) / len(week_before)`` decisions in the hours of ``usual``, and ``least`` of them in ``week_before``,
        busiest first. The number is that of usual decisions."""
        ...

    async def denied_tokens(self, since: int, until: int, least_stations: int, limit: int) -> Sequence[Suspect]:
        """Short hashes of tokens that were ``not_allowed`` at so many stations, those at most stations first. Of the
        range, the newest 100,000 such decisions are looked at."""
        ...

    async def latest_request(self, station_id: str) -> str:
        """The id of a station's newest request; empty where it has none."""
        ...

    async def open(self) -> Sequence[Anomaly]:
        """Those that have not ended."""
        ...

    async def change(self, holder: str, look: Look, *, tell: bool) -> bool:
        """Keep what a look found, in one transaction: with ``tell`` its changes are to be told. False, and nothing
        changes, where it is another process's turn by now."""
        ...

    async def untold(self, limit: int) -> Sequence[Change]:
        """Changes that are to be told, oldest first."""
        ...

    async def told(self, change: Change) -> None: ...

    async def list(
        self, type_: str | None, open_: bool | None, limit: int, after: tuple[int, str] | None
    ) -> Sequence[Anomaly]:
        """Newest first, by when they began."""
        ...

    async def count_open(self) -> dict[str, int]:
        """How many have not ended, by type."""
        ...

    async def drop_ended(self, before: int, limit: int) -> int:
        """Forget at most ``limit`` of those that ended before then."""
        ...
