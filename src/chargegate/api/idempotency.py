"""``Idempotency-Key``: one key, one request, however often and however concurrently it is sent."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import msgspec

from chargegate.api.errors import Refused, unavailable
from chargegate.keys import Keyring
from chargegate.ledger.base import Ledger, LedgerUnavailable, SharedClaims
from chargegate.ledger.records import CLAIM_MS, Claim
from chargegate.model import ChargingRequest, now_ms
from chargegate.queues.base import Message, Queue, QueueFull, QueueUnavailable
from chargegate.queues.envelope import wrap
from chargegate.storage.budget import ANSWER_S, LEDGER_S, REQUEST_S

_MAX_CONFIRMED: Final = 20_000
_PUT_MS: Final = round(1000 * ANSWER_S)  # by then a put has an answer, or its client was told that it failed
_POLL_S: Final = 0.05
_CONFLICT: Final = 422
_MAX_ROUNDS: Final = 4  # each is one more process that took the claim over in between

Put = Callable[[str, Message], Awaitable[None]]


class Accepted(NamedTuple):
    """A request that is safe. ``at`` is Unix ms; ``repeated``: an earlier one, nothing was put into the queue."""

    request_id: str
    at: int
    repeated: bool


class _Held(NamedTuple):
    """A claim that holds, and whether the shared cache keeps it, because the ledger was away."""

    claim: Claim
    cached: bool


class Idempotency:
    """Accepts requests that come with a key.

    The ledger's claim decides which request a key stands for; while the ledger is away, the shared cache's claim does.
    Requests with the same key that are under way share one attempt. Keys that were confirmed lately, by this process
    or by one that shares a cache with it, need no look-up.

    A key stands for a request that is safe, in the queue or in the ledger. A claim without such a request holds for the
    same body, which gets the same id once it comes again; another body takes it over. A claim whose request the queue
    refused is removed.
    """

    def __init__(
        self, ledger: Ledger, queue: Queue, keyring: Keyring, put: Put, shared: SharedClaims | None = None
    ) -> None:
        """``put`` puts a client's message into the queue."""
        self._ledger = ledger
        self._shared = shared
        self._queue = queue
        self._put = put
        self._keyring = keyring
        self._under_way: dict[str, tuple[str, asyncio.Task[Accepted]]] = {}
        self._confirmed: dict[str, Claim] = {}

    async def accept(self, client: str, key: str, request: ChargingRequest) -> Accepted:
        """Put the request into the queue unless the key of this client stands for one already.

        Raises ``Refused`` (422) if the key stands for another body, and whatever queue and ledger raise.
        """
        digest = self._keyring.digest("idempotency", client, key)
        body = self._keyring.digest("body", request.station_id, request.driver_token, request.callback_url)
        while True:
            if known := self._known(digest):
                _require_same_body(known.body_digest, body)
                return Accepted(known.request_id, known.created_at, repeated=True)
            claimed, attempt = self._under_way.get(digest, ("", None))
            if attempt is None or attempt.done():
                # A client that goes away must not cancel the attempt that others wait for.
                return await asyncio.shield(self._begin(digest, body, request))
            if claimed == body:
                return (await asyncio.shield(attempt))._replace(repeated=True)
            # If the other body is refused, nothing is under the key, and this one is next.
            try:
                await asyncio.shield(attempt)
            except QueueFull:
                continue
            except Refused as refused:
                if refused.status != _CONFLICT:
                    raise

    def _begin(self, digest: str, body: str, request: ChargingRequest) -> asyncio.Task[Accepted]:
        attempt = asyncio.create_task(self._attempt(digest, body, request))
        entry = self._under_way[digest] = (body, attempt)

        def ended(_: object) -> None:
            if self._under_way.get(digest) is entry:
                del self._under_way[digest]

        attempt.add_done_callback(ended)
        return attempt

    async def _attempt(self, digest: str, body: str, request: ChargingRequest) -> Accepted:
        if self._shared is not None and (safe := await self._shared.confirmed(digest)):
            _require_same_body(safe.body_digest, body)
            self._confirm(digest, safe)
            return Accepted(safe.request_id, safe.created_at, repeated=True)
        loop = asyncio.get_running_loop()
        ends = loop.time() + REQUEST_S
        mine = Claim(body, request.request_id, request.accepted_at)
        held = await self._claim(digest, mine)
        rounds = 0
        while (claim := held.claim) != mine:
            rounds += 1
            if rounds > _MAX_ROUNDS:
                raise unavailable("Others use this idempotency key at the same time.")
            found = await self._found(digest, claim)
            ends = loop.time() + REQUEST_S
            if found is True:
                _require_same_body(claim.body_digest, body)
                return await self._accepted(digest, claim, repeated=True)
            if claim.body_digest == body:
                # Its process died, or the queue did not answer: it is put once more, under the same id.
                mine = msgspec.structs.replace(mine, request_id=claim.request_id)
            elif found is None:
                raise unavailable("It is not known yet whether this idempotency key was used with another body.")
            held = await self._take_over(digest, held, mine)
        try:
            await self._put_by(ends, msgspec.structs.replace(request, request_id=mine.request_id))
        except QueueFull:
            # An id of an earlier attempt stays: that one may still arrive.
            if mine.request_id == request.request_id:
                await self._release(digest, mine)
            raise
        return await self._accepted(digest, mine, repeated=False)

    async def _accepted(self, digest: str, claim: Claim, *, repeated: bool) -> Accepted:
        self._confirm(digest, claim)
        if self._shared is not None:
            await self._shared.confirm(digest, claim, claim.created_at + CLAIM_MS)
        return Accepted(claim.request_id, claim.created_at, repeated)

    async def _put_by(self, ends: float, request: ChargingRequest) -> None:
        """Put the request, by ``ends`` where the queue's server may be silent. If it is stored later all the same, it
        is a repeat of the same request."""
        try:
            async with asyncio.timeout_at(ends if self._queue.capabilities.shared else None):
                await self._put(request.client, wrap(self._keyring, request))
        except TimeoutError:
            raise QueueUnavailable("no answer in time") from None

    async def _claim(self, digest: str, claim: Claim) -> _Held:
        """The claim that holds: the ledger's, or while the ledger is away that of the shared cache."""
        if self._shared is None:
            return _Held(await self._ledger.claim(digest, claim), cached=False)
        try:
            async with asyncio.timeout(LEDGER_S):
                return _Held(await self._ledger.claim(digest, claim), cached=False)
        except (LedgerUnavailable, TimeoutError):
            held = await self._shared.claim(digest, claim, claim.created_at + CLAIM_MS)
            if held is None:
                raise LedgerUnavailable("neither the database nor the cache answers") from None
            return _Held(held, cached=True)

    async def _take_over(self, digest: str, held: _Held, claim: Claim) -> _Held:
        """Put a claim in the place of one whose request is not safe, where that was. What holds now."""
        if held.cached and self._shared is not None:
            replaced = await self._shared.replace(digest, held.claim, claim, claim.created_at + CLAIM_MS)
        else:
            try:
                async with asyncio.timeout(LEDGER_S):
                    replaced = await self._ledger.replace(digest, held.claim, claim)
            except TimeoutError:
                raise LedgerUnavailable("no answer in time") from None
        return held._replace(claim=claim) if replaced else await self._claim(digest, claim)

    async def _release(self, digest: str, claim: Claim) -> None:
        """Best effort: a claim that stays without a request can be taken over."""
        with contextlib.suppress(LedgerUnavailable, TimeoutError):
            async with asyncio.timeout(LEDGER_S):
                await self._ledger.release(digest, claim)
        if self._shared is not None:
            await self._shared.release(digest, claim)

    async def _found(self, digest: str, claim: Claim) -> bool | None:
        """Whether the request of a claim is in the queue or was; None where that cannot be known. Another process may
        be putting it there now."""
        while True:
            found = await self._is_safe(claim.request_id)
            if found or (self._shared is not None and await self._shared.confirmed(digest)):
                return True
            putting = claim.created_at <= now_ms() < claim.created_at + _PUT_MS
            if not (putting and self._queue.capabilities.shared):
                return found
            await asyncio.sleep(_POLL_S)

    async def _is_safe(self, request_id: str) -> bool | None:
        # The queue is asked first, because a request is in the ledger before it leaves the queue.
        if await self._queue.find(request_id) is not None:
            return True
        try:
            if await self._ledger.find(request_id) is not None:
                return True
        except LedgerUnavailable:
            if self._shared is None:
                raise
            return None  # it may be put once more, and is still one request with one decision
        return False if self._queue.capabilities.find else None

    def _known(self, digest: str) -> Claim | None:
        claim = self._confirmed.pop(digest, None)
        if claim is None or claim.created_at <= now_ms() - CLAIM_MS:
            return None
        self._confirmed[digest] = claim
        return claim

    def _confirm(self, digest: str, claim: Claim) -> None:
        if len(self._confirmed) >= _MAX_CONFIRMED:
            del self._confirmed[next(iter(self._confirmed))]
        self._confirmed[digest] = claim


def _require_same_body(claimed: str, body: str) -> None:
    if claimed != body:
        raise Refused(_CONFLICT, "idempotency_conflict", "The idempotency key was used with another body.")
