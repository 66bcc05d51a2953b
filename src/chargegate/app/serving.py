"""Runs a process: opens the parts in order, joins them, and closes them in the other."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple, TypeVar

from starlette.types import ASGIApp

from chargegate.api.server import Server
from chargegate.app.building import build_surface, build_worker, followers
from chargegate.app.life import keep_audit
from chargegate.app.opening import Opened, StartError, check_keys, naming_database, open_parts
from chargegate.app.presence import Presence
from chargegate.app.process import LEAST, Role, Signals, SpareFile, open_files
from chargegate.app.reloading import Prepare, Reloading, following_certificates
from chargegate.app.tls import certificate_end, server_context
from chargegate.app.tracing import LastSpans, check_tracing, open_tracing
from chargegate.config import Settings, scheme
from chargegate.engines import ENGINES, engine_of
from chargegate.keys import AccessKeys
from chargegate.ledger.base import LedgerUnavailable
from chargegate.observe import log
from chargegate.storage.budget import LAST_ANSWERS_S
from chargegate.worker import Worker

T = TypeVar("T")

_PAUSE_S: Final = 1.0


class _Started(NamedTuple):
    url: str
    opened: Opened
    worker: Worker | None
    followers: list[Prepare]
    last_spans: LastSpans


async def serve(
    settings: Settings,
    *,
    role: Role = "serve",
    ready: Callable[[str], None] | None = None,
    reread: Callable[[], Settings] | None = None,
) -> None:
    """The API and the worker in one process, or one of them, until SIGTERM or SIGINT; then a drain, which a second
    one cuts short.

    ``ready`` is given the base URL once requests are accepted. ``reread`` reads the settings again after a SIGHUP;
    without it, only the files that the settings name. Raises ``StartError``.
    """
    if role != "serve" and not engine_of(settings.queue.url).capabilities.shared:
        *others, last = (each.urls[0] for each in ENGINES if each.capabilities.shared and "queue" in each.offers)
        raise StartError(
            f"queue.url: {settings.queue.url} is one process's own; `chargegate {role}` needs {', '.join(others)}"
            f" or {last}"
        )
    signals = Signals()
    stop = signals.stop
    async with AsyncExitStack() as stack:
        stack.callback(signals.close)
        log.attach()
        stack.callback(log.detach)
        with naming_database(settings):
            started = await _unless(stop, _start(settings, role, stack, stop.is_set))
        if started is None:
            log.info("stopped before the start was done")
        else:
            worker = started.worker
            if worker is not None:
                worker.start()
            if ready is not None:
                ready(started.url)
            reloading = Reloading(settings, reread or (lambda: settings), started.followers)
            following = asyncio.create_task(_follow(signals.reload, reloading))
            try:
                if not started.opened.keys_checked:
                    await _unless(stop, _check_keys(started.opened))
                await _unless(stop, _lost(started.opened.presence))
            finally:
                following.cancel()
            grace_ms = settings.server.shutdown_grace_ms if stop.is_set() else 0
            log.info("draining", grace_ms=grace_ms)
            started.last_spans.begin(grace_ms / 1000)
            if worker is not None:
                await _drain(worker, grace_ms / 1000, signals.at_once)
            if not stop.is_set():
                raise StartError("data_dir: another process, which has a copy of it, took this process's name")
    log.info("stopped")


async def _start(settings: Settings, role: Role, stack: AsyncExitStack, draining: Callable[[], bool]) -> _Started:
    max_connections = _room_for_clients(settings, role)
    check_tracing(settings)
    opened = await open_parts(settings, role, stack)
    tracing = open_tracing(settings, role, opened.metrics)
    last_spans = LastSpans(tracing)
    stack.push_async_callback(last_spans.close)
    working = None if role == "api" else await build_worker(opened, tracing, stack)
    keeping = None if role == "api" else await keep_audit(opened, stack)
    access_keys = AccessKeys(settings.security.api_keys)
    spare = SpareFile()
    watching = asyncio.create_task(spare.watch())
    stack.callback(watching.cancel)
    surface = build_surface(
        opened,
        working,
        access_keys,
        tracing=tracing,
        draining=draining,
        no_file=spare.lacking,
        keeping=keeping,
        stack=stack,
    )
    server, url = await _listen(settings, role, surface, max_connections, stack)
    opened.metrics.certificate_in_use(None if role == "worker" else certificate_end(settings.server))
    # What is there now stays. The server leaves no cycles behind, so the collector finds little, and to look at every
    # object less often saves about 4 % of a request's whole cost. The last number stays Python's: a hundred times more
    # would save 2 % more, and would keep what cycles of others hold for hours.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    log.info(
        "ready",
        url=url,
        role=role,
        queue=scheme(settings.queue.url),
        database=scheme(settings.database.url),
        authorization=settings.authorization.backend,
        max_connections=max_connections,
    )
    # The access list is the last, because the database may be away.
    follow = [
        *([] if role == "worker" else [following_certificates(server, opened.metrics)]),
        *followers(opened, working, access_keys),
    ]
    return _Started(url, opened, None if working is None else working.worker, follow, last_spans)


def _room_for_clients(settings: Settings, role: Role) -> int:
    """How many connections clients may hold. Raises ``StartError`` where the limit of open files does not even allow
    what the settings ask for."""
    outgoing = {} if role == "api" else {"callback.max_connections": settings.callback.max_connections}
    if outgoing and settings.authorization.backend == "http":
        outgoing["queue.consumer_concurrency"] = settings.queue.consumer_concurrency
    if outgoing and settings.audit.csv_shards > 1:
        outgoing["audit.csv_shards"] = 2 * settings.audit.csv_shards  # each has its notes beside it
    files = open_files(sum(outgoing.values()))
    if files.allowed < files.needed:
        settings_need = "".join(f"{key} = {number}, " for key, number in outgoing.items())
        raise StartError(
            f"open files: {files.allowed} are allowed and {files.needed} needed ({settings_need}{LEAST} of the"
            f" service's own); raise the hard limit (ulimit -Hn)"
            f"{' or lower ' + ' or '.join(outgoing) if outgoing else ''}"
        )
    return files.inbound


async def _lost(presence: Presence | None) -> None:
    """Return once this process must end, because another one has its name."""
    await (asyncio.Event() if presence is None else presence.lost).wait()


async def _follow(reload: asyncio.Event, reloading: Reloading) -> None:
    """Every SIGHUP is answered, those that come meanwhile together."""
    while True:
        await reload.wait()
        reload.clear()
        await reloading.reload()


async def _check_keys(opened: Opened) -> None:
    """What the start could not see, because the database was away. With other keys than the workers have, what this
    process accepts could never be opened. Raises ``StartError``."""
    while True:
        try:
            return await check_keys(opened.keyring, opened.database.ledger)
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


async def _listen(
    settings: Settings, role: Role, surface: ASGIApp, max_connections: int, stack: AsyncExitStack
) -> tuple[Server, str]:
    """The server, and the base URL that answers now."""
    section, place = ("worker", settings.worker) if role == "worker" else ("server", settings.server)
    server = Server()
    tls = None if role == "worker" else server_context(settings.server)
    try:
        await server.start(
            surface,
            place.host,
            place.port,
            request_timeout_ms=settings.server.request_timeout_ms,
            max_connections=max_connections,
            max_connections_per_address=settings.server.max_connections_per_address,
            tls=tls,
        )
    except OSError as error:
        raise StartError(f"{section}.port: {error}") from None
    stack.push_async_callback(server.stop, LAST_ANSWERS_S)
    return server, f"{server.scheme}://{_authority(place.host)}:{server.port}"


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
