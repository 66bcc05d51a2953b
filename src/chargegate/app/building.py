"""Builds the parts of a process from its settings and from what it has opened."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from starlette.types import ASGIApp

from chargegate.api import Parts, build, build_monitoring
from chargegate.app.authorization import apply_acl_file, build_authorizer, follow_access_list
from chargegate.app.start import Role, StartError, extra
from chargegate.app.storage import Storage
from chargegate.authorizers.base import Authorizer
from chargegate.authorizers.cache import DecisionCache
from chargegate.config import Settings, scheme
from chargegate.delivering.guard import AddressGuard
from chargegate.delivering.retry import RetryPolicy
from chargegate.delivering.sender import Sender
from chargegate.delivering.signing import Signer
from chargegate.http1 import HttpClient
from chargegate.keys import AccessKeys
from chargegate.observe import Metrics
from chargegate.operations import health
from chargegate.queues.base import Queue
from chargegate.worker import Worker

if TYPE_CHECKING:
    from chargegate.engines.redis.cache import RedisCache


class Opened(NamedTuple):
    """``shared`` is None where no cache is shared."""

    settings: Settings
    role: Role
    storage: Storage
    queue: Queue
    shared: "RedisCache | None"
    metrics: Metrics


class Deciding(NamedTuple):
    worker: Worker
    authorizer: Authorizer
    cache: DecisionCache


def open_shared_cache(settings: Settings, stack: AsyncExitStack) -> "RedisCache | None":
    if settings.cache.url == "memory://":
        return None
    with extra("cache.url", "redis"):
        from chargegate.engines.redis.cache import RedisCache  # noqa: PLC0415 - only when picked
    try:
        shared = RedisCache(settings.cache.url, ttl_ms=settings.authorization.cache_ttl_ms)
    except ValueError as error:
        raise StartError(f"cache.url: {error}") from None
    stack.push_async_callback(shared.close)
    return shared


async def build_worker(opened: Opened, stack: AsyncExitStack) -> Deciding:
    settings, storage, shared = opened.settings, opened.storage, opened.shared
    await apply_acl_file(settings.authorization.acl_file, storage.access_list, storage.ledger, storage.keyring)
    cache = DecisionCache(ttl_ms=settings.authorization.cache_ttl_ms)
    await follow_access_list(storage.access_list, [cache] if shared is None else [cache, shared], stack)
    authorizer = build_authorizer(settings, storage.access_list, cache, _sharing(shared), opened.metrics)
    stack.push_async_callback(authorizer.close)
    guard = AddressGuard(settings.callback.allowed_networks)
    client = HttpClient(max_connections=settings.callback.max_connections, check_address=guard.check)
    stack.push_async_callback(client.close)
    signer = Signer(settings.callback.signing_secrets)
    worker = Worker(
        queue=opened.queue,
        ledger=storage.ledger,
        authorizer=authorizer,
        keyring=storage.keyring,
        sender=Sender(client, signer, opened.metrics, timeout_ms=settings.callback.timeout_ms),
        metrics=opened.metrics,
        **_worker_limits(settings),
    )
    return Deciding(worker, authorizer, cache)


def _sharing(shared: "RedisCache | None") -> Callable[[Authorizer], Authorizer] | None:
    if shared is None:
        return None
    from chargegate.engines.redis.cache import SharedVerdicts  # noqa: PLC0415 - only when picked

    return partial(SharedVerdicts, cache=shared)


def build_surface(opened: Opened, deciding: Deciding | None, draining: Callable[[], bool]) -> ASGIApp:
    """What this process answers over HTTP."""
    settings, storage, shared = opened.settings, opened.storage, opened.shared

    def access_changed(token_hashes: frozenset[str]) -> None:
        if deciding is not None:
            deciding.cache.forget(token_hashes)
        if shared is not None:
            shared.forget(token_hashes)

    parts = Parts(
        queue=opened.queue,
        ledger=storage.ledger,
        access_list=storage.access_list,
        keyring=storage.keyring,
        metrics=opened.metrics,
        claims=shared,
        components=_components(opened, deciding),
        draining=draining,
        check_address=AddressGuard(settings.callback.allowed_networks).check,
        access_changed=access_changed,
        access_keys=AccessKeys(settings.security.api_keys),
        require_https=settings.callback.require_https,
        max_body_bytes=settings.server.max_body_bytes,
        rate_limit_per_second=settings.server.rate_limit_per_second,
        rate_limit_burst=settings.server.rate_limit_burst,
        metrics_enabled=settings.monitoring.metrics.enabled,
        health_enabled=settings.monitoring.health_check.enabled,
    )
    return build_monitoring(parts) if opened.role == "worker" else build(parts)


def _components(opened: Opened, deciding: Deciding | None) -> dict[str, Callable[[], Awaitable[health.Component]]]:
    """Each process tells of what is in it."""
    settings, storage = opened.settings, opened.storage
    worker = None if deciding is None else deciding.worker
    components: dict[str, Callable[[], Awaitable[health.Component]]] = {
        "queue": partial(health.queue, opened.queue, worker, settings.queue.max_size)
    }
    if deciding is not None:
        components["authorization"] = partial(health.authorization, deciding.authorizer, settings.authorization.backend)
        components["callbacks"] = partial(health.callbacks, deciding.worker)
        components["audit"] = partial(health.audit, storage.feed)
    backend = scheme(settings.database.url)
    components["database"] = partial(health.database, storage.ledger, backend, needed=opened.role != "api")
    if opened.shared is not None:
        components["cache"] = partial(health.cache, opened.shared, "redis")
    return components


class _WorkerLimits(TypedDict):
    retries: RetryPolicy
    concurrency: int
    max_age_ms: int
    deadline_ms: int
    max_parked: int
    max_connections: int
    max_connections_per_destination: int
    circuit_failures: int
    circuit_probe_ms: int


def _worker_limits(settings: Settings) -> _WorkerLimits:
    callback = settings.callback
    return {
        "retries": RetryPolicy(callback.max_attempts, callback.retry_delay_ms, callback.max_retry_after_ms),
        "concurrency": settings.queue.consumer_concurrency,
        "max_age_ms": settings.queue.max_age_ms,
        "deadline_ms": callback.deadline_ms,
        "max_parked": callback.max_parked,
        "max_connections": callback.max_connections,
        "max_connections_per_destination": callback.max_connections_per_destination,
        "circuit_failures": callback.circuit.failure_threshold,
        "circuit_probe_ms": callback.circuit.probe_interval_ms,
    }
