"""What the processes of one service remember together, on Redis: confirmed idempotency keys, and verdicts."""

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

import msgspec

from chargegate.engines.redis.connection import RedisServer
from chargegate.engines.redis.forgetting import Forgetting
from chargegate.ledger.records import Claim
from chargegate.model import Status, Verdict, now_ms
from chargegate.storage.budget import CACHE_S
from chargegate.storage.group_commit import GroupCommit
from chargegate.storage.unavailable import Unavailable

T = TypeVar("T")

_BATCH: Final = 256
_KEPT: Final = (Status.ALLOWED, Status.NOT_ALLOWED)


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
    """Keeps the promises of ``SharedCache``, for at most ``ttl_ms``, and of ``SharedClaims``.

    While Redis is away nothing is remembered, nobody waits for it, and ``failure`` says why. What this process must
    forget and could not yet, or may have missed while Redis was away, makes it read nothing until that is done. It
    begins so, and so does each new connection.
    """

    def __init__(self, url: str, *, ttl_ms: int, name: str = "chargegate") -> None:
        """``name`` tells services on one server apart. Raises ``ValueError`` for a wrong URL."""
        self._server = RedisServer(url, timeout_s=CACHE_S, at_once=1)
        self._ttl_ms = ttl_ms
        self._prefix = f"{{{name}}}:cache:"  # one hash tag: scripts use keys together
        self._state = self._prefix + "state"
        self._forgetting = Forgetting(self._server, self._state, self._token_key, CACHE_S)
        self._looks: GroupCommit[_Question, _Found] = GroupCommit(self._run_looks, max_items=_BATCH)
        self._keeps: GroupCommit[_Answer, None] = GroupCommit(self._run_keeps, max_items=_BATCH)
        self._reads: GroupCommit[str, bytes | None] = GroupCommit(self._run_reads, max_items=_BATCH)
        self._confirms: GroupCommit[tuple[str, bytes, int], None] = GroupCommit(self._run_confirms, max_items=_BATCH)

    @property
    def failure(self) -> str | None:
        """Why Redis is away; None while it is not."""
        return self._forgetting.failure

    def usable(self) -> bool:
        """Whether something can be found and kept now."""
        return self._forgetting.done()

    async def look(self, token_hash: str, station_id: str) -> tuple[Verdict | None, bytes]:
        found = None
        if self.usable():
            with self._noting_failure():
                found = await self._looks.submit(_Question(token_hash, station_id.lower()))
        if found is None or not self.usable():
            return None, b""
        kept = _decoded(_decode_verdict, found.value)
        if kept is None or not kept.since <= now_ms() < kept.until:
            return None, found.epoch
        return Verdict(kept.status, kept.reason, kept.until, cached=True), found.epoch

    async def keep(self, token_hash: str, station_id: str, verdict: Verdict, epoch: bytes) -> None:
        now = now_ms()
        until = min(now + self._ttl_ms, verdict.good_until if verdict.good_until is not None else now + self._ttl_ms)
        if verdict.status in _KEPT and until > now and epoch and self.usable():
            value = _encode(_Kept(verdict.status, verdict.reason, now, until))
            with self._noting_failure():
                await self._keeps.submit(_Answer(_Question(token_hash, station_id.lower()), epoch, value, until - now))

    def forget(self, token_hashes: Iterable[str]) -> None:
        self._forgetting.forget(token_hashes)

    def forget_all(self) -> None:
        self._forgetting.forget_all()

    async def confirmed(self, key_digest: str) -> Claim | None:
        value = None
        if self.usable():
            with self._noting_failure():
                value = await self._reads.submit(key_digest)
        return _decoded(_decode_claim, value)

    async def claim(self, key_digest: str, claim: Claim, until: int) -> Claim | None:
        kept = None
        if until > now_ms() and self.usable():
            key = self._unconfirmed_key(key_digest)
            with self._noting_failure():
                earlier = await self._server.run("cache_claim", (key,), _encode(claim), until - now_ms())
                kept = _decoded(_decode_claim, earlier) if earlier else claim
        return kept

    async def release(self, key_digest: str, claim: Claim) -> None:
        if self.usable():
            with self._noting_failure():
                await self._server.run("cache_release", (self._unconfirmed_key(key_digest),), _encode(claim))

    async def replace(self, key_digest: str, held: Claim, claim: Claim, until: int) -> bool:
        replaced = False
        if until > now_ms() and self.usable():
            key = self._unconfirmed_key(key_digest)
            with self._noting_failure():
                words = (_encode(held), _encode(claim), until - now_ms())
                replaced = bool(await self._server.run("cache_replace", (key,), *words))
        return replaced

    async def confirm(self, key_digest: str, claim: Claim, until: int) -> None:
        if until > now_ms() and self.usable():
            with self._noting_failure():
                await self._confirms.submit((key_digest, _encode(claim), until - now_ms()))

    async def check(self) -> None:
        """Bring ``failure`` up to date."""
        if self.usable():
            with self._noting_failure():
                await self._server.command("PING")

    async def close(self) -> None:
        """What is still to be forgotten is, if Redis takes it at once."""
        await self._forgetting.close()
        await self._server.close()

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except Unavailable as error:
            self._forgetting.failed(str(error))

    # A hash for each token has a field for each station.
    def _token_key(self, token_hash: str) -> str:
        return f"{self._prefix}token:{token_hash}"

    def _unconfirmed_key(self, digest: str) -> str:
        return f"{self._prefix}claim:{digest}"

    def _claim_key(self, digest: str) -> str:
        return f"{self._prefix}key:{digest}"

    async def _run_looks(self, questions: list[_Question]) -> list[_Found]:
        keys = (self._state, *(self._token_key(question.token_hash) for question in questions))
        stations = (question.station_id for question in questions)
        epoch, *values = await self._server.run("cache_look", keys, secrets.token_hex(8), *stations)
        return [_Found(epoch, value) for value in values]

    async def _run_keeps(self, answers: list[_Answer]) -> None:
        keys = (self._state, *(self._token_key(answer.question.token_hash) for answer in answers))
        words = (word for a in answers for word in (a.epoch, a.question.station_id, a.value, a.ttl_ms))
        await self._server.run("cache_keep", keys, *words)

    async def _run_reads(self, digests: list[str]) -> list[bytes | None]:
        values: list[bytes | None] = await self._server.command("MGET", *map(self._claim_key, digests))
        return values

    async def _run_confirms(self, claims: list[tuple[str, bytes, int]]) -> None:
        keys = tuple(self._claim_key(digest) for digest, _, _ in claims)
        await self._server.run("cache_confirm", keys, *(word for _, *words in claims for word in words))


def _decoded(decode: Callable[[bytes], T], value: bytes | None) -> T | None:
    try:
        return decode(value) if value else None
    except msgspec.DecodeError:
        return None
