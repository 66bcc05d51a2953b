"""How many traces clients may ask for: a limit a second, shared out between those who ask."""

import random
import time
from collections.abc import Callable
from typing import Final

_MAX_SHARERS: Final = 1000
_WINDOW_S: Final = 1.0
_THE_REST: Final = ""


class TraceShares:
    """Each client that asks, in this second or the one before, has the same share of ``per_second``.

    A client that fills its share takes nothing from the others: there is no sum that could be used up. A client that is
    alone has the whole. Only in the second in which more clients appear there are a few more traces in all. Where there
    are more clients than traces, chance decides which of them have one. Of more than 1,000 clients at once the rest has
    one share together.
    """

    def __init__(self, per_second: int, rng: random.Random, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._rng = rng
        self._clock = clock
        self._window = float("-inf")
        self._taken: dict[str, int] = {}
        self._luck: dict[str, float] = {}
        self._asking: set[str] = set()

    def take(self, sharer: str) -> bool:
        """Whether one more trace may be made for this client."""
        now = self._clock()
        if now - self._window >= _WINDOW_S:
            self._asking = set(self._taken) if now - self._window < 2 * _WINDOW_S else set()
            self._taken, self._luck = {}, {}
            self._window = now
        if sharer not in self._taken:
            if len(self._taken) >= _MAX_SHARERS:
                sharer = _THE_REST
            self._asking.add(sharer)
            self._taken.setdefault(sharer, 0)
            self._luck.setdefault(sharer, self._rng.random())
        if self._taken[sharer] >= int(self._per_second / len(self._asking) + self._luck[sharer]):
            return False
        self._taken[sharer] += 1
        return True
