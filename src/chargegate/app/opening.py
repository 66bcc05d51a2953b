"""Opens what a process stands on, in this order: keys, database, queue, shared cache. They are closed in the other."""

import stat
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from chargegate.app.auditing import SinkError, audited, build_feeds, start_feeds
from chargegate.app.clocks import ClockWatch
from chargegate.app.presence import Presence
from chargegate.app.process import Role, process_name
from chargegate.audit.base import Feed
from chargegate.config import Settings
from chargegate.engines import Database, Engine, Place, QueueLimits, Registry, engine_of
from chargegate.keys import SEALED_PREFIX, KeyFileError, Keyring, open_keyring
from chargegate.ledger.base import Ledger, LedgerUnavailable
from chargegate.ledger.records import AuditRow
from chargegate.model import now_ms
from chargegate.observe import Metrics, log
from chargegate.queues.base import Queue
from chargegate.storage.unavailable import Unavailable, Unusable


class StartError(Exception):
    """The service cannot start, or a command cannot do its work. The message is one line and says what to change."""


class Opened(NamedTuple):
    """What a process holds open. ``feeds`` are the audit sinks that it keeps. ``together`` is None where the queue and
    the database are not one, ``cache`` where it shares none, ``presence`` where it has no name, and ``clocks`` where no
    server is there to compare with. ``keys_checked`` is False where the database was away: see ``check_keys``."""

    settings: Settings
    role: Role
    metrics: Metrics
    keyring: Keyring
    database: Database
    keys_checked: bool
    feeds: list[Feed]
    queue: Queue
    together: Any
    cache: Any
    presence: Presence | None
    clocks: ClockWatch | None


async def open_parts(settings: Settings, role: Role, stack: AsyncExitStack) -> Opened:
    """For a process that serves. An ``api`` goes on without a database that is away. Raises ``StartError``, and
    ``LedgerUnavailable`` where the database fails while it is asked."""
    metrics = Metrics()
    folder = made_folder(settings)
    metrics.disks.watch("data", folder)
    registries = _open_registries(settings, stack)
    presence = await _present(settings, role, registries, stack)
    place = Place(folder=folder, exclusive=role != "api", process="" if presence is None else presence.name)
    clocks = await _compared(registries, metrics, stack)
    keyring = open_keys(settings)
    with naming_sink():
        feeds = [] if role == "api" else build_feeds(settings.audit, place, metrics, keyring)
    needed = role != "api" or engine_of(settings.database.url).in_folder
    on_audit = partial(audited, metrics, feeds)
    url = settings.database.url
    database = await database_at("database.url", url, place, stack, on_audit=on_audit, needed=needed)
    keys_checked = True
    try:
        await check_keys(keyring, database.ledger)
    except LedgerUnavailable as error:
        if needed:
            raise
        keys_checked = False
        log.warning("the database is away; requests are accepted without it", error=str(error))
    with naming_sink():
        await start_feeds(feeds, database.ledger, stack)
    queue = await _open_service_queue(settings, place, database, keyring, stack)
    engine = engine_of(url)
    joined = engine.together and engine is engine_of(settings.queue.url)
    together = engine.load().join(place, queue, database) if joined else None
    cache = _open_cache(settings, stack)
    return Opened(
        settings, role, metrics, keyring, database, keys_checked, feeds, queue, together, cache, presence, clocks
    )


def made_folder(settings: Settings) -> Path:
    """``data_dir``, which is there now, and in which nobody else can put other files in the place of ours."""
    folder = settings.data_path
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError as error:
        raise StartError(f"data_dir: {folder}: {error.strerror}") from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StartError(f"data_dir: {folder}: other users may write to it (mode {mode:04o}); run: chmod go-w {folder}")
    return folder


def _open_registries(settings: Settings, stack: AsyncExitStack) -> dict[str, Registry]:
    """By the keys of their URLs, first the queue's: it is the queue in which requests grow old."""
    registries: dict[str, Registry] = {}
    urls = {"queue.url": settings.queue.url, "database.url": settings.database.url, "cache.url": settings.cache.url}
    for key, url in urls.items():
        engine = engine_of(url)
        if engine.has_registry and url not in [urls[opened] for opened in registries]:
            with naming(key, engine, settings.data_path):
                registries[key] = engine.load().open_registry(url)
            stack.push_async_callback(registries[key].close)
    return registries


