import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chargegate.authorizers.acl import AclAuthorizer
from chargegate.authorizers.base import AuthorizationError, CircuitOpen
from chargegate.authorizers.breaker import CircuitBreaker
from chargegate.authorizers.cache import Cached, DecisionCache
from chargegate.authorizers.deadline import Deadline
from chargegate.ledger.records import AccessEntry
from chargegate.model import ChargingRequest, Status, Verdict

MakeRequest = Callable[..., ChargingRequest]
Script = Callable[..., Any]
MakeAccessList = Callable[..., Any]

HASHES = [digit * 64 for digit in "abc"]
HASH = HASHES[0]
STATIONS = ["123e4567-e89b-12d3-a456-426614174000", "00000000-0000-4000-8000-00000000000b"]
HERE, THERE = STATIONS
ALLOWED = Verdict(Status.ALLOWED)
TTL_MS = 100


class Clock:
    def __init__(self) -> None:
        self.now = 1_767_225_600_000

    def __call__(self) -> int:
        return self.now


def kept(verdict: Verdict) -> Verdict:
    return Verdict(verdict.status, verdict.reason, verdict.good_until, cached=True)


def cache_with(clock: Clock, **options: int) -> DecisionCache:
    return DecisionCache(**{"ttl_ms": TTL_MS, **options}, now=clock)


def size(cache: DecisionCache) -> int:
    """The number of entries, also of those that ``get`` no longer returns: such an entry only costs memory."""
    return len(cache._entries)


def test_a_verdict_is_kept_for_its_time_and_no_longer() -> None:
    clock = Clock()
    cache = cache_with(clock)
    cache.put(HASH, HERE, ALLOWED, cache.epoch)
    clock.now += TTL_MS - 1
    assert cache.get(HASH, HERE.upper()) == kept(ALLOWED)
    clock.now += 1
    assert cache.get(HASH, HERE) is None
    assert size(cache) == 0


def test_a_verdict_does_not_outlive_its_own_time() -> None:
    clock = Clock()
    cache = cache_with(clock)
    cache.put(HASH, HERE, Verdict(Status.NOT_ALLOWED, "token_not_yet_valid", clock.now + 10), cache.epoch)
    clock.now += 9
    assert cache.get(HASH, HERE) is not None
    clock.now += 1
    assert cache.get(HASH, HERE) is None


def test_a_clock_set_back_does_not_lengthen_a_life() -> None:
    clock = Clock()
    cache = cache_with(clock)
    cache.put(HASH, HERE, ALLOWED, cache.epoch)
    clock.now -= 1
    assert cache.get(HASH, HERE) is None


@pytest.mark.parametrize("status", [Status.UNKNOWN, Status.INVALID])
def test_only_what_was_decided_is_kept(status: Status) -> None:
    cache = cache_with(Clock())
    cache.put(HASH, HERE, Verdict(status), cache.epoch)
    assert size(cache) == 0


def test_nothing_is_kept_without_a_time_to_keep_it() -> None:
    cache = cache_with(Clock(), ttl_ms=0)
    cache.put(HASH, HERE, ALLOWED, cache.epoch)
    assert size(cache) == 0


@pytest.mark.parametrize("forget", [lambda cache: cache.forget([HASHES[1]]), DecisionCache.forget_all])
def test_a_verdict_found_before_something_was_forgotten_is_not_kept(forget: Callable[[DecisionCache], None]) -> None:
    cache = cache_with(Clock())
    epoch = cache.epoch
    forget(cache)
    cache.put(HASH, HERE, ALLOWED, epoch)
    assert cache.get(HASH, HERE) is None
    cache.put(HASH, HERE, ALLOWED, cache.epoch)
    assert cache.get(HASH, HERE) == kept(ALLOWED)


