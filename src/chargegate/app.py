"""Builds the parts and joins them, opens and closes them in order. The only place that does."""

import asyncio
import contextlib
import ipaddress
import random
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
from chargegate.audit.base import AuditRow
from chargegate.audit.csv_file import CsvFile
from chargegate.audit.feed import AuditFeed
from chargegate.authorizers.acl import AclAuthorizer
from chargegate.authorizers.acl_entries import AclLineError, read_csv
from chargegate.authorizers.base import Authorizer
from chargegate.authorizers.breaker import CircuitBreaker
from chargegate.authorizers.cache import Cached, DecisionCache
from chargegate.authorizers.deadline import Deadline
from chargegate.authorizers.http import HttpAuthorizer
from chargegate.authorizers.simulated import SimulatedAuthorizer
from chargegate.callbacks.deliver import Sender
from chargegate.callbacks.guard import AddressGuard
from chargegate.callbacks.schedule import RetryPolicy
from chargegate.callbacks.signing import Signer
from chargegate.config import Settings
from chargegate.http1 import HttpClient
from chargegate.ledger import migrations
from chargegate.ledger.access_list import SqliteAccessList
from chargegate.ledger.base import AccessEntry, AccessList, DeadLetter, Ledger, LedgerUnavailable
from chargegate.ledger.sqlite import SqliteLedger
from chargegate.model import now_ms, parse_callback_url
from chargegate.queues import sqlite as sqlite_queue
from chargegate.queues.base import Message, Queue
from chargegate.queues.envelope import unwrap, wrap
from chargegate.queues.memory import MemoryQueue
from chargegate.secrets import SEALED_PREFIX, AccessKeys, KeyFileError, Keyring, open_keyring
from chargegate.sqlite import SqliteStore, StoreError
from chargegate.telemetry import Metrics, log
from chargegate.worker import Worker

DATABASE = "chargegate.db"
_FOLLOW_S = 0.25


class StartError(Exception):
    """The service cannot start, or a command cannot do its work. The message is one line and says what to change."""


class Offline(msgspec.Struct, frozen=True):
    """What a command uses, with or without a running service beside it. ``replay`` puts a dead letter back into the
    queue, and raises ``StartError`` where the queue lives in another process's memory."""

    ledger: Ledger
    access_list: AccessList
    keyring: Keyring
    replay: Callable[[DeadLetter], Awaitable[None]]


async def serve(settings: Settings, *, ready: Callable[[str], None] | None = None) -> None:
    """The API and the worker in one process, until SIGTERM or SIGINT; then a drain.

    ``ready`` is given the base URL once requests are accepted. Raises ``StartError``.
    """
    _refuse_open_door(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    grace_s = settings.server.shutdown_grace_ms / 1000
    async with AsyncExitStack() as stack:
        log.attach(loop)
        stack.callback(log.detach)
        store, keyring = await _open_store(settings, stack, exclusive=True)
        metrics = Metrics()
        feed = _audit_feed(settings, metrics)
        ledger = SqliteLedger(store, partial(_audited, metrics, feed))
        access_list = SqliteAccessList(store)
        queue = await _open_queue(settings, store, keyring, stack)
        if feed is not None:
            await _start_feed(feed, ledger, stack)
        await _read_acl_file(settings.authorization.acl_file, access_list, keyring)

        cache = DecisionCache(ttl_ms=settings.authorization.cache_ttl_ms)
        await _follow_access_list(access_list, cache, stack)
        authorizer = _authorizer(settings, access_list, cache, metrics)
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
            )
        except OSError as error:
            raise StartError(f"server.port: {error}") from None
        stack.push_async_callback(server.stop, 1.0)
        worker.start()
        url = f"http://{settings.server.host}:{server.port}"
        log.info("ready", url=url, queue=settings.queue.url, authorization=settings.authorization.backend)
        if ready is not None:
            ready(url)
        await stop.wait()
        draining.set()
        log.info("draining", grace_ms=settings.server.shutdown_grace_ms)
        await worker.drain(grace_s)
    log.info("stopped")


@asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[Offline]:
    """The database for a command; a running service goes on using it. Raises ``StartError``."""
    async with AsyncExitStack() as stack:
        store, keyring = await _open_store(settings, stack, exclusive=False)
        queue = None
        if settings.queue.url == "sqlite":
            queue = await _open_queue(settings, store, keyring, stack)

        async def replay(letter: DeadLetter) -> None:
            if queue is None:
                raise StartError("queue.url is memory://: only the serving process can replay, over HTTP")
            await _replay(queue, keyring, letter)

        yield Offline(SqliteLedger(store), SqliteAccessList(store), keyring, replay)


async def _open_store(settings: Settings, stack: AsyncExitStack, *, exclusive: bool) -> tuple[SqliteStore, Keyring]:
    folder = settings.data_path
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"data_dir: {folder}: {error.strerror}") from None
    try:
        store = await SqliteStore.open(
            folder / DATABASE, {"queue": sqlite_queue.MIGRATIONS, "ledger": migrations.SQLITE}, exclusive=exclusive
        )
        stack.push_async_callback(store.close)
        keyring = open_keyring(folder, settings.security.encryption_keys, settings.security.token_hash_key)
    except (StoreError, KeyFileError) as error:
        raise StartError(f"data_dir: {error}") from None
    ledger = SqliteLedger(store)
    if await ledger.fact("token_hash_key", keyring.hash_key_id) != keyring.hash_key_id:
        raise StartError(
            "security.token_hash_key: not the key that this database's tokens were hashed with,"
            " so that no driver would be found"
        )
    _refuse_unknown_keys(keyring, await ledger.sealed_prefixes(SEALED_PREFIX), "dead letters")
    return store, keyring


async def _open_queue(settings: Settings, store: SqliteStore, keyring: Keyring, stack: AsyncExitStack) -> Queue:
    if settings.queue.url == "memory://":
        log.warning("queue.url is memory://: what is waiting is lost when this process ends")
        return MemoryQueue(settings.queue.max_size)
    queue = await sqlite_queue.SqliteQueue.open(store, settings.queue.max_size)
    stack.push_async_callback(queue.close)
    _refuse_unknown_keys(keyring, await queue.beginnings(SEALED_PREFIX), "waiting requests")
    return queue


def _refuse_unknown_keys(keyring: Keyring, beginnings: frozenset[bytes], what: str) -> None:
    for beginning in beginnings:
        if not keyring.knows(beginning):
            raise StartError(
                f"security.encryption_keys: {what} are sealed with the key {beginning[1:].hex()}, which is missing;"
                " keep a key in the list until nothing is sealed with it"
            )


def _refuse_open_door(settings: Settings) -> None:
    host = settings.server.host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not (loopback or settings.security.api_keys or settings.security.allow_anonymous):
        raise StartError(
            f"server.host: {host} is reachable by others and security.api_keys is empty; make keys with"
            " `chargegate keys create`, or set security.allow_anonymous = true"
        )


def _audit_feed(settings: Settings, metrics: Metrics) -> AuditFeed | None:
    if not settings.audit.csv_path:
        return None
    path = Path(settings.audit.csv_path)
    try:
        return AuditFeed(CsvFile(path), metrics)
    except OSError as error:
        raise StartError(f"audit.csv_path: {path}: {error.strerror}") from None


def _audited(metrics: Metrics, feed: AuditFeed | None, rows: list[AuditRow]) -> None:
    metrics.audit_entries.labels("database").inc(len(rows))
    if feed is not None:
        feed.offer(rows)


async def _start_feed(feed: AuditFeed, ledger: SqliteLedger, stack: AsyncExitStack) -> None:
    save = partial(ledger.save_sink_position, feed.name)
    await feed.start(await ledger.sink_position(feed.name), ledger.audit_after, save)
    stack.push_async_callback(feed.close, save)


async def _read_acl_file(name: str, access_list: AccessList, keyring: Keyring) -> None:
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


async def _follow_access_list(access_list: AccessList, cache: DecisionCache, stack: AsyncExitStack) -> None:
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


def _authorizer(settings: Settings, access_list: AccessList, cache: DecisionCache, metrics: Metrics) -> Authorizer:
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