async def _present(
    settings: Settings, role: Role, registries: dict[str, Registry], stack: AsyncExitStack
) -> Presence | None:
    """This process's name; none is needed where it shares nothing. An ``api`` writes nothing under its name."""
    urls = {"queue.url": settings.queue.url, "database.url": settings.database.url}
    if not any(engine_of(url).capabilities.shared for url in urls.values()):
        return None
    try:
        name = stack.enter_context(process_name(settings.data_path, role))
    except OSError as error:
        raise StartError(f"data_dir: {settings.data_path}: {error.strerror}") from None
    # In the order in which they are opened, so that the first one that is away is the one that is told.
    asked = {} if role == "api" else {key: registries[key] for key in reversed(urls) if key in registries}
    presence = Presence(name, asked)
    stack.push_async_callback(presence.close)
    try:
        await presence.take()
    except (Unavailable, Unusable) as error:
        raise StartError(f"{presence.asking}: {error}") from None
    return presence


async def _compared(registries: dict[str, Registry], metrics: Metrics, stack: AsyncExitStack) -> ClockWatch | None:
    for key, registry in registries.items():
        clocks = ClockWatch(registry, key.partition(".")[0], metrics)
        stack.push_async_callback(clocks.close)
        await clocks.start()
        return clocks
    return None


def open_keys(settings: Settings) -> Keyring:
    security = settings.security
    try:
        return open_keyring(settings.data_path, security.encryption_keys, security.token_hash_key)
    except KeyFileError as error:
        raise StartError(f"data_dir: {error}") from None


async def database_at(
    key: str,
    url: str,
    place: Place,
    stack: AsyncExitStack,
    *,
    on_audit: Callable[[list[AuditRow]], None] | None = None,
    needed: bool = True,
) -> Database:
    """The database that a URL names; ``key`` is what named it, for errors. See ``EngineModule.open_database``. Raises
    ``StartError``."""
    engine = engine_of(url)
    with naming(key, engine, place.folder):
        database = await engine.load().open_database(url, place, on_audit, needed=needed)
    stack.push_async_callback(database.close)
    return database


async def checked_database(settings: Settings, place: Place, keyring: Keyring, stack: AsyncExitStack) -> Database:
    """The database of the settings, which goes with the keys. Raises ``StartError``."""
    database = await database_at("database.url", settings.database.url, place, stack)
    with naming_database(settings):
        await check_keys(keyring, database.ledger)
    return database


async def check_keys(keyring: Keyring, ledger: Ledger) -> None:
    """Raises ``StartError`` if the database's tokens were hashed, or its dead letters sealed, with keys that are not
    at hand."""
    if await ledger.put_value_if_absent("token_hash_key", keyring.hash_key_id) != keyring.hash_key_id:
        raise StartError(
            "security.token_hash_key: not the key that this database's tokens were hashed with,"
            " so that no driver would be found"
        )
    _refuse_unknown_keys(keyring, await ledger.sealed_prefixes(SEALED_PREFIX), "dead letters")


def _refuse_unknown_keys(keyring: Keyring, prefixes: frozenset[bytes], what: str) -> None:
    for prefix in prefixes:
        if len(prefix) < SEALED_PREFIX:  # no service sealed that, so that no key is missing for it
            continue
        if not keyring.knows_form(prefix):
            raise StartError(f"{what} are sealed in a form that this release does not know")
        if not keyring.knows(prefix):
            raise StartError(
                f"security.encryption_keys: {what} are sealed with the key {prefix[1:].hex()}, which is missing;"
                " keep a key in the list until nothing is sealed with it"
            )