class CacheMachine(RuleBasedStateMachine):
    """Compares the cache with a list of all entries that it may return, oldest first."""

    tokens = st.sampled_from(HASHES)
    places = st.sampled_from(STATIONS)

    @initialize(max_entries=st.integers(1, 6))
    def begin_empty(self, max_entries: int) -> None:
        self.clock = Clock()
        self.cache = cache_with(self.clock, max_entries=max_entries)
        self.max_entries = max_entries
        self.live = []
        self.epochs = [self.cache.epoch]

    def drop(self, *keys: tuple[str, str]) -> None:
        self.live = [item for item in self.live if item[0] not in keys]

    @rule(
        token=tokens,
        station=places,
        status=st.sampled_from(Status),
        good_for=st.sampled_from([None, -1, 0, 1, TTL_MS - 1, TTL_MS + 1]),
        back=st.integers(0, 2),
    )
    def put(self, token: str, station: str, status: Status, good_for: int | None, back: int) -> None:
        now = self.clock.now
        verdict = Verdict(status, "x", None if good_for is None else now + good_for)
        epoch = self.epochs[max(-len(self.epochs), -1 - back)]
        self.cache.put(token, station.upper(), verdict, epoch)
        until = min(now + TTL_MS, now + TTL_MS if good_for is None else now + good_for)
        if epoch == self.cache.epoch and status in ("allowed", "not_allowed") and until > now:
            self.drop((token, station))
            self.live.append(((token, station), verdict, now, until))
            self.live = self.live[-self.max_entries :]

    @rule(token=tokens, station=places)
    def get(self, token: str, station: str) -> None:
        now = self.clock.now
        found = [item for item in self.live if item[0] == (token, station)]
        if found and not found[0][2] <= now < found[0][3]:
            self.drop((token, station))
            found = []
        assert self.cache.get(token, station) == (kept(found[0][1]) if found else None)

    @rule(forgotten=st.lists(tokens, max_size=4))
    def forget(self, forgotten: list[str]) -> None:
        self.cache.forget(iter(forgotten))
        self.epochs.append(self.cache.epoch)
        self.drop(*((token, station) for token in forgotten for station in STATIONS))

    @rule()
    def forget_all(self) -> None:
        self.cache.forget_all()
        self.epochs.append(self.cache.epoch)
        self.live = []

    @rule(ms=st.sampled_from([1, 10, TTL_MS, -1]))
    def wait(self, ms: int) -> None:
        self.clock.now += ms

    @invariant()
    def bounded_and_in_step(self) -> None:
        assert size(self.cache) == len(self.live) <= self.max_entries
        assert len(set(self.epochs)) == len(self.epochs)
        # The test reads a private index: an index that only grows would be visible as memory alone.
        assert {(token, station) for token, found in self.cache._stations.items() for station in found} == {
            item[0] for item in self.live
        }
        assert all(self.cache._stations.values())


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_a_hit_is_marked_and_asks_nobody(scripted: Script, make_request: MakeRequest) -> None:
    inner = scripted(Verdict(Status.NOT_ALLOWED, "token_blocked"))
    looks: list[bool] = []
    authorizer = Cached(inner, DecisionCache(ttl_ms=60_000), looks.append)

    async def scenario() -> list[Verdict]:
        return [
            await authorizer.decide(make_request(station=HERE), HASH),
            await authorizer.decide(make_request(station=HERE.upper()), HASH),
            await authorizer.decide(make_request(station=THERE), HASH),
            await authorizer.decide(make_request(station=HERE), HASHES[1]),
        ]

    verdicts = asyncio.run(scenario())
    assert [verdict.cached for verdict in verdicts] == [False, True, False, False]
    assert {(verdict.status, verdict.reason) for verdict in verdicts} == {(Status.NOT_ALLOWED, "token_blocked")}
    assert inner.calls == 3
    assert looks == [False, True, False, False]


def test_a_cache_beneath_counts_as_a_hit(scripted: Script, make_request: MakeRequest) -> None:
    looks: list[bool] = []
    found = Verdict(Status.ALLOWED, "", cached=True)
    authorizer = Cached(scripted(found), DecisionCache(ttl_ms=60_000), looks.append)
    asyncio.run(authorizer.decide(make_request(), HASH))
    assert looks == [True]


