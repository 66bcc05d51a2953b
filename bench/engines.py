"""The distributed set-up: the service on each engine, compared with a bare producer and consumer and with the embedded
default; and the service with more workers.

``chargegate api``, ``chargegate worker``, the servers and the load generator share the whole machine. So the absolute
numbers say little about a set-up with one machine for each: compare the ratios of one run. PostgreSQL is always the
ledger. The servers have the settings of docs/scaling.md: Redis ``appendfsync always``, Kafka ``acks=all`` on one
broker, RabbitMQ a quorum queue, PostgreSQL ``fsync`` and ``synchronous_commit``. Each measurement uses its own
queue and database.
"""

import asyncio
import base64
import contextlib
import itertools
import secrets
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg  # type: ignore[import-untyped]  # it ships no types
import uvloop
from rich import box
from rich.table import Table

import load
from plan import Figures, Plan
from processes import DRIVERS, Role, Service, cpu_seconds, service

HERE: Final = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))  # for the servers of the tests

from servers import engines as servers  # type: ignore[import-not-found]  # noqa: E402 - found by the line above

CONNECTIONS: Final = 64
AHEAD: Final = 1_000
LOW_RATE: Final = 200
WARM_S: Final = 2.0
BARE_LIMIT_S: Final = 180
SPLIT: Final[tuple[Role, ...]] = ("api", "worker")
WORKERS: Final = (1, 2, 4)
CONCURRENCIES: Final = (256, 32)
SETTINGS: Final = {
    "security.encryption_keys": [base64.b64encode(secrets.token_bytes(32)).decode()],
    "security.token_hash_key": base64.b64encode(secrets.token_bytes(32)).decode(),
}
numbers = itertools.count(1)


class Engine(NamedTuple):
    """``kind`` starts the server. ``queue`` gives the URL of a new queue."""

    name: str
    kind: Any
    queue: Callable[[Any], str]


def new_database(postgres: Any, schema: str = "") -> str:
    """Make a database with this schema. Returns its URL."""
    name = f"bench{next(numbers)}"
    url = f"{postgres.url.rpartition('/')[0]}/{name}"

    async def execute(url: str, statements: str) -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(statements)
        await connection.close()

    uvloop.run(execute(postgres.url, f"CREATE DATABASE {name}"))
    if schema:
        uvloop.run(execute(url, schema))
    return url


def new_topic(kafka: Any) -> str:
    """The URL of a new topic, which also has its own consumer group."""
    name = f"bench{next(numbers)}"
    return f"{kafka.url}/{name}?partitions=4"


class Databases:
    """The databases of Redis servers. Each call gives the URL of an unused one."""

    def __init__(self) -> None:
        self._used: Counter[int] = Counter()

    def __call__(self, redis: Any) -> str:
        self._used[redis.port] += 1
        return f"{redis.url.rpartition('/')[0]}/{self._used[redis.port]}"


new_redis = Databases()
ENGINES: Final = (
    Engine("kafka", servers.Kafka, new_topic),
    Engine("postgresql", servers.Postgres, new_database),
    Engine("rabbitmq", servers.Rabbitmq, lambda server: f"{server.url}?queue=bench{next(numbers)}"),
    Engine("redis", servers.Redis, new_redis),
)
NAMES: Final = tuple(engine.name for engine in ENGINES)


@contextmanager
def running(kind: Any) -> Iterator[Any]:
    """Run a server. Raises ``Failed`` if it is not installed."""
    if missing := kind.missing():
        raise load.Failed(f"{missing}; `make servers` provides it")
    server = kind()
    try:
        server.start()
        yield server
    finally:
        server.close()


def bare(engine: str, server: Any, seconds: float) -> float:
    """Messages per second of a bare producer and consumer."""
    command = [sys.executable, str(HERE / "barequeues.py"), engine, server.url, f"bare{next(numbers)}", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BARE_LIMIT_S, check=False)
    if done.returncode:
        raise load.Failed(f"barequeues.py: {done.stderr[-1000:]}")
    return float(done.stdout)


def percentiles(name: str, latencies: Sequence[float]) -> Figures:
    """Median and 99th percentile of sorted seconds, in ms."""
    return {f"{name}_p{share}_ms": load.percentile(latencies, share / 100) * 1e3 for share in (50, 99)}


