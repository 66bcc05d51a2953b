"""Decisions that the processes of one service keep together."""

from collections.abc import Iterable
from typing import Protocol

from chargegate.authorizers.base import Authorizer
from chargegate.model import ChargingRequest, Verdict


class SharedCache(Protocol):
    """Verdicts by full token hash and station, kept where every process of the service finds them.

    It can be done without: while its server is away nothing is found and nothing is kept, and nothing here raises. A
    verdict that was found before something was forgotten is not kept after it, whichever process found it.
    """

    async def look(self, token_hash: str, station_id: str) -> tuple[Verdict | None, bytes]:
        """The verdict kept for a token at a station, marked ``cached`` and good for as long as it may be kept; and the
        epoch for ``keep``, which is empty where nothing can be kept."""
        ...

    async def keep(self, token_hash: str, station_id: str, verdict: Verdict, epoch: bytes) -> None:
        """Keep a verdict that is allowed or not_allowed, unless the epoch has moved from the one given."""

    def forget(self, token_hashes: Iterable[str]) -> None:
        """What is known of these tokens is no longer true."""

    def forget_all(self) -> None:
        """Nothing that is known may be true any more."""


class SharedVerdicts:
    """Answers with what any process was told lately; otherwise asks the authorizer and tells the other processes.

    It belongs beneath a process's own cache, which must forget a token before the shared one is told to. The shared
    cache stays the caller's.
    """

    def __init__(self, inner: Authorizer, cache: SharedCache) -> None:
        self._inner = inner
        self._cache = cache

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        kept, epoch = await self._cache.look(token_hash, request.station_id)
        if kept is not None:
            return kept
        verdict = await self._inner.decide(request, token_hash)
        await self._cache.keep(token_hash, request.station_id, verdict, epoch)
        return verdict

    async def check(self) -> None:
        await self._inner.check()

    async def close(self) -> None:
        await self._inner.close()
