import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from chargegate.authorizers.cache import Cached, DecisionCache
from chargegate.authorizers.shared import SharedVerdicts
from chargegate.engines.redis.cache import RedisCache
from chargegate.engines.redis.connection import RedisServer
from chargegate.ledger.records import Claim
from chargegate.model import ChargingRequest, Status, Verdict, new_request_id, now_ms
from scenario import run
from servers.server import Server

TTL_MS = 60_000
TOKEN, OTHER = "a" * 64, "b" * 64
HERE, THERE = "123e4567-e89b-12d3-a456-426614174000", "00000000-0000-4000-8000-00000000000b"
ALLOWED, REFUSED = Verdict(Status.ALLOWED), Verdict(Status.NOT_ALLOWED, "token_blocked")


class Place:
    """A server, and the name under which several processes of one service share a cache there."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"c{uuid4().hex[:12]}"

    @asynccontextmanager
    async def open(self, *, ttl_ms: int = TTL_MS, url: str = "") -> AsyncIterator[RedisCache]:
        cache = RedisCache(url or self.server.url, ttl_ms=ttl_ms, name=self.name)
        try:
            yield cache
        finally:
            await cache.close()

    async def ask(self, *words: str | int) -> Any:
        client = RedisServer(self.server.url, timeout_s=5, at_once=1)
        try:
            return await client.command(*words)
        finally:
            await client.close()


class Scripted:
    """An authorizer that answers what it is told to, once the test lets it."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked = 0
        self.let = asyncio.Event()
        self.let.set()

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        verdict = self.verdict
        self.asked += 1
        await self.let.wait()
        return verdict

    async def check(self) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture
def place(redis_server: Server) -> Place:
    return Place(redis_server)


async def epoch_of(cache: RedisCache) -> bytes:
    """The epoch, once the cache can be used and has nothing left to forget."""
    while not (epoch := (await cache.look("", HERE))[1]):
        await asyncio.sleep(0.01)
    return epoch


async def keep(cache: RedisCache, token_hash: str, station_id: str, verdict: Verdict) -> None:
    await cache.keep(token_hash, station_id, verdict, await epoch_of(cache))


async def look(cache: RedisCache, token_hash: str, station_id: str) -> Verdict | None:
    await epoch_of(cache)
    return (await cache.look(token_hash, station_id))[0]


def request_at(station_id: str) -> ChargingRequest:
    return ChargingRequest(
        new_request_id(), station_id, "driver-token-of-20-characters", "http://example.com", now_ms()
    )