class Measured:
    """Measures a running set-up: its throughput, and its latencies at half of that."""

    def __init__(self, running: Service, seconds: float, meters: Mapping[str, int]) -> None:
        """``meters``: further processes, by name, whose processor time is measured."""
        self.port = running.port
        self.pids = running.pids
        self.known = load.tokens(DRIVERS)
        self._seconds = seconds
        self._meters = meters

    async def throughput(self, url: str, ahead: int) -> Figures:
        """Measure requests per second: each is accepted, decided, recorded and delivered."""
        async with load.pressed(self.port, load.bodies(url, self.known), CONNECTIONS, ahead):
            first = load.Sink.received
            await load.until(lambda: load.Sink.received > first + CONNECTIONS, load.DRAIN_S, "no callback comes")
            await asyncio.sleep(min(WARM_S, self._seconds))
            return await self.spent()

    async def spent(self) -> Figures:
        """Under a load that runs already: delivered requests per second, and the processor time of each in µs."""
        before, received, started = self._spent(), load.Sink.received, time.perf_counter()
        await asyncio.sleep(self._seconds)
        after, done, elapsed = self._spent(), load.Sink.received - received, time.perf_counter() - started
        if not done:
            raise load.Failed("callbacks stopped coming")
        figures = {f"{name}_us": (after[name] - before[name]) / done * 1e6 for name in before}
        return {"requests_per_second": done / elapsed, **figures}

    async def all(self) -> Figures:
        """Measure the throughput, the latencies at half of it, and the processor time at a low rate. The generator
        sleeps in between, because it shares the cores."""
        url = await load.sink()
        figures = await self.throughput(url, AHEAD)
        due = load.arrivals(figures["requests_per_second"] / 2, self._seconds)
        times = await load.open_loop(
            self.port, due, self.known, (url + "/{}").format, called_back=lambda _: True, wait_ms=2
        )
        figures |= await self.at_low_rate(url)
        return figures | percentiles("accepted", times.answered) | percentiles("called_back", times.called_back)

    async def at_low_rate(self, url: str) -> Figures:
        """Measure the processor time of a request in µs at a rate at which few of them share a commit or a wake-up."""
        due = load.arrivals(LOW_RATE, self._seconds)
        before = self._spent()
        await load.open_loop(self.port, due, self.known, (url + "/{}").format, called_back=lambda _: True, wait_ms=2)
        return {f"low_{name}_us": (spent - before[name]) / len(due) * 1e6 for name, spent in self._spent().items()}

    async def only_throughput(self, ahead: int = AHEAD) -> Figures:
        """Measure the throughput alone."""
        return await self.throughput(await load.sink(), ahead)

    def _spent(self) -> dict[str, float]:
        spent = {name: cpu_seconds(pid) for name, pid in self._meters.items()}
        for role, pid in self.pids:
            spent[role] = spent.get(role, 0) + cpu_seconds(pid)
        return spent


@contextmanager
def measuring(
    roles: Sequence[Role],
    settings: Mapping[str, Any],
    seconds: float,
    meters: Mapping[str, Any],
    *,
    core: int | None = None,
    prepare: Callable[[Path], None] = lambda _: None,
) -> Iterator[Measured]:
    """Run a set-up during the ``with`` block. ``meters`` are servers by name. An error becomes ``Failed``, with the
    warnings of the processes. ``core`` and ``prepare`` are as for ``service``."""
    pids = {name: int((server.folder / "pid").read_text()) for name, server in meters.items()}
    with service(roles, SETTINGS | dict(settings), core=core, prepare=prepare) as started:
        try:
            yield Measured(started, seconds, pids)
        except (load.Failed, OSError, ExceptionGroup) as error:
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            raise load.Failed(f"{str(error) or type(error).__name__}\n{started.warnings()}") from None


def measure_engines(plan: Plan) -> Figures:
    """Measure each engine, between two measurements of the embedded default."""
    found: dict[str, Figures] = {}
    with plan.part("sqlite"), measuring(["serve"], {}, plan.seconds, {}) as measured:
        found["sqlite"] = uvloop.run(measured.all())
    with plan.part("engines"), running(servers.Postgres) as postgres:
        for engine in ENGINES:
            if engine.name in plan.engines:
                with plan.part(engine.name):
                    found[engine.name] = measure_engine(engine, postgres, plan.seconds)
    if default := found.get("sqlite"):
        with plan.part("sqlite, again"), measuring(["serve"], {}, plan.seconds, {}) as measured:
            again = uvloop.run(measured.only_throughput())
            default |= {name: statistics.mean((default[name], figure)) for name, figure in again.items()}
        for figures in found.values():
            figures["of_embedded"] = figures["requests_per_second"] / default["requests_per_second"]
    plan.console.print(_engines_table(found))
    return found


