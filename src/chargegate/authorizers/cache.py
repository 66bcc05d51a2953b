"""Decisions kept for a while, and forgotten the moment the access list says otherwise."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from chargegate.authorizers.base import Authorizer
from chargegate.model import ChargingRequest, Status, Verdict, now_ms

_KEPT: Final = (Status.ALLOWED, Status.NOT_ALLOWED)


class _Kept(msgspec.Struct, frozen=True, gc=False):
    verdict: Verdict
    since: int
    until: int


class DecisionCache:
    """Verdicts by full token hash and station, for at most ``ttl_ms`` and never past their ``good_until``.

    Holds at most ``max_entries``; the oldest makes room. ``epoch`` moves whenever something is forgotten, so that a
    verdict found before that is not kept after it. ``now`` is in Unix ms.
    """

    def __init__(self, *, ttl_ms: int, max_entries: int = 100_000, now: Callable[[], int] = now_ms) -> None:
        self.epoch = 0
        self._ttl_ms = ttl_ms
        self._max_entries = max_entries
        self._now = now
        # An OrderedDict drops its oldest in constant time; a dict would search for it among the dropped.
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._stations: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, token_hash: str, station_id: str) -> Verdict | None:
        """The verdict kept for a token at a station, marked ``cached``."""
        station = station_id.lower()
        kept = self._kept.get((token_hash, station))
        if kept is None:
            return None
        # A clock that was set back must not lengthen a life.
        if kept.since <= self._now() < kept.until:
            return kept.verdict
        self._drop(token_hash, station)
        return None

    def put(self, token_hash: str, station_id: str, verdict: Verdict, epoch: int) -> None:
        """Keep a verdict that is allowed or not_allowed, unless the epoch has moved from the one given."""
        if epoch != self.epoch or verdict.status not in _KEPT:
            return
        now = self._now()
        until = now + self._ttl_ms
        if verdict.good_until is not None and verdict.good_until < until:
            until = verdict.good_until
        if until <= now:
            return
        station = station_id.lower()
        key = (token_hash, station)
        marked = Verdict(verdict.status, verdict.reason, verdict.good_until, cached=True)
        self._kept[key] = _Kept(marked, now, until)
        self._kept.move_to_end(key)
        self._stations.setdefault(token_hash, set()).add(station)
        if len(self._kept) > self._max_entries:
            self._drop(*next(iter(self._kept)))

    def forget(self, token_hashes: Iterable[str]) -> None:
        """What is known of these tokens is no longer true."""
        self.epoch += 1
        for token_hash in token_hashes:
            for station in self._stations.pop(token_hash, ()):
                del self._kept[token_hash, station]

    def forget_all(self) -> None:
        """Nothing that is known may be true any more."""
        self.epoch += 1
        self._kept.clear()
        self._stations.clear()

    def _drop(self, token_hash: str, station: str) -> None:
        del self._kept[token_hash, station]
        stations = self._stations[token_hash]
        stations.discard(station)
        if not stations:
            del self._stations[token_hash]


class Cached:
    """Answers from the cache where it can, and else asks the authorizer and keeps the answer.

    The cache stays the caller's, who also tells it what to forget.
    """

    def __init__(self, inner: Authorizer, cache: DecisionCache) -> None:
        self._inner = inner
        self._cache = cache

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        kept = self._cache.get(token_hash, request.station_id)
        if kept is not None:
            return kept
        epoch = self._cache.epoch
        verdict = await self._inner.decide(request, token_hash)
        self._cache.put(token_hash, request.station_id, verdict, epoch)
        return verdict

    async def check(self) -> None:
        await self._inner.check()

    async def close(self) -> None:
        await self._inner.close()
