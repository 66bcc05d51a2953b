"""Joins the parts, opens and closes them in order."""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypedDict

import msgspec

from chargegate import health
from chargegate.api import Parts, build
from chargegate.api.server import Server
from chargegate.app.authorization import apply_acl_file, build_authorizer, follow_access_list
from chargegate.app.open_files import inbound_connections
from chargegate.app.storage import (
    DATABASE,
    StartError,
    audit_feed,
    audited,
    database_named,
    open_queue,
    open_store,
    start_feed,
)
from chargegate.authorizers.cache import DecisionCache
from chargegate.callbacks.deliver import Sender
from chargegate.callbacks.guard import AddressGuard
from chargegate.callbacks.schedule import RetryPolicy
from chargegate.callbacks.signing import Signer
from chargegate.config import Settings
from chargegate.http1 import HttpClient
from chargegate.ledger.access_list import SqliteAccessList
from chargegate.ledger.base import AccessList, DeadLetter, Ledger
from chargegate.ledger.sqlite import SqliteLedger
from chargegate.model import now_ms
from chargegate.queues.base import Message, Queue
from chargegate.queues.envelope import unwrap, wrap
from chargegate.secrets import AccessKeys, Keyring
from chargegate.telemetry import Metrics, log
from chargegate.worker import Worker


class Offline(msgspec.Struct, frozen=True):
    """What a command uses, with or without a running service beside it. ``replay`` puts a dead letter back into the
    queue, and raises ``StartError`` where the queue lives in another process's memory."""

    ledger: Ledger
    access_list: AccessList
    keyring: Keyring
    replay: Callable[[DeadLetter], Awaitable[None]]


async def serve(settings: Settings, *, ready: Callable[[str], None] | None = None) -> None:
    """The API and the worker in one process, until SIGTERM or SIGINT; then a drain, which a second one cuts short.

    ``ready`` is given the base URL once requests are accepted. Raises ``StartError``.
    """
    stop, at_once = _signals()
    outgoing = settings.callback.max_connections + settings.queue.consumer_concurrency
    max_connections = inbound_connections(outgoing)
    async with AsyncExitStack() as stack:
        stack.enter_context(database_named(settings))
        log.attach()
        stack.callback(log.detach)
        store, keyring = await open_store(settings, stack, exclusive=True)
        metrics = Metrics()
        feed = audit_feed(settings, metrics)
        ledger = SqliteLedger(store, partial(audited, metrics, feed))
        access_list = SqliteAccessList(store)
        queue = await open_queue(settings, store, keyring, stack)
        if feed is not None:
            await start_feed(feed, settings.audit.csv_path, ledger, stack)
        await apply_acl_file(settings.authorization.acl_file, access_list, ledger, keyring)

        cache = DecisionCache(ttl_ms=settings.authorization.cache_ttl_ms)
        await follow_access_list(access_list, cache, stack)
        authorizer = build_authorizer(settings, access_list, cache, metrics)
        stack.push_async_callback(authorizer.close)
        guard = AddressGuard(settings.callback.allowed_networks)
        client = HttpClient(max_connections=settings.callback.max_connections, check_address=guard.check)
        stack.push_async_callback(client.close)
        sender = Sender(
            client, Signer(settings.callback.signing_secrets), metrics, timeout_ms=settings.callback.timeout_ms
        )
        worker = Worker(
            queue=queue,
            ledger=ledger,
            authorizer=authorizer,
            keyring=keyring,
            sender=sender,
            metrics=metrics,
            **_worker_limits(settings),
        )

        draining = asyncio.Event()
        server = Server()
        api = build(
            Parts(
                queue=queue,
                ledger=ledger,
                access_list=access_list,
                keyring=keyring,
                access_keys=AccessKeys(settings.security.api_keys),
                check_address=guard.check,
                metrics=metrics,
                access_changed=cache.forget,
                replay=partial(_replay, queue, keyring),
                components={
                    "queue": partial(health.queue, queue, worker, settings.queue.max_size),
                    "authorization": partial(health.authorization, authorizer, settings.authorization.backend),
                    "callbacks": partial(health.callbacks, worker),
                    "audit": partial(health.audit, feed),
                    "database": partial(health.database, ledger, settings.database.url),
                },
                require_https=settings.callback.require_https,
                max_body_bytes=settings.server.max_body_bytes,
                rate_limit_per_second=settings.server.rate_limit_per_second,
                rate_limit_burst=settings.server.rate_limit_burst,
                metrics_enabled=settings.monitoring.metrics.enabled,
                health_enabled=settings.monitoring.health_check.enabled,
                draining=draining.is_set,
            )
        )
        try:
            await server.start(
                api,
                settings.server.host,
                settings.server.port,
                request_timeout_ms=settings.server.request_timeout_ms,
                max_connections=max_connections,
            )
        except OSError as error:
            raise StartError(f"server.port: {error}") from None
        stack.push_async_callback(server.stop, 1.0)
        # What is there now stays, and a request leaves few cycles behind: looking for them is a tenth of its cost.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        worker.start()
        url = f"http://{_authority(settings.server.host)}:{server.port}"
        log.info(
            "ready",
            url=url,
            queue=settings.queue.url,
            authorization=settings.authorization.backend,
            max_connections=max_connections,
        )
        if ready is not None:
            ready(url)
        await stop.wait()
        draining.set()
        log.info("draining", grace_ms=settings.server.shutdown_grace_ms)
        await _drain(worker, settings.server.shutdown_grace_ms / 1000, at_once)
    log.info("stopped")