def measure_engine(engine: Engine, postgres: Any, seconds: float) -> Figures:
    """Measure one engine: bare, as two processes, as one, and bare again, since the speed may change."""
    with contextlib.ExitStack() as stack:
        carries = engine.kind is servers.Postgres
        server = postgres if carries else stack.enter_context(running(engine.kind))
        meters = {"database": postgres} if carries else {"queue": server, "database": postgres}
        bare(engine.name, server, min(WARM_S, seconds))  # a warm-up: the first seconds of a virtual machine are slow
        floors = [bare(engine.name, server, seconds)]
        with measuring(SPLIT, urls(engine, server, postgres), seconds, meters) as measured:
            figures = uvloop.run(measured.all())
        with measuring(["serve"], urls(engine, server, postgres), seconds, meters) as measured:
            together = uvloop.run(measured.only_throughput())
        floors.append(bare(engine.name, server, seconds))
    figures["one_process_per_second"], figures["serve_us"] = together["requests_per_second"], together["serve_us"]
    figures["bare_per_second"] = statistics.mean(floors)
    figures["of_bare"] = figures["requests_per_second"] / figures["bare_per_second"]
    return figures


def urls(engine: Engine, server: Any, postgres: Any) -> dict[str, str]:
    """A new queue and a new database."""
    return {"queue.url": engine.queue(server), "database.url": new_database(postgres)}


def measure_workers(plan: Plan) -> Figures:
    """Measure several workers on Redis, with an authorizer that takes 50 to 200 ms and without a cache.

    Returns requests per second, by ``consumer_concurrency`` and by the number of workers.
    """
    slow = {"authorization.backend": "simulated", "authorization.cache_ttl_ms": 0}
    found: dict[str, dict[str, float]] = {}
    with plan.part("workers"), running(servers.Postgres) as postgres, running(servers.Redis) as redis:
        for concurrency, workers in itertools.product(CONCURRENCIES, WORKERS):
            with plan.part(f"workers, {workers} of {concurrency}"):
                settings = slow | {"queue.url": new_redis(redis), "database.url": new_database(postgres)}
                settings["queue.consumer_concurrency"] = concurrency
                roles: list[Role] = ["api", *["worker"] * workers]  # type: ignore[list-item]  # mypy infers str for the inner list
                with measuring(roles, settings, plan.seconds, {}) as measured:
                    figures = uvloop.run(measured.only_throughput(AHEAD + workers * concurrency))
                found.setdefault(str(concurrency), {})[str(workers)] = figures["requests_per_second"]
    plan.console.print(_workers_table(found))
    return found


def _engines_table(found: Mapping[str, Figures]) -> Table:
    table = Table(title="api, worker, servers and load together on one machine", box=box.SIMPLE_HEAD)
    table.caption = (
        "End to end: accepted, decided, recorded, called back. Bare: a producer and a consumer, nothing else."
        " Latencies at half of the rate, from when a request was due. µs: processor time a request."
    )
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right", no_wrap=True)
    rows = [
        ("end to end, /s", "{requests_per_second:,.0f}"),
        ("  of the default's", "{of_embedded:.2f}"),
        ("bare, /s", "{bare_per_second:,.0f}"),
        ("  end to end of that", "{of_bare:.2f}"),
        ("in one process, /s", "{one_process_per_second:,.0f}"),
        ("202 p50, ms", "{accepted_p50_ms:.1f}"),
        ("202 p99, ms", "{accepted_p99_ms:.1f}"),
        ("callback p50, ms", "{called_back_p50_ms:.1f}"),
        ("callback p99, ms", "{called_back_p99_ms:.1f}"),
        ("api, µs", "{api_us:.0f}"),
        ("worker, µs", "{worker_us:.0f}"),
        ("one process, µs", "{serve_us:.0f}"),
        ("queue's server, µs", "{queue_us:.0f}"),
        ("database's server, µs", "{database_us:.0f}"),
    ]
    rows += [(f"{title[:-4]} at {LOW_RATE}/s, µs", form.replace("{", "{low_")) for title, form in rows[-5:]]
    for title, form in rows:
        table.add_row(title, *[_filled(form, figures) for figures in found.values()])
    return table


def _workers_table(found: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title="requests/s with an authorizer that takes 50 to 200 ms, on Redis", box=box.SIMPLE_HEAD)
    table.add_column("consumer_concurrency")
    for workers in WORKERS:
        table.add_column(f"{workers} workers" if workers > 1 else "1 worker", justify="right")
    for concurrency, rates in found.items():
        one = rates.get("1")
        cells = [
            f"{rates[workers]:,.0f}" + (f" ({rates[workers] / one:.2f})" if one else "") if workers in rates else ""
            for workers in map(str, WORKERS)
        ]
        table.add_row(concurrency, *cells)
    return table


def _filled(form: str, figures: Figures) -> str:
    try:
        return form.format_map(figures)
    except KeyError:
        return ""
