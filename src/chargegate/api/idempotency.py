"""``Idempotency-Key``: one key, one request, however often and however concurrently it is sent."""

import asyncio
from typing import Final, NamedTuple

import msgspec

from chargegate.api.errors import Refused
from chargegate.keys import Keyring
from chargegate.ledger.base import Ledger, LedgerUnavailable, SharedClaims
from chargegate.ledger.records import CLAIM_MS, Claim
from chargegate.model import ChargingRequest, now_ms
from chargegate.queues.base import Message, Queue, QueueUnavailable
from chargegate.queues.envelope import wrap
from chargegate.storage.budget import ANSWER_S, LEDGER_S, REQUEST_S

_MAX_CONFIRMED: Final = 20_000
_PUT_MS: Final = round(1000 * ANSWER_S)  # by then a put has an answer, or its client was told that it failed
_POLL_S: Final = 0.05


class Accepted(NamedTuple):
    """A request that is safe. ``at`` is Unix ms; ``repeated``: an earlier one, nothing was put into the queue."""

    request_id: str
    at: int
    repeated: bool


class Idempotency:
    """Accepts requests that come with a key.

    The ledger's claim decides which request a key stands for; while the ledger is away, the shared cache's claim does.
    Requests with the same key that are under way share one attempt. Keys that were confirmed lately, by this process
    or by one that shares a cache with it, need no look-up.
    """

    def __init__(self, ledger: Ledger, queue: Queue, keyring: Keyring, shared: SharedClaims | None = None) -> None:
        self._ledger = ledger
        self._shared = shared
        self._queue = queue
        self._keyring = keyring
        self._under_way: dict[str, tuple[str, asyncio.Task[Accepted]]] = {}
        self._confirmed: dict[str, Claim] = {}

    async def accept(self, client: str, key: str, request: ChargingRequest) -> Accepted:
        """Put the request into the queue unless the key stands for one already.

        Raises ``Refused`` (422) if the key stands for another body, and whatever queue and ledger raise.
        """
        digest = self._keyring.digest("idempotency", client, key)
        body = self._keyring.digest("body", request.station_id, request.driver_token, request.callback_url)
        if known := self._known(digest):
            _require_same_body(known.body_digest, body)
            return Accepted(known.request_id, known.created_at, repeated=True)
        first = digest not in self._under_way
        if first:
            attempt = asyncio.create_task(self._attempt(digest, body, request))
            self._under_way[digest] = (body, attempt)
            attempt.add_done_callback(lambda _: self._under_way.pop(digest))
        claimed, attempt = self._under_way[digest]
        _require_same_body(claimed, body)
        # A client that goes away must not cancel the attempt that others wait for.
        accepted = await asyncio.shield(attempt)
        return accepted if first else accepted._replace(repeated=True)

    async def _attempt(self, digest: str, body: str, request: ChargingRequest) -> Accepted:
        if self._shared is not None and (held := await self._shared.confirmed(digest)):
            _require_same_body(held.body_digest, body)
            self._confirm(digest, held)
            return Accepted(held.request_id, held.created_at, repeated=True)
        loop = asyncio.get_running_loop()
        ends = loop.time() + REQUEST_S
        claim = await self._claim(digest, Claim(body, request.request_id, request.accepted_at))
        _require_same_body(claim.body_digest, body)
        repeated = False
        if claim.request_id != request.request_id:
            repeated = await self._becomes_safe(digest, claim)
            ends = loop.time() + REQUEST_S
        if not repeated:
            # An earlier claim may have no request: its process died, or found the queue full, before the put.
            request = msgspec.structs.replace(request, request_id=claim.request_id)
            claim = msgspec.structs.replace(claim, created_at=request.accepted_at)
            await self._put(wrap(self._keyring, request), ends)
        self._confirm(digest, claim)
        if self._shared is not None:
            await self._shared.confirm(digest, claim, claim.created_at + CLAIM_MS)
        return Accepted(claim.request_id, claim.created_at, repeated)

    async def _put(self, message: Message, ends: float) -> None:
        """Put the message, by ``ends`` where the queue's server may be silent. If it is stored later all the same, it
        is a repeat of the same request."""
        try:
            async with asyncio.timeout_at(ends if self._queue.capabilities.shared else None):
                await self._queue.put(message)
        except TimeoutError:
            raise QueueUnavailable("no answer in time") from None

    async def _claim(self, digest: str, claim: Claim) -> Claim:
        """The claim that holds: the ledger's, or while the ledger is away that of the shared cache."""
        if self._shared is None:
            return await self._ledger.claim(digest, claim)
        try:
            async with asyncio.timeout(LEDGER_S):
                return await self._ledger.claim(digest, claim)
        except (LedgerUnavailable, TimeoutError):
            held = await self._shared.claim(digest, claim, claim.created_at + CLAIM_MS)
            if held is None:
                raise LedgerUnavailable("neither the database nor the cache answers") from None
            return held

    async def _becomes_safe(self, digest: str, claim: Claim) -> bool:
        """Whether the request of a claim is in the queue or was. Another process may be putting it there now."""
        while True:
            if await self._is_safe(claim.request_id):
                return True
            if self._shared is not None and await self._shared.confirmed(digest):
                return True
            putting = claim.created_at <= now_ms() < claim.created_at + _PUT_MS
            if not (putting and self._queue.capabilities.shared):
                return False
            await asyncio.sleep(_POLL_S)

    async def _is_safe(self, request_id: str) -> bool:
        # The queue is asked first, because a request is in the ledger before it leaves the queue.
        if await self._queue.find(request_id) is not None:
            return True
        try:
            return await self._ledger.find(request_id) is not None
        except LedgerUnavailable:
            if self._shared is None:
                raise
            return False  # it is put once more, and is still one request with one decision

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
        raise Refused(422, "idempotency_conflict", "The idempotency key was used with another body.")
