"""Moving from the embedded default to each engine and back while requests wait, and replaying decisions."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import re
import secrets
import sqlite3
import subprocess
import uuid
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
import redis

from outside import PLAIN, Call, Reply, Site, eventually, sites, verdict
from scaling.cluster import COMMAND, ENVIRONMENT, PATH, Process
from scaling.engines import ENGINES
from scaling.load import Load
from trying import some_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from scaling.cluster import Cluster
    from scaling.conftest import Engine
    from servers.proxy import Proxy

VERDICTS = (verdict("allowed"), verdict("not_allowed", "token_blocked"), verdict("invalid"))
HOUR_MS = 3_600_000
WAITING = 2_000
FINAL = {"good": "COMPLETED", "late": "COMPLETED", "held": "COMPLETED", "gone": "FAILED"}
STREAM = "{chargegate}:queue"


def new_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


class Asked(NamedTuple):
    """An accepted request. ``kind`` is one of ``FINAL``."""

    request_id: str
    kind: str
    body: dict[str, str]


class World:
    """The authorizer and the receiver. Until ``open``, ``held`` requests get no decision and ``late`` ones no callback.

    The authorizer decides at random, so that a test would notice a second decision for one request.
    """

    def __init__(self, make: Callable[..., Site]) -> None:
        self.open = False
        self.authorizer = make(self._decide)
        self.receiver = make(self._receive)
        self.settings = {
            "security.encryption_keys": [new_key()],
            "security.token_hash_key": new_key(),
            "authorization.backend": "http",
            "authorization.url": self.authorizer.url("/decide"),
            "authorization.timeout_ms": HOUR_MS,
            "authorization.circuit_breaker.enabled": False,
            "queue.max_age_ms": HOUR_MS,
            "queue.lease_ms": 10_000,
            "callback.allowed_networks": ["127.0.0.0/8"],
            "callback.deadline_ms": HOUR_MS,
        }

    def _decide(self, call: Call) -> Reply:
        held = "-held-" in call.json["driver_token"] and not self.open
        return Reply(how="held") if held else random.choice(VERDICTS)

    def _receive(self, call: Call) -> Reply:
        kind = call.path.split("/")[1]
        return Reply(410 if kind == "gone" else 503 if kind == "late" and not self.open else 200)

    def ask(self, process: Process, kind: str, **headers: str) -> Asked:
        body = {
            "station_id": str(uuid.uuid4()),
            "driver_token": f"driver-{kind}-{uuid.uuid4().hex}",
            "callback_url": self.receiver.url(f"/{kind}/{uuid.uuid4().hex}"),
        }
        answer = process.post(body, **headers)
        assert answer.status_code == 202, answer.text
        return Asked(answer.json()["request_id"], kind, body)

    def told(self) -> dict[str, list[str]]:
        """The statuses of the callbacks, by request id."""
        told = defaultdict(list)
        for call in list(self.receiver.calls):
            told[call.headers["webhook-id"]].append(call.json["status"])
        return told


class Embedded(Process):
    """``chargegate serve`` with its queue and database in its folder."""

    def __init__(self, folder: Path, world: World, **settings: Any) -> None:
        named = {name.replace("__", "."): value for name, value in settings.items()}
        super().__init__("api", folder, world.settings | {"callback.retry_delay_ms": HOUR_MS} | named)
        self.role = "serve"

    def session(self, asked: Asked) -> dict[str, Any]:
        answer = self.get(f"{PATH}/{asked.request_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def waiting(self) -> int:
        """How many requests are in the queue on disk."""
        with contextlib.closing(sqlite3.connect(self.folder / "data" / "chargegate.db")) as database:
            return int(database.execute("SELECT count(*) FROM queue").fetchone()[0])


@pytest.fixture
def world() -> Iterator[World]:
    with sites() as make:
        yield World(make)


@pytest.fixture
def embedded(tmp_path: Path, world: World) -> Iterator[Callable[..., Embedded]]:
    made: list[Embedded] = []

    def make(**settings: Any) -> Embedded:
        made.append(Embedded(tmp_path / f"embedded-{len(made)}", world, **settings))
        return made[-1]

    yield make
    for process in made:
        process.close()


def start(process: Process, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    """Run a command with the settings of a process, and further ones."""
    environment = {f"CHARGEGATE_{name.upper()}": value for name, value in settings.items()}
    return subprocess.Popen(
        [COMMAND, *arguments, "--config", "chargegate.toml"],
        cwd=process.folder,
        env=ENVIRONMENT | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(process: Process, *arguments: str, **settings: str) -> tuple[int, str, str]:
    command = start(process, *arguments, **settings)
    try:
        out, err = command.communicate(timeout=120)
    finally:
        command.kill()
        command.wait()
    return command.returncode, out, err


def done(process: Process, *arguments: str, **settings: str) -> Any:
    """The output of a command that must succeed."""
    code, out, err = run(process, *arguments, "--json", **settings)
    assert code == 0, err
    return json.loads(out)


def refused(process: Process, *arguments: str, **settings: str) -> str:
    """The one line of error of a command that must fail."""
    code, out, err = run(process, *arguments, **settings)
    assert (code, out) == (1, ""), (code, out, err)
    assert err.startswith("chargegate: "), err
    assert err.count("\n") == 1
    return err


def half_way(service: Embedded, world: World) -> tuple[list[Asked], dict[str, dict[str, Any]]]:
    """Bring requests to every stage. Returns them, and the decisions so far."""
    asked = [world.ask(service, kind) for kind in ("good", "late", "gone") for _ in range(10)]

    def is_there(each: Asked) -> bool:
        session = service.session(each)
        attempted = session["callback"] is not None and session["callback"]["attempts"] == 1
        return bool(attempted) if each.kind == "late" else session["status"] == FINAL[each.kind]

    eventually(lambda: all(map(is_there, asked)), 30, service.tail)
    held = [world.ask(service, "held") for _ in range(40)]
    eventually(lambda: sum(b"-held-" in call.body for call in list(world.authorizer.calls)) == 20, 30, service.tail)
    decisions = service.get("/api/v1/decisions", limit=1000).json()["items"]
    assert len(decisions) == len(asked)
    return asked + held, {row["request_id"]: row for row in decisions}


def check(cluster: Cluster, world: World, asked: Iterable[Asked], decided: dict[str, dict[str, Any]]) -> None:
    left = {each.request_id: FINAL[each.kind] for each in asked}
    ids = set(left)

    def all_ended() -> bool:
        for request_id, final in list(left.items()):
            if cluster.status(request_id) != final:
                return False
            del left[request_id]
        return True

    eventually(all_ended, 60, lambda: f"{len(left)} came to no end\n{cluster.tails()}")
    rows = list(cluster.decisions())
    assert max(Counter(row["request_id"] for row in rows).values()) == 1, "a request was decided twice"
    now = {row["request_id"]: row for row in rows}
    assert now.keys() == ids
    assert {request_id: now[request_id] for request_id in decided} == decided, "a decision changed"
    told = world.told()
    assert told.keys() == ids
    assert {request_id: set(statuses) for request_id, statuses in told.items()} == {
        request_id: {row["status"]} for request_id, row in now.items()
    }, "a callback said something else"


@some_of("engine", ENGINES, ["postgres", "rabbitmq"], indirect=True)  # the moves below have the others
def test_to_each_engine_with_work_still_queued(
    engine: Engine,
    world: World,
    embedded: Callable[..., Embedded],
    clusters: Callable[..., Cluster],
    new_database: Callable[[], str],
) -> None:
    service = embedded(queue__consumer_concurrency=20, server__shutdown_grace_ms=100)
    service.start()
    asked, decided = half_way(service, world)
    keyed = world.ask(service, "held", idempotency_key="once")
    killed = engine.name in ("kafka", "postgres")
    if killed:
        service.kill()
    else:
        service.terminate()
        service.ended()
    waiting = service.waiting()
    assert waiting == 51 or (killed and waiting > 51)  # after a kill, messages that were acked last may still be there

    database, queue = new_database(), engine.new_queue()
    move = ("database", "move", "--to", database)
    assert done(service, *move) == {
        "requests": 71,
        "audit_rows": 30,
        "access_list_entries": 0,
        "idempotency_keys": 1,
    }
    assert set(done(service, *move).values()) == {0}
    there = {"database__url": database}
    assert done(service, "queue", "move", "--from", "sqlite", "--to", queue, **there) == {"moved": waiting}
    scheme = queue.partition(":")[0]
    again = run(service, "queue", "move", "--from", "sqlite", "--to", queue, **there)
    assert again == (0, f"moved 0 requests from sqlite to {scheme}\n", "")
    lease_ms = "10000" if engine.name == "kafka" else "1000"
    back = run(service, "queue", "move", "--from", queue, "--to", "sqlite", queue__lease_ms=lease_ms, **there)
    assert back == (0, f"moved {waiting} requests from {scheme} to sqlite\n", "")
    assert service.waiting() == waiting
    assert done(service, "queue", "move", "--from", "sqlite", "--to", queue, **there) == {"moved": waiting}

    world.open = True
    settings = {name.replace(".", "__"): value for name, value in world.settings.items()}
    with clusters(queue, database, **settings) as cluster:
        cluster.add("api")
        cluster.start()
        held = [each for each in (*asked, keyed) if each.kind == "held"]
        assert {cluster.status(each.request_id) for each in held} == {"QUEUED"}
        repeated = cluster.apis[0].post(keyed.body, idempotency_key="once")
        assert (repeated.status_code, repeated.json()["request_id"]) == (202, keyed.request_id)
        cluster.add("worker")
        cluster.add("worker")
        cluster.start()
        check(cluster, world, (*asked, keyed), decided)
        for each in asked:
            assert each.kind != "good" or len(world.told()[each.request_id]) == 1


@pytest.mark.parametrize("engine", ["redis"], indirect=True)
def test_a_move_that_is_cut_off_and_killed_goes_on(
    engine: Engine,
    proxy: Proxy,
    world: World,
    embedded: Callable[..., Embedded],
    clusters: Callable[..., Cluster],
    new_database: Callable[[], str],
) -> None:
    service = embedded(queue__consumer_concurrency=5)
    service.start()
    with ThreadPoolExecutor(8) as at_once:
        asked = list(at_once.map(lambda _: world.ask(service, "held"), range(WAITING)))
    service.kill()
    database, queue = new_database(), engine.new_queue()
    assert done(service, "database", "move", "--to", database)["requests"] == WAITING

    slow = f"{proxy.url.rpartition('/')[0]}/{queue.rpartition('/')[2]}"
    proxy.delay(100)
    with contextlib.closing(redis.Redis.from_url(queue)) as client:

        def interrupt(move: subprocess.Popen[str], act: Callable[[], None]) -> tuple[str, str]:
            enough = client.xlen(STREAM) + 600  # more than one batch
            try:
                eventually(lambda: client.xlen(STREAM) > enough or move.poll() is not None, 60)
                act()
                return move.communicate(timeout=60)
            finally:
                move.kill()
                move.wait()

        command = ("queue", "move", "--from", "sqlite", "--to", slow)
        cut_off = start(service, *command)
        out, err = interrupt(cut_off, proxy.reset)
        assert (cut_off.returncode, out) == (1, "")
        told = re.fullmatch(r"chargegate: --to: .* \(moved (\d+) before that; run it again to go on\)\n", err)
        assert told is not None, err
        assert service.waiting() == WAITING - int(told[1])
        proxy.heal()
        proxy.delay(100)
        killed = start(service, *command)
        interrupt(killed, killed.kill)
        stored = client.xlen(STREAM)
        left = service.waiting()
        assert 0 < left < WAITING, "not killed in the middle"
        assert stored + left >= WAITING
        assert done(service, "queue", "move", "--from", "sqlite", "--to", queue) == {"moved": left}
        ids = {fields[b"request_id"].decode() for _, fields in client.xrange(STREAM)}
        assert ids == {each.request_id for each in asked}
        assert client.xlen(STREAM) == stored + left
        print(f"killed with {stored} of {WAITING} stored; {stored + left - WAITING} were moved twice")
    assert service.waiting() == 0

    world.open = True
    settings = {name.replace(".", "__"): value for name, value in world.settings.items()}
    with clusters(queue, database, **settings) as cluster:
        for role in ("api", "worker", "worker"):
            cluster.add(role)
        cluster.start()
        check(cluster, world, asked, {})


def test_nothing_moves_where_that_would_go_wrong(
    world: World, embedded: Callable[..., Embedded], new_database: Callable[[], str], new_cache: Callable[[], str]
) -> None:
    service = embedded()
    service.start()
    late, _ = world.ask(service, "late"), world.ask(service, "held")
    eventually(lambda: service.session(late)["callback"], 30, service.tail)
    database, queue = new_database(), new_cache()
    move = ("queue", "move", "--from", "sqlite", "--to", queue)
    for command in (move, ("database", "move", "--to", database)):
        assert "another process" in refused(service, *command)
    service.kill()

    error = refused(service, *move, database__url=database)
    assert "1 of the waiting requests" in error
    assert "`chargegate database move` comes first" in error
    with contextlib.closing(redis.Redis.from_url(queue)) as client:
        assert client.xlen(STREAM) == 0
    assert service.waiting() == 2

    assert done(service, "database", "move", "--to", database)["audit_rows"] == 1
    other = embedded(security__token_hash_key=new_key())
    other.start()
    other.kill()
    error = refused(other, "database", "move", "--to", database)
    assert "--to: security.token_hash_key" in error
    other_keys = {"security__encryption_keys": new_key()}
    assert "security.encryption_keys" in refused(service, *move, **other_keys)
    assert done(service, *move, database__url=database) == {"moved": 2}


@pytest.mark.parametrize("engine", ["kafka"], indirect=True)
def test_decisions_are_sent_again_and_none_is_made(
    engine: Engine, clusters: Callable[..., Cluster], receiver: Site
) -> None:
    with clusters(engine.new_queue()) as cluster, httpx.Client(verify=PLAIN, trust_env=False) as client:
        api = cluster.add("api")
        worker = cluster.add("worker")
        cluster.start()
        load = Load(cluster, receiver, flaky=0)
        first = [load.ask(client, api.url) for _ in range(150)]
        load.check()
        middle = datetime.now(UTC).isoformat()
        second = [load.ask(client, api.url) for _ in range(20)]
        load.check()
        cluster.leave(worker)
        last = load.ask(client, api.url)

        assert done(api, "replay", "--from", "0") == {"replayed": 170, "not_decided": 1, "unreadable": 0}
        cluster.add("worker").start()

        def told(times: int, ids: list[str]) -> bool:
            return all(len(load.told()[request_id]) >= times for request_id in ids)

        eventually(lambda: told(2, first + second) and told(1, [last]), 30, cluster.tails)
        load.check()
        assert len(list(cluster.decisions())) == 171
        assert done(api, "replay", "--from", middle) == {"replayed": 21, "not_decided": 0, "unreadable": 0}
        eventually(lambda: told(3, second) and told(2, [last]), 30, cluster.tails)
        load.check()
        assert len(list(cluster.decisions())) == 171
        assert Counter(len(calls) for calls in load.told().values()) == {2: 151, 3: 20}

        other = {"security__encryption_keys": new_key()}
        assert done(api, "replay", "--from", "0", **other) == {"replayed": 0, "not_decided": 0, "unreadable": 362}
