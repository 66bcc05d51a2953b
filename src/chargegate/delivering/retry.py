"""How long a failed callback waits for its next attempt, and when it gets none."""

import random
from typing import Final

import msgspec

from chargegate.http1 import asked_wait_ms

_JITTER: Final = 0.25
_PAUSE_MS: Final = 1_000  # where a receiver does not say how long it wants to wait
_SHORTEST_MS: Final = 200  # a receiver that says "at once" again and again must not be called in a tight loop


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

    def pause_ms(self, retry_after: str | None, now: int) -> int:
        """How long a receiver that refuses wants to be left alone, one second if it does not say."""
        asked = asked_wait_ms(retry_after, now)
        return max(_SHORTEST_MS, min(_PAUSE_MS if asked is None else asked, self.max_retry_after_ms))

    def unsent_ms(self, rng: random.Random) -> int:
        """How long to wait after an attempt that was not sent."""
        return round(max(_SHORTEST_MS, self.retry_delay_ms) * (1 + _JITTER * rng.random()))


def retry_after_ms(value: str, now: int) -> int:
    """A ``Retry-After`` header, seconds or a date, as ms from ``now``; 0 where it says nothing of use."""
    return asked_wait_ms(value, now) or 0


def says_when(retry_after: str | None) -> bool:
    """Whether a ``Retry-After`` header is there, and can be read."""
    return asked_wait_ms(retry_after, 0) is not None