async def _open_service_queue(
    settings: Settings, place: Place, database: Database, keyring: Keyring, stack: AsyncExitStack
) -> Queue:
    """Requests that an earlier process left in its memory come to an end. Those that it left in the folder's queue,
    which ``queue.url`` does not name now, are not lost, but nobody decides them."""
    url = settings.queue.url
    left_behind = await _left_behind(settings, place)
    if engine_of(url).within_process:
        log.warning(f"queue.url is {url}: what is waiting is lost when this process ends")
        if lost := await database.ledger.fail_lost(left_behind, now_ms()):
            log.warning("requests were lost with an earlier process's queue", requests=lost)
    queue = await open_queue(settings, place, keyring, stack)
    if left_behind:
        log.warning(
            "requests wait in the embedded queue, which queue.url does not name;"
            f" `chargegate queue move --from {settings.database.url}` takes them along",
            requests=len(left_behind),
        )
    return queue


async def _left_behind(settings: Settings, place: Place) -> frozenset[str]:
    engine = engine_of(settings.database.url)
    if not engine.in_folder or engine is engine_of(settings.queue.url):
        return frozenset()
    with naming("database.url", engine, place.folder):
        return await engine.load().waiting_in_folder(place)


async def open_queue(settings: Settings, place: Place, keyring: Keyring, stack: AsyncExitStack) -> Queue:
    """The queue of the settings. Raises ``StartError``, also where its server is away or refuses."""
    url = settings.queue.url
    limits = QueueLimits(
        max_size=settings.queue.max_size,
        lease_ms=settings.queue.lease_ms,
        prefetch=settings.queue.consumer_concurrency,
    )
    queue = await queue_at("queue.url", url, place, stack, limits=limits, keyring=keyring)
    if queue.capabilities.shared:
        with naming("queue.url", engine_of(url), place.folder):
            await queue.check()
    return queue


async def queue_at(
    key: str, url: str, place: Place, stack: AsyncExitStack, *, limits: QueueLimits, keyring: Keyring | None
) -> Queue:
    """The queue that a URL names; ``key`` is what named it, for errors. One in the folder must hold nothing that the
    ``keyring`` cannot open. Raises ``StartError``."""
    engine = engine_of(url)
    with naming(key, engine, place.folder):
        module = engine.load()
        queue = await module.open_queue(url, place, limits)
        stack.push_async_callback(queue.close)
        if engine.in_folder and keyring is not None:
            sealed = await module.sealed_prefixes_in_folder(place, SEALED_PREFIX)
            _refuse_unknown_keys(keyring, sealed, "waiting requests")
    return queue


def _open_cache(settings: Settings, stack: AsyncExitStack) -> Any:
    url = settings.cache.url
    engine = engine_of(url)
    with naming("cache.url", engine, settings.data_path):
        cache = engine.load().open_cache(url, ttl_ms=settings.authorization.cache_ttl_ms)
    if cache is not None:
        stack.push_async_callback(cache.close)
    return cache


@contextmanager
def naming(key: str, engine: Engine, folder: Path) -> Iterator[None]:
    """Where an engine cannot be opened, a ``StartError`` that names the key of its URL, or the folder that it lies
    in."""
    try:
        yield
    except ImportError as error:
        missing = error.name or "a module"
        raise StartError(f"{key}: needs `pip install 'chargegate[{engine.extra}]'` ({missing} is missing)") from None
    except (Unusable, ValueError) as error:
        raise StartError(f"{'data_dir' if engine.in_folder else key}: {error}") from None
    except Unavailable as error:
        raise StartError(f"{_where(key, engine, folder)}: {error}") from None


@contextmanager
def naming_database(settings: Settings) -> Iterator[None]:
    """Where the database that is open fails, a ``StartError`` that says which."""
    try:
        yield
    except LedgerUnavailable as error:
        raise StartError(f"{database_place(settings)}: {error}") from None


def database_place(settings: Settings) -> str:
    """What errors call the database."""
    return _where("database.url", engine_of(settings.database.url), settings.data_path)


def _where(key: str, engine: Engine, folder: Path) -> str:
    return f"data_dir: {folder / engine.file}" if engine.in_folder else key


@contextmanager
def naming_sink() -> Iterator[None]:
    """Where an audit sink cannot be opened, a ``StartError`` that names its key."""
    try:
        yield
    except SinkError as error:
        raise StartError(str(error)) from None
