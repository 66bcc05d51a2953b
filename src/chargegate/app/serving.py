"""Runs a process: opens the parts in order, joins them, and closes them in the other."""

import asyncio
import gc
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

from starlette.types import ASGIApp

from chargegate.api.server import Server
from chargegate.app.building import Opened, build_surface, build_worker, open_shared_cache
from chargegate.app.open_files import inbound_connections
from chargegate.app.queueing import OF_ONE_PROCESS, open_queue, warn_of_left_behind
from chargegate.app.start import Role, StartError, process_name
from chargegate.app.storage import database_named, open_storage
from chargegate.config import Settings, scheme
from chargegate.telemetry import Metrics, log
from chargegate.worker import Worker


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
    outgoing = settings.callback.max_connections + settings.queue.consumer_concurrency
    max_connections = inbound_connections(outgoing)
    async with AsyncExitStack() as stack:
        stack.enter_context(database_named(settings))
        log.attach()
        stack.callback(log.detach)
        metrics = Metrics()
        name = _named(settings, role, stack)
        storage = await open_storage(settings, stack, role=role, name=name, metrics=metrics)
        queue = await open_queue(settings, storage, stack, name=name)
        await warn_of_left_behind(settings, storage)
        opened = Opened(settings, role, storage, queue, open_shared_cache(settings, stack), metrics)
        deciding = None if role == "api" else await build_worker(opened, stack)
        draining = asyncio.Event()
        url = await _listen(settings, role, build_surface(opened, deciding, draining.is_set), max_connections, stack)
        # What is there now stays, and a request leaves few cycles behind: looking for them is a tenth of its cost.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        if deciding is not None:
            deciding.worker.start()
        log.info(
            "ready",
            url=url,
            role=role,
            queue=scheme(settings.queue.url),
            database=scheme(settings.database.url),
            authorization=settings.authorization.backend,
            max_connections=max_connections,
        )
        if ready is not None:
            ready(url)
        await stop.wait()
        draining.set()
        log.info("draining", grace_ms=settings.server.shutdown_grace_ms)
        if deciding is not None:
            await _drain(deciding.worker, settings.server.shutdown_grace_ms / 1000, at_once)
    log.info("stopped")


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
        )
    except OSError as error:
        raise StartError(f"{section}.port: {error}") from None
    stack.push_async_callback(server.stop, 1.0)
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
