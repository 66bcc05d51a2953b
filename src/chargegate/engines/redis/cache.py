"""What the processes of one service remember together, on Redis: confirmed idempotency keys, and verdicts.

Everything here can be done without. While Redis is away nothing is remembered, nobody waits for it, and ``failure``
says why.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from chargegate.engines.redis.connection import Batches, RedisServer, RedisUnavailable
from chargegate.ledger.records import Claim
from chargegate.model import Status, Verdict, now_ms
from chargegate.observe import log

_TIMEOUT_S: Final = 0.25
_PROBE_S: Final = 1.0
_KEPT: Final = (Status.ALLOWED, Status.NOT_ALLOWED)

# A hash for each token, a field for each station. A value begins with the generation it belongs to; another generation
# is what forgetting everything comes to. The epoch moves whenever something is forgotten. Both are random, so that a
# server that lost them never comes back to one that was. KEYS: those two, then a hash for each question.

# ARGV: what the two become where they are missing; stations. The epoch; the values.
_LOOK: Final = """
local state = redis.call('HMGET', KEYS[1], 'generation', 'epoch')
if not (state[1] and state[2]) then
  state = {ARGV[1], ARGV[1]}
  redis.call('HSET', KEYS[1], 'generation', ARGV[1], 'epoch', ARGV[1])
