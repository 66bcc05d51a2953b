"""Opens what a command uses. All but the moves run beside a running service."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from chargegate.app.opening import (
    StartError,
    check_keys,
    checked_database,
    database_at,
    database_place,
    made_folder,
    naming,
    naming_database,
    open_keys,
    open_queue,
    queue_at,
)
from chargegate.config import ConfigError, Settings, check_lease, check_url
from chargegate.engines import EMBEDDED, ENGINES, Place, QueueLimits, engine_of
from chargegate.keys import Keyring
from chargegate.ledger.anomalies import Anomalies
from chargegate.ledger.base import AccessList, Ledger, LedgerUnavailable
from chargegate.ledger.chain import AuditChain
from chargegate.ledger.copying import copy
from chargegate.ledger.counts import STEP, DecisionCounts
from chargegate.ledger.exports import AuditExports
from chargegate.ledger.transfer import Unmergeable, WaitingRequest
from chargegate.operations.moving import MOVED_AT_ONCE, Side, count_undecided, named
from chargegate.operations.moving import move_queue as move_all
from chargegate.operations.replaying import Replayed, replay_delivered
from chargegate.operations.story import Story, story_of
from chargegate.queues.base import Message, Queue
from chargegate.queues.envelope import client_of

_COMMAND: Final = "command"
"""The name of the process that runs a command. It receives nothing from a queue."""

_ROOM: Final = 1_000_000_000  # what was accepted once is not refused now


class Offline(msgspec.Struct, frozen=True):
    """What a command works on. ``open_queue`` raises ``StartError`` where no other process reaches the queue."""

    ledger: Ledger
    counts: DecisionCounts
    anomalies: Anomalies
    access_list: AccessList
    chain: AuditChain
    exports: AuditExports
    keyring: Keyring
    open_queue: Callable[[], Awaitable[Queue]]


@asynccontextmanager
async def opened_store(settings: Settings, *, made: Callable[[Path], None] | None = None) -> AsyncIterator[Offline]:
    """The database for a command; a running service goes on using it. Where there is none, one is made and ``made`` is
    told the folder, or without ``made`` that is an error. Raises ``StartError``."""
    folder = settings.data_path
    missing = engine_of(settings.database.url).in_folder and _lacks_database(settings)
    if missing and made is None:
        raise StartError(f"data_dir: {folder} has no database; `chargegate serve` or `chargegate acl add` makes one")
    async with AsyncExitStack() as stack:
        place = Place(folder=made_folder(settings), exclusive=False, process=_COMMAND, patient=True)
        keyring = open_keys(settings)
        database = await checked_database(settings, place, keyring, stack)
        if missing and made is not None:
            made(folder)

        async def open_reachable() -> Queue:
            url = settings.queue.url
            if engine_of(url).within_process:
                raise StartError(f"queue.url is {url}: only the serving process can replay, over HTTP")
            return await open_queue(settings, place, keyring, stack)

        try:
            yield Offline(
                database.ledger,
                database.counts,
                database.anomalies,
                database.access_list,
                database.chain,
                database.exports,
                keyring,
                open_reachable,
            )
        except LedgerUnavailable as error:
            raise LedgerUnavailable(f"{database_place(settings)}: {error}") from None


async def tell_story(settings: Settings, request_id: str, lines: Iterable[dict[str, Any]]) -> Story | None:
    """See ``operations.story.story_of``. Raises also ``StartError``."""
    in_reach = not engine_of(settings.queue.url).within_process
    async with opened_store(settings) as store:
        return await story_of(store.ledger, store.open_queue if in_reach else None, store.keyring, request_id, lines)


async def replay_from(settings: Settings, start: int | datetime, on_read: Callable[[Replayed], None]) -> None:
    """Send decisions again for what the queue still holds, from an offset in each partition or from the time of its
    acceptance, up to the queue's end as it is now. See ``operations.replaying.replay_delivered``. Raises also
    ``StartError`` where nothing was read."""
    engine = engine_of(settings.queue.url)
    if not engine.keeps_delivered:
        keeping = ", ".join(url for each in ENGINES if each.keeps_delivered for url in each.urls)
        raise StartError(f"queue.url: only {keeping} keeps what was delivered; see `chargegate dead-letters replay`")
    if engine_of(settings.database.url).in_folder and _lacks_database(settings):
        raise StartError(f"data_dir: {settings.data_path} has no database, and so no decision to send again")
    accepted_from = round(start.timestamp() * 1000) if isinstance(start, datetime) else 0
    async with AsyncExitStack() as stack:
        place = Place(folder=made_folder(settings), exclusive=False, process=_COMMAND, patient=True)
        keyring = open_keys(settings)
        database = await checked_database(settings, place, keyring, stack)
        queue = await open_queue(settings, place, keyring, stack)
        messages = await stack.enter_async_context(aclosing(engine.load().messages_from(settings.queue.url, start)))
        await replay_delivered(
            messages, accepted_from, queue=queue, ledger=database.ledger, keyring=keyring, on_read=on_read
        )


def check_queue(url: str) -> None:
    """Raises ``ConfigError`` unless a command can reach the queue that the URL names."""
    check_url("queue.url", url)
    if engine_of(url).within_process:
        raise ConfigError(f"queue.url: {url} is within a process, where no command reaches it")


def check_target(url: str) -> None:
    """Raises ``ConfigError`` unless the URL names a database that the embedded one can be copied into."""
    check_url("database.url", url, lambda engine: not engine.in_folder)


async def move_queue(settings: Settings, source_url: str, target_url: str, on_moved: Callable[[int], None]) -> None:
    """Move all that waits in one queue to another; see ``operations.moving.move_queue``. While the embedded file is
    one of the sides, no service runs on it. Raises also ``StartError`` where nothing was moved."""
    lease_ms = settings.queue.lease_ms
    check_lease(source_url, lease_ms)
    from_engine, to_engine = engine_of(source_url), engine_of(target_url)
    async with AsyncExitStack() as stack:
        # The name is the same when the move is run again, so that it goes on with what it held.
        place = Place(folder=settings.data_path, exclusive=True, process=f"{socket.gethostname()}-move", patient=True)
        keyring = database = None
        if from_engine.in_folder:
            _refuse_without_database(settings)
        if from_engine.in_folder or to_engine.in_folder:
            made_folder(settings)
            keyring = open_keys(settings)
            database = await checked_database(settings, place, keyring, stack)
        limits = QueueLimits(max_size=settings.queue.max_size, lease_ms=lease_ms, prefetch=MOVED_AT_ONCE)
        source = await queue_at("--from", source_url, place, stack, limits=limits, keyring=keyring)
        with named("--from"):
            await source.check()
            room = max(settings.queue.max_size, (await source.depth()).waiting) if to_engine.keeps_size else _ROOM
        limits = QueueLimits(max_size=room, lease_ms=lease_ms, prefetch=settings.queue.consumer_concurrency)
        target = await queue_at("--to", target_url, place, stack, limits=limits, keyring=keyring)
        if from_engine.in_folder and database is not None and engine_of(settings.database.url) is not from_engine:
            await _refuse_deciding_again(settings, place, database.ledger)
        with named("--to"):
            await target.check()
        await move_all(Side("--from", source), Side("--to", target), lease_ms / 1000, on_moved)


async def _refuse_deciding_again(settings: Settings, place: Place, ledger: Ledger) -> None:
    """A request that goes to workers on another database must not be decided there a second time."""
    with naming("--from", EMBEDDED, place.folder):
        decided = await EMBEDDED.load().waiting_in_folder(place, decided=True)
    with naming_database(settings):
        missing = await count_undecided(ledger, sorted(decided))
    if missing:
        raise StartError(
            f"{missing} of the waiting requests have a decision in the embedded database that database.url does not"
            " have, and would be decided again; `chargegate database move` comes first"
        )


async def move_database(settings: Settings, target_url: str, on_copied: Callable[[str, int], None]) -> None:
    """Copy the embedded database into another, while no service runs on it; see ``ledger.copying.copy``.
    Raises ``LedgerUnavailable``, and ``StartError`` where nothing was copied."""
    _refuse_without_database(settings)
    engine = engine_of(target_url)
    async with AsyncExitStack() as stack:
        place = Place(folder=settings.data_path, exclusive=True, patient=True)
        keyring = open_keys(settings)
        with naming("--from", EMBEDDED, place.folder):
            source = await EMBEDDED.load().source(place)
            stack.push_async_callback(source.close)
            embedded = await database_at("--from", EMBEDDED.urls[0], place, stack)
            await check_keys(keyring, embedded.ledger)
        there = await database_at("--to", target_url, place, stack)
        try:
            with named("--to"):
                await check_keys(keyring, there.ledger)
        except StartError as error:
            raise StartError(f"--to: {error}") from None
        with naming("--to", engine, place.folder):
            target = await engine.load().target(target_url)
        stack.push_async_callback(target.close)
        with named("data_dir"):
            while await embedded.counts.count_more(STEP):  # counts of rows that were dropped are told from others'
                pass
        try:
            await copy(
                source,
                target,
                on_copied,
                client_of=partial(_client_of, keyring),
                source_name="data_dir",
                target_name="--to",
            )
        except ValueError as error:
            raise LedgerUnavailable(f"--to: {error}") from None
        except Unmergeable as error:
            raise StartError(f"--to: {error}") from None


def _client_of(keyring: Keyring, waiting: WaitingRequest) -> str:
    return client_of(keyring, Message(waiting.request_id, waiting.station_id, waiting.accepted_at, waiting.body))


def _lacks_database(settings: Settings) -> bool:
    """Whether there is no embedded database. Raises ``StartError``."""
    try:
        return not (settings.data_path / EMBEDDED.file).exists()
    except OSError as error:
        raise StartError(f"data_dir: {settings.data_path}: {error.strerror}") from None


def _refuse_without_database(settings: Settings) -> None:
    if _lacks_database(settings):
        raise StartError(f"data_dir: {settings.data_path} has no database")
