"""Times: Unix milliseconds inside the service, ISO 8601 in UTC outside."""

import time
from datetime import UTC, datetime
from functools import lru_cache


class Clock:
    """This machine's wall clock, set right by one that several machines share. ``ahead_ms`` is how much it is ahead of
    that, as measured last; 0 where there is nothing to compare it with."""

    __slots__ = ("ahead_ms",)

    def __init__(self) -> None:
        self.ahead_ms = 0


clock = Clock()
"""Of this process."""


def machine_ms() -> int:
    """The machine's wall clock as it is, in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def now_ms() -> int:
    """The time in Unix milliseconds, alike on all machines: see ``Clock``."""
    return time.time_ns() // 1_000_000 - clock.ahead_ms


def to_iso(ms: int) -> str:
    """Unix milliseconds as ISO 8601 in UTC with milliseconds: ``2026-01-31T12:00:00.000Z``."""
    second, rest = divmod(ms, 1000)
    return f"{_iso_second(second)}.{rest:03}Z"


@lru_cache(maxsize=64)
def _iso_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


def month_start(ms: int) -> int:
    """When the month began, in UTC, that holds a time; both in Unix milliseconds."""
    month = datetime.fromtimestamp(ms // 1000, UTC).replace(day=1, hour=0, minute=0, second=0)
    return int(month.timestamp()) * 1000


def from_iso(text: str) -> int:
    """An ISO 8601 date or time as Unix milliseconds. A time without a zone is in UTC. Raises ``ValueError``."""
    try:
        moment = datetime.fromisoformat(text)
        ms = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
        to_iso(ms)  # raises for a time that could not be shown again
    except (ValueError, OverflowError):
        raise ValueError("must be an ISO 8601 time such as 2026-01-31T12:00:00Z") from None
    return ms
