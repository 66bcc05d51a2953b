"""Builds who decides, and keeps what it remembers in step with the access list."""

import asyncio
import hashlib
import io
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, Protocol

from chargegate.app.opening import StartError
from chargegate.authorizers.acl import AclAuthorizer
from chargegate.authorizers.acl_entries import AclLineError, read_csv
from chargegate.authorizers.base import Authorizer
from chargegate.authorizers.breaker import CircuitBreaker
from chargegate.authorizers.cache import Cached, DecisionCache
from chargegate.authorizers.deadline import Deadline
from chargegate.authorizers.http import HttpAuthorizer
from chargegate.authorizers.shared import SharedCache, SharedVerdicts
from chargegate.authorizers.simulated import SimulatedAuthorizer
from chargegate.config import Settings
from chargegate.http1 import HttpClient
from chargegate.keys import Keyring
from chargegate.ledger.base import AccessList, Ledger, LedgerUnavailable
from chargegate.ledger.records import AccessEntry
from chargegate.model import parse_callback_url
from chargegate.observe import Metrics, log
from chargegate.storage.recurring import rest

_FOLLOW_S: Final = 0.25
_PAGE: Final = 500  # of the access list
_PAUSE_FACTOR: Final = 2  # it rests twice as long as a page took
_APPLIED: Final = "access_list_file"


def build_authorizer(
    settings: Settings,
    access_list: AccessList,
    remembered: DecisionCache,
    shared: SharedCache | None,
    metrics: Metrics,
) -> Authorizer:
    """Who decides, in the order in which they are asked: this process's cache, the cache that processes share, the
    circuit breaker, the deadline, and the authorizer that is chosen."""
    chosen = settings.authorization
    # The simulated authorizer is for being slow, so nothing is kept for it.
    kept = remembered if chosen.backend == "acl" and chosen.cache_ttl_ms else None
    authorizer: Authorizer = AclAuthorizer(access_list, kept)
    if chosen.backend == "simulated":
        authorizer = SimulatedAuthorizer(
            authorizer,
            latency_ms=chosen.simulated_latency_ms,
            error_share=chosen.simulated_error_share,
            hang_share=chosen.simulated_hang_share,
            rng=random.Random(),  # noqa: S311 - a simulation
        )
    elif chosen.backend == "http":
        authorizer = HttpAuthorizer(
            HttpClient(
                max_connections=settings.queue.consumer_concurrency, name_servers=settings.callback.name_servers
            ),
            parse_callback_url(chosen.url),
            max_retries=chosen.max_retries,
            timeout_ms=chosen.timeout_ms,
            rng=random.Random(),  # noqa: S311 - jitter
        )
    authorizer = Deadline(authorizer, chosen.timeout_ms)
    breaker = chosen.circuit_breaker
    if breaker.enabled:
        authorizer = circuit = CircuitBreaker(
            authorizer,
            name="authorization",
            failure_threshold=breaker.failure_threshold,
            failure_rate=breaker.failure_rate,
            min_calls=breaker.min_calls,
            sampling_window_ms=breaker.sampling_window_ms,
            recovery_timeout_ms=breaker.recovery_timeout_ms,
            half_open_max_calls=breaker.half_open_max_calls,
            on_change=metrics.circuit("authorization"),
        )
        metrics.circuit_is("authorization", lambda: circuit.state)
    if not chosen.cache_ttl_ms:
        return authorizer
    if shared is not None:
        authorizer = SharedVerdicts(authorizer, shared)
    return Cached(authorizer, remembered, metrics.cache_looked)


async def apply_acl_file(name: str, access_list: AccessList, ledger: Ledger, keyring: Keyring) -> None:
    """Put a file's entries into the access list, unless it is the one that was put there last: what was changed by
    other ways since then stands."""
    if not name:
        return
    content = await asyncio.to_thread(_content, name)
    # Keyed, because a digest of a file with one token could be guessed back.
    digest = keyring.digest(_APPLIED, hashlib.sha256(content).hexdigest())
    if await ledger.value(_APPLIED) == digest:
        log.info("access list file unchanged")
        return
    entries = await asyncio.to_thread(_entries, name, content, keyring.token_hash)
    await access_list.put(entries)
    await ledger.put_value(_APPLIED, digest)
    log.info("access list file read", entries=len(entries))


def check_acl_file(settings: Settings) -> None:
    """Raises ``StartError`` if ``authorization.acl_file`` cannot be read or has a malformed line."""
    if name := settings.authorization.acl_file:
        _entries(name, _content(name), lambda token: hashlib.sha256(token.encode()).hexdigest())


def _content(name: str) -> bytes:
    try:
        path = Path(name)
        if path.is_fifo():  # which would hold up the start until somebody writes into it
            raise StartError(f"authorization.acl_file: {name}: Not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"authorization.acl_file: {name}: {error.strerror}") from None


def _entries(name: str, content: bytes, token_hash: Callable[[str], str]) -> list[AccessEntry]:
    lines = io.TextIOWrapper(io.BytesIO(content), "utf-8", errors="surrogateescape", newline="")
    try:
        return list(read_csv(lines, token_hash))
    except AclLineError as error:
        raise StartError(f"authorization.acl_file: {name}: {error}") from None


class VerdictCache(Protocol):
    """A cache of verdicts that can forget them."""

    def forget(self, token_hashes: Iterable[str]) -> None: ...

    def forget_all(self) -> None: ...


async def follow_access_list(access_list: AccessList, caches: Sequence[VerdictCache], stack: AsyncExitStack) -> None:
    """Cached decisions go within a moment of any process's change of the access list: the first cache forgets first."""
    newest, _ = await access_list.changes(0)

    async def follow(seen: int) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_S)
            changed = None
            try:
                seen, changed = await access_list.changes(seen)
            except LedgerUnavailable:
                pass
            except Exception:  # noqa: BLE001 - whatever it is: if this task ended, outdated decisions would stay cached
                log.exception("changes of the access list cannot be read")
            if changed is None:  # anything may have changed, so every decision is asked for again
                for cache in caches:
                    cache.forget_all()
            elif changed:
                for cache in caches:
                    cache.forget(changed)

    task = asyncio.create_task(follow(newest))
    stack.push_async_callback(_end, task)


def remember_access_list(access_list: AccessList, remembered: DecisionCache, stack: AsyncExitStack) -> None:
    """Have entries of the access list in memory before their drivers come, as many as are kept there: in small steps
    beside the traffic. A change of the list while a page is read leaves that page to be looked up."""

    async def read() -> None:
        after: str | None = ""
        while after is not None and remembered.keeps_more_entries:
            epoch, started = remembered.epoch, time.monotonic()
            page = await access_list.entries(_PAGE, after or None)
            for entry in page:
                remembered.keep_entry(entry, epoch)
            after = page[-1].driver_token_hash if len(page) == _PAGE else None
            await rest(started, _PAUSE_FACTOR)

    async def try_to_read() -> None:
        try:
            await read()
        except LedgerUnavailable:
            pass  # what is not kept is looked up
        except Exception:  # noqa: BLE001 - as above; nothing depends on it
            log.exception("the access list cannot be read ahead")

    stack.push_async_callback(_end, asyncio.create_task(try_to_read()))


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait((task,))
