"""Runs a process: opens the parts in order, joins them, and closes them in the other."""

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple, TypeVar

from starlette.types import ASGIApp

from chargegate.api.server import Server
from chargegate.app.building import Opened, build_surface, build_worker, open_shared_cache
from chargegate.app.open_files import inbound_connections
from chargegate.app.queueing import OF_ONE_PROCESS, open_queue, warn_of_left_behind
from chargegate.app.start import Role, StartError, process_name
from chargegate.app.storage import check_keys, database_named, open_storage
from chargegate.config import Settings, scheme
from chargegate.ledger.base import LedgerUnavailable
from chargegate.observe import Metrics, log
from chargegate.worker import Worker

T = TypeVar("T")

_ANSWER_S: Final = 2.5  # longer than a queue may take to say yes or no
_PAUSE_S: Final = 1.0


class _Started(NamedTuple):
    url: str
    opened: Opened
    worker: Worker | None


async def serve(settings: Settings, *, role: Role = "serve", ready: Callable[[str], None] | None = None) -> None:
    """The API and the worker in one process, or one of them, until SIGTERM or SIGINT; then a drain, which a second
    one cuts short.

    ``ready`` is given the base URL once requests are accepted. Raises ``StartError``.
    """
    if role != "serve" and scheme(settings.queue.url) in OF_ONE_PROCESS:
        raise StartError(
            f"queue.url: {settings.queue.url} is one process's own; `chargegate {role}` needs kafka://, redis://,"
            " amqp:// or postgresql://"
        )
    stop, at_once = _signals()
    async with AsyncExitStack() as stack:
        stack.enter_context(database_named(settings))
        log.attach()
        stack.callback(log.detach)
        started = await _unless(stop, _start(settings, role, stack, stop.is_set))
        if started is None:
            log.info("stopped before the start was done")
        else:
            worker = started.worker
            if worker is not None:
                worker.start()
            if ready is not None:
                ready(started.url)
            if not started.opened.storage.keys_checked:
                await _unless(stop, _check_keys(started.opened))
            await stop.wait()
            log.info("draining", grace_ms=settings.server.shutdown_grace_ms)
            if worker is not None:
                await _drain(worker, settings.server.shutdown_grace_ms / 1000, at_once)
    log.info("stopped")


async def _start(settings: Settings, role: Role, stack: AsyncExitStack, draining: Callable[[], bool]) -> _Started:
    outgoing = settings.callback.max_connections + settings.queue.consumer_concurrency
    max_connections = inbound_connections(outgoing)
    metrics = Metrics()
    name = _named(settings, role, stack)
    storage = await open_storage(settings, stack, role=role, name=name, metrics=metrics)
    queue = await open_queue(settings, storage, stack, name=name)
    await warn_of_left_behind(settings, storage)
    opened = Opened(settings, role, storage, queue, open_shared_cache(settings, stack), metrics)
    deciding = None if role == "api" else await build_worker(opened, stack)
    url = await _listen(settings, role, build_surface(opened, deciding, draining), max_connections, stack)
    # What is there now stays, and a request leaves few cycles behind: looking for them is a tenth of its cost.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    log.info(
        "ready",
        url=url,
        role=role,
        queue=scheme(settings.queue.url),
        database=scheme(settings.database.url),
        authorization=settings.authorization.backend,
        max_connections=max_connections,
    )
    return _Started(url, opened, None if deciding is None else deciding.worker)


async def _check_keys(opened: Opened) -> None:
    """What the start could not see, because the database was away. With other keys than the workers have, what this
    process accepts could never be opened. Raises ``StartError``."""
    while True:
        try:
            return await check_keys(opened.storage.keyring, opened.storage.ledger)
        except LedgerUnavailable:
            await asyncio.sleep(_PAUSE_S)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work gives; None if it was to stop before that, and was cancelled."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        return working.result()
    working.cancel()
    await asyncio.wait((working,))
    return None if working.cancelled() else working.result()


def _named(settings: Settings, role: Role, stack: AsyncExitStack) -> str:
    """This process's name; none is needed where it shares nothing."""
    if scheme(settings.queue.url) in OF_ONE_PROCESS and settings.database.url == "sqlite":
        return ""
    try:
        settings.data_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return stack.enter_context(process_name(settings.data_path, role))
    except OSError as error:
        raise StartError(f"data_dir: {settings.data_path}: {error.strerror}") from None


async def _listen(settings: Settings, role: Role, surface: ASGIApp, max_connections: int, stack: AsyncExitStack) -> str:
    """The base URL that answers now."""
    section, place = ("worker", settings.worker) if role == "worker" else ("server", settings.server)
    server = Server()
    try:
        await server.start(
            surface,
            place.host,
            place.port,
            request_timeout_ms=settings.server.request_timeout_ms,
            max_connections=max_connections,
            max_connections_per_address=settings.server.max_connections_per_address,
        )
    except OSError as error:
        raise StartError(f"{section}.port: {error}") from None
    stack.push_async_callback(server.stop, _ANSWER_S)
    return f"http://{_authority(place.host)}:{server.port}"


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