@asynccontextmanager
async def opened_store(settings: Settings, *, made: Callable[[Path], None] | None = None) -> AsyncIterator[Offline]:
    """The database for a command; a running service goes on using it. Where there is none, one is made and ``made`` is
    told the folder, or without ``made`` that is an error. Raises ``StartError``."""
    folder = settings.data_path
    try:
        missing = not (folder / DATABASE).exists()
    except OSError as error:
        raise StartError(f"data_dir: {folder}: {error.strerror}") from None
    if missing and made is None:
        raise StartError(f"data_dir: {folder} has no database; `chargegate serve` or `chargegate acl add` makes one")
    async with AsyncExitStack() as stack:
        stack.enter_context(database_named(settings))
        store, keyring = await open_store(settings, stack, exclusive=False)
        if missing and made is not None:
            made(folder)
        queue = None
        if settings.queue.url == "sqlite":
            queue = await open_queue(settings, store, keyring, stack)

        async def replay(letter: DeadLetter) -> None:
            if queue is None:
                raise StartError("queue.url is memory://: only the serving process can replay, over HTTP")
            await _replay(queue, keyring, letter)

        yield Offline(SqliteLedger(store), SqliteAccessList(store), keyring, replay)


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Set by the first SIGTERM or SIGINT, and by the next."""
    first, second = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled)
    return first, second


async def _drain(worker: Worker, grace_s: float, at_once: asyncio.Event) -> None:
    draining = asyncio.create_task(worker.drain(grace_s))
    hurry = asyncio.create_task(at_once.wait())
    await asyncio.wait((draining, hurry), return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    if not draining.done():
        log.info("ending at once, by a second signal")
        draining.cancel()
        await asyncio.wait((draining,))
        draining = asyncio.create_task(worker.drain(0))
    await draining


def _authority(host: str) -> str:
    """RFC 3986, 3.2.2."""
    return f"[{host}]" if ":" in host else host


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


async def _replay(queue: Queue, keyring: Keyring, letter: DeadLetter) -> None:
    """Raises ``CannotOpen``, ``QueueFull`` or ``QueueUnavailable``."""
    at = max(now_ms(), letter.failed_at + 1)
    request, _ = unwrap(keyring, Message(letter.request_id, letter.station_id, at, letter.sealed))
    await queue.put(wrap(keyring, request, replayed_at=at))
