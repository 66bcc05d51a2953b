"""Builds the parts of a process on what it has opened: who decides and calls back, and what answers over HTTP."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Final, NamedTuple

from starlette.types import ASGIApp

from chargegate.api import Parts, Sessions, build, build_monitoring
from chargegate.app.analysing import KEPT_MS, start_analysis
from chargegate.app.authorization import apply_acl_file, build_authorizer, follow_access_list, remember_access_list
from chargegate.app.opening import Opened
from chargegate.app.reloading import Prepare, following_access_keys, following_access_list, following_secrets
from chargegate.at_once import AtOnce
from chargegate.audit.counting import Counting
from chargegate.authorizers.base import Authorizer
from chargegate.authorizers.cache import DecisionCache
from chargegate.authorizers.decider import Decider
from chargegate.config import Callback, scheme
from chargegate.delivering.guard import AddressGuard
from chargegate.delivering.retry import RetryPolicy
from chargegate.delivering.sender import Sender
from chargegate.delivering.signing import Signer
from chargegate.delivering.states import CallbackLimits
from chargegate.engines import engine_of
from chargegate.http1 import HttpClient
from chargegate.keys import AccessKeys
from chargegate.ledger.retention import Dropping, RetentionLimits
from chargegate.observe import Tracing
from chargegate.operations import health
from chargegate.operations.busy_stations import BusyStations
from chargegate.operations.overview import Overviews
from chargegate.operations.processes import Processes, Reporter, Reporting
from chargegate.worker import Worker

_TOLD: Final = ("authorization", "callbacks", "audit", "clock")
"""Components that the other processes do not have, or that may differ between machines."""


class Working(NamedTuple):
    """The worker of this process, who decides for it, what signs its callbacks, whom it asks, which decisions it
    remembers, and what decides requests as they come in; that is None where the queue and the database are not one."""

    worker: Worker
    decider: Decider
    signer: Signer
    authorizer: Authorizer
    remembered: DecisionCache
    at_once: AtOnce | None


async def build_worker(opened: Opened, tracing: Tracing, stack: AsyncExitStack) -> Working:
    settings, access_list, ledger = opened.settings, opened.database.access_list, opened.database.ledger
    await apply_acl_file(settings.authorization.acl_file, access_list, ledger, opened.keyring)
    remembered = DecisionCache(ttl_ms=settings.authorization.cache_ttl_ms)
    caches = [remembered] if opened.cache is None else [remembered, opened.cache]
    await follow_access_list(access_list, caches, stack)
    if settings.authorization.backend == "acl" and settings.authorization.cache_ttl_ms:
        remember_access_list(access_list, remembered, stack)
    authorizer = build_authorizer(settings, access_list, remembered, opened.cache, opened.metrics)
    stack.push_async_callback(authorizer.close)
    callback = settings.callback
    guard = AddressGuard(callback.allowed_networks, callback.blocked_networks)
    client = HttpClient(
        max_connections=callback.max_connections, check_address=guard.check, name_servers=callback.name_servers
    )
    stack.push_async_callback(client.close)
    decider = Decider(
        authorizer, opened.keyring, opened.metrics, max_age_ms=settings.queue.max_age_ms, known=remembered.known
    )
    signer = Signer(callback.signing_secrets)
    worker = Worker(
        queue=opened.queue,
        ledger=ledger,
        decider=decider,
        keyring=opened.keyring,
        sender=Sender(client, signer, opened.metrics, timeout_ms=callback.timeout_ms),
        limits=_callback_limits(callback),
        concurrency=settings.queue.consumer_concurrency,
        metrics=opened.metrics,
        tracing=tracing,
        together=opened.together,
    )
    at_once = None if opened.together is None else AtOnce(opened.together, decider, worker)
    kept = RetentionLimits(
        dead_letters_ms=callback.dead_letter_retention_ms,
        max_dead_letters=callback.max_dead_letters,
        requests_ms=settings.database.retention_ms,
    )
    stack.push_async_callback(Dropping(opened.database.retention, kept, opened.metrics).close)
    stack.push_async_callback(Counting(opened.database.counts, keep_ms=KEPT_MS).close)
    start_analysis(opened, signer, stack)
    return Working(worker, decider, signer, authorizer, remembered, at_once)


def build_surface(
    opened: Opened,
    working: Working | None,
    access_keys: AccessKeys,
    *,
    tracing: Tracing,
    draining: Callable[[], bool],
    no_file: Callable[[], bool],
    keeping: health.AuditState | None,
    stack: AsyncExitStack,
) -> ASGIApp:
    """What this process answers over HTTP. ``working`` is None where no worker is in it. ``no_file``: whether not one
    more file or connection can be opened. ``keeping``: what keeps the audit; None where no worker is in it."""
    settings, database = opened.settings, opened.database
    opened.metrics.queue_max_size.set(settings.queue.max_size)

    def access_changed(token_hashes: frozenset[str]) -> None:
        if working is not None:
            working.remembered.forget(token_hashes)
        if opened.cache is not None:
            opened.cache.forget(token_hashes)

    components = _components(opened, working, no_file, keeping)
    reporter = Reporter(
        role=opened.role,
        metrics=opened.metrics,
        oldest_question_ms=lambda: 0 if working is None else working.worker.oldest_question_ms,
    )
    processes = None
    if opened.presence is not None and opened.queue.capabilities.shared:
        told: dict[str, health.Check] = {name: components[name] for name in _TOLD if name in components}
        stack.push_async_callback(Reporting(reporter, told, database.ledger, opened.presence.name).close)
        processes = Processes(database.ledger, opened.presence.name)
    overview = sessions = None
    if opened.role != "worker" and settings.dashboard.enabled:
        overview = Overviews(
            queue=opened.queue,
            ledger=database.ledger,
            counts=database.counts,
            anomalies=database.anomalies,
            components=components,
            reporter=reporter,
            processes=processes,
            max_size=settings.queue.max_size,
        )
        stack.push_async_callback(overview.close)
        sessions = Sessions(
            keys=access_keys,
            keyring=opened.keyring,
            values=database.ledger,
            idle_ms=settings.dashboard.session_idle_ms,
            max_ms=settings.dashboard.session_max_ms,
        )
    parts = Parts(
        queue=opened.queue,
        ledger=database.ledger,
        counts=database.counts,
        anomalies=database.anomalies,
        metrics=opened.metrics,
        tracing=tracing,
        components=components,
        sessions=sessions,
        overview=overview,
        stations=BusyStations(database.counts),
        draining=draining,
        metrics_enabled=settings.monitoring.metrics.enabled,
        health_enabled=settings.monitoring.health_check.enabled,
        access_list=database.access_list,
        keyring=opened.keyring,
        access_keys=access_keys,
        check_address=AddressGuard(settings.callback.allowed_networks, settings.callback.blocked_networks).check,
        access_changed=access_changed,
        claims=opened.cache,
        queue_size=settings.queue.max_size,
        queue_share=settings.queue.max_share_per_client,
        require_https=settings.callback.require_https,
        max_body_bytes=settings.server.max_body_bytes,
        rate_limit_per_second=settings.server.rate_limit_per_second,
        rate_limit_burst=settings.server.rate_limit_burst,
        at_once=None if working is None or working.at_once is None else working.at_once.put_then,
        allowed_hosts=settings.server.allowed_hosts,
        allowed_origins=settings.server.allowed_origins,
    )
    return build_monitoring(parts) if opened.role == "worker" else build(parts)


def followers(opened: Opened, working: Working | None, access_keys: AccessKeys) -> list[Prepare]:
    """The parts of this process that take up new settings."""
    if working is None:
        return [following_access_keys(access_keys)]
    return [
        following_access_keys(access_keys),
        following_secrets(working.signer),
        following_access_list(opened),
    ]


def _components(
    opened: Opened, working: Working | None, no_file: Callable[[], bool], keeping: health.AuditState | None
) -> dict[str, Callable[[], Awaitable[health.Component]]]:
    """Each process tells of what is in it."""
    settings, ledger = opened.settings, opened.database.ledger
    worker = None if working is None else working.worker
    components: dict[str, Callable[[], Awaitable[health.Component]]] = {
        "queue": partial(health.queue, opened.queue, worker, settings.queue.max_size)
    }
    if working is None:
        components["queue"] = partial(health.needing_files, components["queue"], no_file)
    else:
        backend = settings.authorization.backend
        components["authorization"] = partial(health.authorization, working.authorizer, backend, working.decider)
        callbacks = partial(health.callbacks, working.worker)
        components["callbacks"] = partial(health.needing_files, callbacks, no_file)
        if keeping is not None:
            components["audit"] = partial(health.audit, opened.feeds, keeping)
    database = scheme(settings.database.url)
    components["database"] = partial(health.database, ledger, database, needed=opened.role != "api")
    if opened.clocks is not None:
        components["clock"] = partial(health.clock, opened.clocks)
    if opened.cache is not None:
        components["cache"] = partial(health.cache, opened.cache, engine_of(settings.cache.url).name)
    return components


def _callback_limits(callback: Callback) -> CallbackLimits:
    return CallbackLimits(
        retries=RetryPolicy(callback.max_attempts, callback.retry_delay_ms, callback.max_retry_after_ms),
        deadline_ms=callback.deadline_ms,
        max_parked=callback.max_parked,
        max_connections=callback.max_connections,
        max_connections_per_destination=callback.max_connections_per_destination,
        circuit_failures=callback.circuit.failure_threshold,
        circuit_probe_ms=callback.circuit.probe_interval_ms,
        circuit_forget_ms=callback.circuit.forget_after_ms,
    )