def test_a_verdict_is_shared(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as one, place.open() as another:
            await asyncio.gather(epoch_of(one), epoch_of(another))
            before = now_ms()
            await keep(one, TOKEN, HERE.upper(), REFUSED)
            found = await look(another, TOKEN, HERE)
            assert found is not None
            assert (found.status, found.reason, found.cached) == (REFUSED.status, REFUSED.reason, True)
            # Another process's own cache must not give it a second life.
            assert found.good_until is not None
            assert before + TTL_MS <= found.good_until <= now_ms() + TTL_MS
            assert await look(another, TOKEN, THERE) is None
            assert await look(another, OTHER, HERE) is None

    run(scenario())


def test_a_verdict_does_not_outlive_its_own_time_nor_the_caches(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as cache, place.open(ttl_ms=50) as brief:
            await asyncio.gather(epoch_of(cache), epoch_of(brief))
            await keep(cache, TOKEN, HERE, Verdict(Status.ALLOWED, "", now_ms() + 50))
            await keep(brief, OTHER, HERE, ALLOWED)
            for token in (TOKEN, OTHER):
                while await look(cache, token, HERE):
                    await asyncio.sleep(0.01)
            await keep(cache, TOKEN, HERE, Verdict(Status.ALLOWED, "", now_ms()))
            assert await look(cache, TOKEN, HERE) is None

    run(scenario())


def test_nothing_stays_on_the_server_for_longer_than_it_may_be_used(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as cache:
            await keep(cache, TOKEN, HERE, ALLOWED)
            await keep(cache, TOKEN, THERE, Verdict(Status.ALLOWED, "", now_ms() + 1000))
            await cache.confirm("digest", Claim("body", new_request_id(), now_ms()), now_ms() + TTL_MS)
            keys = await place.ask("KEYS", f"{{{place.name}}}*")
            lives = {key.decode().split(":")[2]: await place.ask("PTTL", key.decode()) for key in keys}
            assert lives.keys() == {"state", "token", "key"}
            assert TTL_MS / 2 < lives["token"] <= TTL_MS
            assert TTL_MS / 2 < lives["key"] <= TTL_MS

    run(scenario())


@pytest.mark.parametrize("status", [Status.UNKNOWN, Status.INVALID])
def test_only_what_was_decided_is_kept(place: Place, status: Status) -> None:
    async def scenario() -> None:
        async with place.open() as cache:
            await keep(cache, TOKEN, HERE, Verdict(status))
            assert await look(cache, TOKEN, HERE) is None

    run(scenario())


def test_what_one_forgets_all_forget(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as one, place.open() as another:
            await asyncio.gather(epoch_of(one), epoch_of(another))
            for token in (TOKEN, OTHER):
                for station in (HERE, THERE):
                    await keep(one, token, station, ALLOWED)
            another.forget([TOKEN])
            assert (await another.look(TOKEN, HERE))[0] is None  # at once, where it was forgotten
            await epoch_of(another)
            assert [await look(one, TOKEN, station) for station in (HERE, THERE)] == [None, None]
            assert None not in [await look(one, OTHER, station) for station in (HERE, THERE)]
            another.forget_all()
            assert (await another.look(OTHER, HERE))[0] is None
            await epoch_of(another)
            assert await look(one, OTHER, HERE) is None

    run(scenario())


@pytest.mark.parametrize("forget", [lambda cache: cache.forget([OTHER]), RedisCache.forget_all])
def test_a_verdict_found_before_anyone_forgot_is_not_kept(place: Place, forget: Callable[[RedisCache], None]) -> None:
    async def scenario() -> None:
        async with place.open() as one, place.open() as another:
            await asyncio.gather(epoch_of(one), epoch_of(another))
            epoch = await epoch_of(one)
            forget(another)
            await epoch_of(another)
            await one.keep(TOKEN, HERE, ALLOWED, epoch)
            assert await look(one, TOKEN, HERE) is None
            await keep(one, TOKEN, HERE, ALLOWED)
            assert await look(one, TOKEN, HERE) is not None

    run(scenario())


def test_an_epoch_does_not_come_back_with_a_server_that_lost_it(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as cache:
            state = f"{{{place.name}}}:cache:state"
            await epoch_of(cache)
            await place.ask("DEL", state)
            old = await epoch_of(cache)
            await place.ask("DEL", state)
            assert await epoch_of(cache) != old
            await cache.keep(TOKEN, HERE, ALLOWED, old)
            assert await look(cache, TOKEN, HERE) is None

    run(scenario())


def test_a_process_that_begins_trusts_nothing_from_before(place: Place) -> None:
    """The access list may have been changed while no process was running."""

    async def scenario() -> None:
        async with place.open() as one:
            await keep(one, TOKEN, HERE, ALLOWED)
        async with place.open() as again:
            assert await look(again, TOKEN, HERE) is None

    run(scenario())


def test_a_decision_asks_once_for_all_processes(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as one, place.open() as another:
            await asyncio.gather(epoch_of(one), epoch_of(another))
            first, second = Scripted(ALLOWED), Scripted(REFUSED)
            assert await SharedVerdicts(first, one).decide(request_at(HERE), TOKEN) == ALLOWED
            found = await SharedVerdicts(second, another).decide(request_at(HERE), TOKEN)
            assert (found.status, found.cached) == (Status.ALLOWED, True)
            assert (first.asked, second.asked) == (1, 0)

    run(scenario())


def test_a_decision_under_way_while_its_token_is_blocked_is_kept_nowhere(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as one, place.open() as another:
            await asyncio.gather(epoch_of(one), epoch_of(another))
            authorizer = Scripted(ALLOWED)
            authorizer.let.clear()
            own = DecisionCache(ttl_ms=TTL_MS)
            chain = Cached(SharedVerdicts(authorizer, one), own)
            deciding = asyncio.ensure_future(chain.decide(request_at(HERE), TOKEN))
            while not authorizer.asked:
                await asyncio.sleep(0.01)
            another.forget([TOKEN])  # this process sees the change first
            await epoch_of(another)
            authorizer.let.set()
            assert (await deciding).status == Status.ALLOWED
            own.forget([TOKEN])
            one.forget([TOKEN])
            authorizer.verdict = REFUSED
            assert (await chain.decide(request_at(HERE), TOKEN)).status == Status.NOT_ALLOWED
            assert await look(another, TOKEN, HERE) is None

    run(scenario())


def test_a_confirmed_key_is_shared_for_its_time(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as one, place.open() as another:
            await asyncio.gather(epoch_of(one), epoch_of(another))
            claim = Claim("body", new_request_id(), now_ms())
            assert await another.confirmed("digest") is None
            await one.confirm("digest", claim, now_ms() + TTL_MS)
            assert await another.confirmed("digest") == claim
            await one.confirm("brief", claim, now_ms() + 50)
            while await another.confirmed("brief"):
                await asyncio.sleep(0.01)
            await one.confirm("over", claim, now_ms())
            assert await another.confirmed("over") is None

    run(scenario())


def test_it_does_without_a_server_that_is_away(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as cache:
            await keep(cache, TOKEN, HERE, ALLOWED)
            assert cache.failure is None
            place.server.kill()
            await cache.check()
            assert cache.failure
            claim = Claim("body", new_request_id(), now_ms())
            for _ in range(100):
                assert await cache.look(TOKEN, HERE) == (None, b"")
                await cache.keep(TOKEN, HERE, ALLOWED, b"epoch")
                assert await cache.confirmed("digest") is None
                await cache.confirm("digest", claim, now_ms() + TTL_MS)
            assert await SharedVerdicts(Scripted(REFUSED), cache).decide(request_at(HERE), TOKEN) == REFUSED
            place.server.start()
            # Changes may have been missed: what was kept before is not trusted.
            assert await look(cache, TOKEN, HERE) is None
            assert cache.failure is None
            await keep(cache, TOKEN, HERE, ALLOWED)
            assert await look(cache, TOKEN, HERE) is not None

    run(scenario())


def test_what_could_not_be_forgotten_is_not_answered_later(place: Place) -> None:
    async def scenario() -> None:
        with place.server.proxied() as proxy:
            async with place.open() as one, place.open(url=proxy.url) as cut_off:
                await asyncio.gather(epoch_of(one), epoch_of(cut_off))
                await keep(one, TOKEN, HERE, ALLOWED)
                proxy.drop()
                cut_off.forget([TOKEN])
                while cut_off.failure is None:
                    assert (await cut_off.look(TOKEN, HERE))[0] is None
                    await asyncio.sleep(0.01)
                proxy.heal()
                assert await look(cut_off, TOKEN, HERE) is None
                assert await look(one, TOKEN, HERE) is None

    run(scenario())


def test_a_restart_that_nobody_noticed_is_noticed_before_the_next_answer(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as cache:
            await keep(cache, TOKEN, HERE, ALLOWED)
            place.server.stop()
            place.server.start()
            assert (await cache.look(TOKEN, HERE))[0] is None

    run(scenario())


def test_no_name_on_the_server_holds_a_token(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as cache:
            request = request_at(HERE)
            await epoch_of(cache)
            await SharedVerdicts(Scripted(ALLOWED), cache).decide(request, TOKEN)
            (key,) = await place.ask("KEYS", f"{{{place.name}}}:cache:token:*")
            stored = key + b"".join(await place.ask("EVAL", "return redis.call('HGETALL', KEYS[1])", 1, key.decode()))
            assert request.driver_token.encode() not in stored
            assert TOKEN.encode() in key

    run(scenario())


def test_of_two_processes_that_claim_a_key_one_wins(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as one, place.open() as other:
            await epoch_of(one)
            await epoch_of(other)
            mine, theirs = Claim("body", new_request_id(), now_ms()), Claim("other body", new_request_id(), now_ms())
            assert await one.claim("key", mine, now_ms() + TTL_MS) == mine
            assert await other.claim("key", theirs, now_ms() + TTL_MS) == mine
            assert await other.confirmed("key") is None
            assert await one.claim("past", mine, now_ms() - 1) is None

    run(scenario())


def test_a_claim_is_released_and_replaced_by_who_knows_it(place: Place) -> None:
    async def scenario() -> None:
        async with place.open() as one, place.open() as other:
            await asyncio.gather(epoch_of(one), epoch_of(other))
            first, second, third = (Claim("body", new_request_id(), now_ms()) for _ in range(3))
            until = now_ms() + TTL_MS
            assert not await one.replace("key", first, second, until)
            await one.claim("key", first, until)
            await other.release("key", second)
            assert not await other.replace("key", second, third, until)
            assert await other.claim("key", third, until) == first
            assert await other.replace("key", first, second, until)
            assert await other.replace("key", first, second, until)  # the answer to the first was lost
            assert not await one.replace("key", first, third, until)
            await one.release("key", first)
            assert await one.claim("key", third, until) == second
            await one.release("key", second)
            assert await one.claim("key", third, until) == third

    run(scenario())
