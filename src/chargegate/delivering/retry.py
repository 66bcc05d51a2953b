"""How long a failed callback waits for its next attempt, and when it gets none."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

_JITTER: Final = 0.25


class RetryPolicy(msgspec.Struct, frozen=True):
    """Attempts in all, the first wait, and the most that a receiver's ``Retry-After`` may ask for. Times in ms."""

    max_attempts: int
    retry_delay_ms: int
    max_retry_after_ms: int

    def wait_ms(self, attempts: int, retry_after: str | None, now: int, rng: random.Random) -> int | None:
        """How long to wait after that many attempts; None: give up.

        The wait doubles from ``retry_delay_ms`` on, with up to a quarter more at random, so that callbacks which failed
        together do not come back together. A ``Retry-After`` (RFC 9110, 10.2.3) makes it longer, never shorter.
        """
        if attempts >= self.max_attempts:
            return None
        wait = (self.retry_delay_ms << min(attempts - 1, 30)) * (1 + _JITTER * rng.random())
        asked = retry_after_ms(retry_after, now) if retry_after else 0
        return round(max(wait, min(asked, self.max_retry_after_ms)))


def retry_after_ms(value: str, now: int) -> int:
    """A ``Retry-After`` header, seconds or a date, as ms from ``now``; 0 where it says nothing of use."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return int(value[:9]) * 1000
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError, OverflowError):
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, round((moment - datetime.fromtimestamp(now / 1000, UTC)).total_seconds() * 1000))