def test_a_failure_is_not_kept(scripted: Script, make_request: MakeRequest) -> None:
    looks: list[bool] = []
    authorizer = Cached(scripted(AuthorizationError("no"), ALLOWED), DecisionCache(ttl_ms=60_000), looks.append)

    async def scenario() -> None:
        with pytest.raises(AuthorizationError):
            await authorizer.decide(make_request(), HASH)
        assert await authorizer.decide(make_request(), HASH) == ALLOWED
        await authorizer.check()
        await authorizer.close()

    asyncio.run(scenario())
    assert looks == [False, False]


def test_a_change_while_a_decision_is_under_way_keeps_it_out(make_request: MakeRequest) -> None:
    cache = DecisionCache(ttl_ms=60_000)

    class Changing:
        async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
            cache.forget([token_hash])
            return ALLOWED

    async def scenario() -> None:
        assert await Cached(Changing(), cache).decide(make_request(), HASH) == ALLOWED

    asyncio.run(scenario())
    assert size(cache) == 0


def test_all_of_them_together_as_the_service_joins_them(
    memory_access_list: MakeAccessList, make_request: MakeRequest
) -> None:
    access_list = memory_access_list(AccessEntry(HASH))
    cache = DecisionCache(ttl_ms=60_000)
    breaker = CircuitBreaker(
        Deadline(AclAuthorizer(access_list), 30_000),
        name="authorizer",
        failure_threshold=2,
        failure_rate=1.0,
        min_calls=100,
        sampling_window_ms=60_000,
        recovery_timeout_ms=60_000,
        half_open_max_calls=1,
        on_change=lambda _state: None,
    )
    authorizer = Cached(breaker, cache)

    async def scenario() -> None:
        request = make_request(station=HERE)
        assert await authorizer.decide(request, HASH) == ALLOWED
        access_list.fault = "database is locked"
        for _ in range(2):
            with pytest.raises(AuthorizationError, match="database is locked"):
                await authorizer.decide(request, HASHES[1])
        with pytest.raises(CircuitOpen):
            await authorizer.decide(request, HASHES[1])
        with pytest.raises(CircuitOpen):
            await authorizer.check()
        assert await authorizer.decide(request, HASH) == kept(ALLOWED)
        cache.forget([HASH])
        with pytest.raises(CircuitOpen):
            await authorizer.decide(request, HASH)
        await authorizer.close()

    asyncio.run(scenario())


def test_an_entry_is_kept_until_a_change_of_it_is_followed() -> None:
    cache = DecisionCache(ttl_ms=1000)
    cache.keep_entry(AccessEntry("a"), cache.epoch)
    cache.keep_entry(AccessEntry("b"), cache.epoch)
    assert cache.entry("a") == AccessEntry("a")

    cache.forget(["a"])
    assert cache.entry("a") is None
    assert cache.entry("b") is not None

    cache.forget_all()
    assert cache.entry("b") is None


def test_an_entry_that_was_looked_up_before_a_change_is_not_kept_after_it() -> None:
    cache = DecisionCache(ttl_ms=1000)
    before = cache.epoch
    cache.forget(["another"])
    cache.keep_entry(AccessEntry("a"), before)
    assert cache.entry("a") is None


def test_kept_entries_are_bounded_in_number_and_in_size() -> None:
    cache = DecisionCache(ttl_ms=1000)
    cache.keep_entry(AccessEntry("large", denied_stations=frozenset(map(str, range(1000)))), cache.epoch)
    assert cache.entry("large") is None
    for number in range(30_000):
        cache.keep_entry(AccessEntry(f"{number}"), cache.epoch)
    kept = [number for number in range(30_000) if cache.entry(f"{number}") is not None]
    assert 0 < len(kept) < 30_000
    assert kept[-1] == 29_999


def test_of_a_kept_entry_few_verdicts_are_kept_beside_it() -> None:
    cache = DecisionCache(ttl_ms=60_000)
    cache.keep_entry(AccessEntry("a", denied_stations=frozenset({"s5"})), cache.epoch)
    for _ in range(2):
        verdicts = [cache.known("a", f"S{number}") for number in range(10)]
        assert [verdict is not None and verdict.status for verdict in verdicts] == [
            Status.NOT_ALLOWED if number == 5 else Status.ALLOWED for number in range(10)
        ]
    assert 0 < size(cache) < 10
    assert sum(verdict is not None and verdict.cached for verdict in verdicts) == size(cache)
