"""Builds who decides, and keeps what it remembers in step with the access list."""

import asyncio
import contextlib
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from chargegate.app.storage import StartError
from chargegate.authorizers.acl import AclAuthorizer
from chargegate.authorizers.acl_entries import AclLineError, read_csv
from chargegate.authorizers.base import Authorizer
from chargegate.authorizers.breaker import CircuitBreaker
from chargegate.authorizers.cache import Cached, DecisionCache
from chargegate.authorizers.deadline import Deadline
from chargegate.authorizers.http import HttpAuthorizer
from chargegate.authorizers.simulated import SimulatedAuthorizer
from chargegate.config import Settings
from chargegate.http1 import HttpClient
from chargegate.ledger.base import AccessEntry, AccessList, LedgerUnavailable
from chargegate.model import parse_callback_url
from chargegate.secrets import Keyring
from chargegate.telemetry import Metrics, log

_FOLLOW_S: Final = 0.25


def build_authorizer(settings: Settings, access_list: AccessList, cache: DecisionCache, metrics: Metrics) -> Authorizer:
    chosen = settings.authorization
    authorizer: Authorizer = AclAuthorizer(access_list)
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
            HttpClient(max_connections=settings.queue.consumer_concurrency),
            parse_callback_url(chosen.url),
            max_retries=chosen.max_retries,
            timeout_ms=chosen.timeout_ms,
            rng=random.Random(),  # noqa: S311 - jitter
        )
    authorizer = Deadline(authorizer, chosen.timeout_ms)
    breaker = chosen.circuit_breaker
    if breaker.enabled:
        authorizer = CircuitBreaker(
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
    return Cached(authorizer, cache) if chosen.cache_ttl_ms else authorizer


async def read_acl_file(name: str, access_list: AccessList, keyring: Keyring) -> None:
    if not name:
        return

    def read() -> list[AccessEntry]:
        with Path(name).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return list(read_csv(file, keyring.token_hash))

    try:
        entries = await asyncio.to_thread(read)
    except OSError as error:
        raise StartError(f"authorization.acl_file: {name}: {error.strerror}") from None
    except AclLineError as error:
        raise StartError(f"authorization.acl_file: {name}: {error}") from None
    await access_list.put(entries)
    log.info("access list file read", entries=len(entries))


async def follow_access_list(access_list: AccessList, cache: DecisionCache, stack: AsyncExitStack) -> None:
    """Cached decisions go within a moment of any process's change."""
    newest, _ = await access_list.changes(0)

    async def follow(seen: int) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_S)
            try:
                seen, changed = await access_list.changes(seen)
            except LedgerUnavailable:
                cache.forget_all()  # better asked again than allowed by what may have changed
                continue
            if changed is None:
                cache.forget_all()
            elif changed:
                cache.forget(changed)

    task = asyncio.create_task(follow(newest))
    stack.push_async_callback(_end, task)


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