end
local answers = {state[2]}
for i = 2, #KEYS do
  local value = redis.call('HGET', KEYS[i], ARGV[i])
  local current = value and string.sub(value, 1, #state[1]) == state[1]
  answers[i] = current and string.sub(value, #state[1] + 1)
end
return answers
"""

# ARGV: epoch, station, value and time to live in ms of each.
_KEEP: Final = """
local state = redis.call('HMGET', KEYS[1], 'generation', 'epoch')
for i = 2, #KEYS do
  local at = 4 * i - 7
  if state[1] and state[2] == ARGV[at] then
    redis.call('HSET', KEYS[i], ARGV[at + 1], state[1] .. ARGV[at + 2])
    if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[at + 3]) then redis.call('PEXPIRE', KEYS[i], ARGV[at + 3]) end
  end
end
"""

# ARGV: the new epoch.
_FORGET: Final = """
redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
"""

_FORGET_ALL: Final = "redis.call('HSET', KEYS[1], 'generation', ARGV[1], 'epoch', ARGV[1])"

# KEYS: one for each claim. ARGV: claim and time to live in ms of each.
_CONFIRM: Final = "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', ARGV[2 * i]) end"

# ARGV: the claim, and its time to live in ms.
_CLAIM: Final = "return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'GET', 'PX', ARGV[2])"


class _Kept(msgspec.Struct, array_like=True):
    status: Status
    reason: str
    since: int
    until: int


class _Question(NamedTuple):
    token_hash: str
    station_id: str


class _Found(NamedTuple):
    epoch: bytes
    value: bytes | None


class _Answer(NamedTuple):
    question: _Question
    epoch: bytes
    value: bytes
    ttl_ms: int


_encode = msgspec.msgpack.Encoder().encode
_decode_verdict = msgspec.msgpack.Decoder(_Kept).decode
_decode_claim = msgspec.msgpack.Decoder(Claim).decode


class RedisCache:
    """Verdicts by full token hash and station for at most ``ttl_ms``, and claims of idempotency keys by digest.

    No verdict found before something was forgotten is kept after it, whichever process found it. What this process
    must forget and could not yet, or may have missed while away, makes it read nothing until that is done; it begins
    so, and so does each new connection, because the server behind it may be one that lost its last writes.
    """

    def __init__(self, url: str, *, ttl_ms: int, name: str = "chargegate") -> None:
        """``name`` tells services on one server apart. Raises ``ValueError`` for a wrong URL."""
        self.failure: str | None = None
        self._server = RedisServer(url, timeout_s=_TIMEOUT_S, at_once=1)
        self._ttl_ms = ttl_ms
        self._prefix = f"{{{name}}}:cache:"  # one hash tag: scripts use keys together
        self._state = self._prefix + "state"
        self._looks: Batches[_Question, _Found] = Batches(self._run_looks)
        self._keeps: Batches[_Answer, None] = Batches(self._run_keeps)
        self._reads: Batches[str, bytes | None] = Batches(self._run_reads)
        self._confirms: Batches[tuple[str, bytes, int], None] = Batches(self._run_confirms)
        self._forgotten: set[str] = set()
        self._forget_all = True
        self._connections: int | None = 0
        self._mending = asyncio.create_task(self._mend())

    async def look(self, token_hash: str, station_id: str) -> tuple[Verdict | None, bytes]:
        """The verdict kept for a token at a station, marked ``cached`` and good for as long as it may be kept; and the
        epoch for ``keep``, empty where nothing can be kept."""
        if not self._usable():
            return None, b""
        try:
            found = await self._looks.ask(_Question(token_hash, station_id.lower()))
        except RedisUnavailable as error:
            self._away(str(error))
            return None, b""
        if not self._usable():
            return None, b""
        with contextlib.suppress(msgspec.DecodeError):
            kept = _decode_verdict(found.value) if found.value else None
            if kept is not None and kept.since <= now_ms() < kept.until:
                return Verdict(kept.status, kept.reason, kept.until, cached=True), found.epoch
        return None, found.epoch

    async def keep(self, token_hash: str, station_id: str, verdict: Verdict, epoch: bytes) -> None:
        """Keep a verdict that is allowed or not_allowed, unless the epoch has moved from the one given."""
        now = now_ms()
        until = min(now + self._ttl_ms, verdict.good_until if verdict.good_until is not None else now + self._ttl_ms)
        if verdict.status not in _KEPT or until <= now or not epoch or not self._usable():
            return
        value = _encode(_Kept(verdict.status, verdict.reason, now, until))
        try:
            await self._keeps.ask(_Answer(_Question(token_hash, station_id.lower()), epoch, value, until - now))
        except RedisUnavailable as error:
            self._away(str(error))

    def forget(self, token_hashes: Iterable[str]) -> None:
        """What is known of these tokens is no longer true."""
        self._forgotten.update(token_hashes)
        self._owe()

    def forget_all(self) -> None:
        """Nothing that is known may be true any more."""
        self._forget_all = True
        self._owe()

    async def confirmed(self, key_digest: str) -> Claim | None:
        """What an idempotency key stands for, if its request is known to be safe."""
        if not self._usable():
            return None
        try:
            value = await self._reads.ask(key_digest)
        except RedisUnavailable as error:
            self._away(str(error))
            return None
        with contextlib.suppress(msgspec.DecodeError):
            return _decode_claim(value) if value else None
        return None

    async def claim(self, key_digest: str, claim: Claim, until: int) -> Claim | None:
        """Let an idempotency key stand for a request until then (Unix ms), safe or not. The claim that holds: an
        earlier one, or this one; None while Redis is away."""
        if until <= now_ms() or not self._usable():
            return None
        key = f"{self._prefix}claim:{key_digest}"
        try:
            earlier = await self._server.run(_CLAIM, (key,), _encode(claim), until - now_ms())
        except RedisUnavailable as error:
            self._away(str(error))
            return None
        with contextlib.suppress(msgspec.DecodeError):
            return _decode_claim(earlier) if earlier else claim
        return None

    async def confirm(self, key_digest: str, claim: Claim, until: int) -> None:
        """The claimed request is safe. Remembered until then (Unix ms)."""
        if until <= now_ms() or not self._usable():
            return
        try:
            await self._confirms.ask((key_digest, _encode(claim), until - now_ms()))
        except RedisUnavailable as error:
            self._away(str(error))

    async def check(self) -> None:
        """Bring ``failure`` up to date."""
        if self._usable():
            try:
                await self._server.command("PING")
            except RedisUnavailable as error:
                self._away(str(error))

    async def close(self) -> None:
        """What is still to be forgotten is, if Redis takes it at once."""
        if self._forgotten or self._forget_all:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * _TIMEOUT_S):
                    await asyncio.wait([self._mending])
        self._mending.cancel()
        await asyncio.gather(self._mending, return_exceptions=True)
        await self._server.close()

    def _usable(self) -> bool:
        if self._connections != self._server.connections:
            self.forget_all()
        return self._mending.done()

    def _away(self, why: str) -> None:
        if self.failure is None:
            log.warning("the cache is away; going on without it", error=why)
        self.failure = why
        self.forget_all()

    def _owe(self) -> None:
        if self._mending.done():
            self._mending = asyncio.create_task(self._mend())

    async def _mend(self) -> None:
        """Have Redis forget what it must, as often as it takes."""
        while self._forget_all or self._forgotten:
            everything, hashes = self._forget_all, self._forgotten
            self._forget_all, self._forgotten = False, set()
            connections = self._server.connections
            try:
                if everything:
                    await self._server.run(_FORGET_ALL, (self._state,), secrets.token_hex(8))
                else:
                    await self._server.run(_FORGET, (self._state, *map(self._of_token, hashes)), secrets.token_hex(8))
            except RedisUnavailable as error:
                self._away(str(error))
                await asyncio.sleep(_PROBE_S)
                continue
            self._connections = self._server.connections
            if self._connections != connections:
                self._forget_all = True
        if self.failure is not None:
            log.info("the cache is back")
        self.failure = None

    def _of_token(self, token_hash: str) -> str:
        return f"{self._prefix}token:{token_hash}"

    async def _run_looks(self, questions: Sequence[_Question]) -> Sequence[_Found]:
        keys = (self._state, *(self._of_token(question.token_hash) for question in questions))
        stations = (question.station_id for question in questions)
        epoch, *values = await self._server.run(_LOOK, keys, secrets.token_hex(8), *stations)
        return [_Found(epoch, value) for value in values]

    async def _run_keeps(self, answers: Sequence[_Answer]) -> Sequence[None]:
        keys = (self._state, *(self._of_token(answer.question.token_hash) for answer in answers))
        words = (word for a in answers for word in (a.epoch, a.question.station_id, a.value, a.ttl_ms))
        await self._server.run(_KEEP, keys, *words)
        return [None] * len(answers)

    async def _run_reads(self, digests: Sequence[str]) -> Sequence[bytes | None]:
        values: list[bytes | None] = await self._server.command("MGET", *map(self._of_key, digests))
        return values

    async def _run_confirms(self, claims: Sequence[tuple[str, bytes, int]]) -> Sequence[None]:
        keys = tuple(self._of_key(digest) for digest, _, _ in claims)
        await self._server.run(_CONFIRM, keys, *(word for _, *words in claims for word in words))
        return [None] * len(claims)

    def _of_key(self, digest: str) -> str:
        return f"{self._prefix}key:{digest}"
