"""What is remembered of decisions and of the access list. A change of the list removes what it affects."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from chargegate.authorizers.acl import judge
from chargegate.authorizers.base import AuthorizationError, Authorizer
from chargegate.ledger.records import AccessEntry
from chargegate.model import ChargingRequest, Status, Verdict, now_ms

_CACHEABLE: Final = (Status.ALLOWED, Status.NOT_ALLOWED)
_MAX_ACCESS_ENTRIES: Final = 20_000
_MAX_STATIONS: Final = 100  # of an access list entry that is kept
_STATIONS_OF_ENTRY: Final = 4  # of which verdicts are kept beside the entry: to judge anew costs less than to keep more


class _Entry(msgspec.Struct, frozen=True, gc=False):
    verdict: Verdict
    since: int
    until: int


class DecisionCache:
    """Verdicts by full token hash and station, for at most ``ttl_ms`` and never past their ``good_until``.

    It holds at most ``max_entries``, and then drops the oldest. ``epoch`` changes with every ``forget``, so that a
    verdict from before a change of the access list is not kept after it. ``now`` is in Unix milliseconds.

    It also keeps entries of the access list, for drivers at any station, until a change of the list is followed.
    Tokens without an entry are not kept, because strangers can name them without end.
    """

    def __init__(self, *, ttl_ms: int, max_entries: int = 100_000, now: Callable[[], int] = now_ms) -> None:
        self.epoch = 0
        self._ttl_ms = ttl_ms
        self._max_entries = max_entries
        self._now = now
        # Unlike a dict, an OrderedDict finds its oldest item in constant time.
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._stations: dict[str, set[str]] = {}
        self._access: dict[str, AccessEntry] = {}

    def get(self, token_hash: str, station_id: str) -> Verdict | None:
        """The cached verdict for a token at a station, or None."""
        return self._get((token_hash, station_id.lower()), self._now())

    def _get(self, key: tuple[str, str], now: int) -> Verdict | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        # The lower limit is for a clock that was set back: an entry must not live longer for it.
        if entry.since <= now < entry.until:
            verdict = entry.verdict
            return Verdict(verdict.status, verdict.reason, verdict.good_until, cached=True)
        self._drop(*key)
        return None

    def put(self, token_hash: str, station_id: str, verdict: Verdict, epoch: int) -> None:
        """Keep a verdict that is allowed or not_allowed. ``epoch`` is from before the authorizer was asked."""
        if epoch == self.epoch and verdict.status in _CACHEABLE:
            key = (token_hash, station_id.lower())
            held = key in self._entries
            if self._keep(key, verdict, self._now()) and held:
                self._entries.move_to_end(key)

    def _keep(self, key: tuple[str, str], verdict: Verdict, now: int) -> bool:
        until = now + self._ttl_ms
        if verdict.good_until is not None and verdict.good_until < until:
            until = verdict.good_until
        if until <= now:
            return False
        token_hash, station = key
        self._entries[key] = _Entry(verdict, now, until)
        stations = self._stations.get(token_hash)
        if stations is None:
            self._stations[token_hash] = {station}
        else:
            stations.add(station)
        if len(self._entries) > self._max_entries:
            self._drop(*next(iter(self._entries)))
        return True

    def entry(self, token_hash: str) -> AccessEntry | None:
        """The access list entry that is kept for a token, or None."""
        return self._access.get(token_hash)

    def known(self, token_hash: str, station_id: str) -> Verdict | None:
        """The cached verdict for a token at a station, or else the one by the access list entry that is kept for it;
        None where there is neither."""
        key, now = (token_hash, station_id.lower()), self._now()
        verdict = self._get(key, now)
        if verdict is None and (entry := self._access.get(token_hash)) is not None:
            verdict = judge(entry, station_id, now)  # always one that may be kept
            if len(self._stations.get(token_hash, ())) < _STATIONS_OF_ENTRY:
                self._keep(key, verdict, now)
        return verdict

    @property
    def keeps_more_entries(self) -> bool:
        """Whether another entry of the access list drops none that is kept."""
        return len(self._access) < _MAX_ACCESS_ENTRIES

    def keep_entry(self, entry: AccessEntry, epoch: int) -> None:
        """Keep an entry of the access list. ``epoch`` is from before it was looked up."""
        if epoch != self.epoch or len(entry.allowed_stations) + len(entry.denied_stations) > _MAX_STATIONS:
            return
        if len(self._access) >= _MAX_ACCESS_ENTRIES:
            del self._access[next(iter(self._access))]
        self._access[entry.driver_token_hash] = entry

    def forget(self, token_hashes: Iterable[str]) -> None:
        """Drop what is cached for these tokens."""
        self.epoch += 1
        for token_hash in token_hashes:
            self._access.pop(token_hash, None)
            for station in self._stations.pop(token_hash, ()):
                del self._entries[token_hash, station]

    def forget_all(self) -> None:
        """Drop everything."""
        self.epoch += 1
        self._entries.clear()
        self._stations.clear()
        self._access.clear()

    def _drop(self, token_hash: str, station: str) -> None:
        del self._entries[token_hash, station]
        stations = self._stations[token_hash]
        stations.discard(station)
        if not stations:
            del self._stations[token_hash]


class Cached:
    """Answers from the cache, by an access list entry that is kept there, or asks the authorizer and keeps its answer.

    The caller owns the cache, and tells it what to forget. ``on_look`` is told of each request whether the verdict came
    from this cache, or from another one beneath it.
    """

    def __init__(
        self, inner: Authorizer, cache: DecisionCache, on_look: Callable[[bool], object] = lambda _hit: None
    ) -> None:
        self._inner = inner
        self._cache = cache
        self._on_look = on_look

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        known = self._cache.known(token_hash, request.station_id)
        if known is not None:
            self._on_look(known.cached)
            return known
        epoch = self._cache.epoch
        try:
            verdict = await self._inner.decide(request, token_hash)
        except AuthorizationError:
            self._on_look(False)
            raise
        self._on_look(verdict.cached)
        self._cache.put(token_hash, request.station_id, verdict, epoch)
        return verdict

    async def check(self) -> None:
        await self._inner.check()

    async def close(self) -> None:
        await self._inner.close()
