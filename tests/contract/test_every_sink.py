"""One suite for every sink: it has each decision once, at whichever step the service is killed, and whatever happens to
the sink's server in between."""

from __future__ import annotations

import contextlib
import csv
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

import outside
from servers.influxdb import query
from trying import in_turns, some_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.contract.conftest import Service, Site

    from servers.proxy import Proxy
    from servers.server import Server

KILL_IN_SINK = Path(__file__).with_name("kill_in_sink.py")
LIMIT_S = 120

STEPS = ["committed", "offered", "writing", "written", "saving", "saved", "resuming", "resumed"]
BEHIND = ["page read", "page written"]
FILE_STEPS = ["half written", "noting", "syncing", "rotating", "renamed", "rotated"]


class Files:
    """The CSV log, in one file or in ten."""

    has_server = False

    def __init__(self, shards: int) -> None:
        self.settings = {"audit__csv_shards": shards, "audit__rotate_after_ms": 1500}

    def holds(self, service: Service) -> Counter[str]:
        """The request ids of all lines, also in files that were rotated."""
        found: Counter[str] = Counter()
        for file in service.folder.glob("authorization_audit*"):
            with file.open(newline="") as lines:
                rows = list(csv.reader(lines, strict=True))[1:]  # a file that lost its only row has no header either
            assert all(len(row) == 7 for row in rows)
            found.update(row[1] for row in rows)
        return found

    def count(self, service: Service) -> int:
        return self.holds(service).total()

    def fall_behind(self, service: Service, receiver: Site) -> set[str]:
        """Decisions that are committed and not in the sink; the service is stopped then."""
        return killed_at(service, receiver, "committed", 3)


class Influx:
    """InfluxDB, behind a proxy, over one of its two ways to write. It counts its points itself."""

    has_server = True

    def __init__(self, server: Server, proxy: Proxy, database: str, version: str) -> None:
        self.server = server
        self.proxy = proxy
        self._database = database
        place = {"1.x": {"audit__influx_database": database}, "2.x": {"audit__influx_bucket": database}}[version]
        self.settings = {"audit__influx_url": proxy.url, "audit__csv_path": "", **place}

    def holds(self, service: Service) -> Counter[str]:
        with contextlib.suppress(OSError):
            rows = query(self.server.url, "SELECT request_id FROM authorization_decisions", self._database)
            return Counter(row["request_id"] for row in rows)
        return Counter()  # it does not answer

    def count(self, _service: Service) -> int:
        """As the server counts its points."""
        (row,) = query(self.server.url, "SELECT count(request_id) FROM authorization_decisions", self._database)
        return int(row["count"])

    def fall_behind(self, service: Service, receiver: Site) -> set[str]:
        service.start()
        self.server.kill()
        ids = service.decided(receiver, 5)
        service.kill()
        self.server.start()
        return ids


Sink = Files | Influx


@pytest.fixture
def sink(request: pytest.FixtureRequest) -> Iterator[Sink]:
    kind, _, detail = request.param.partition(" ")
    if kind == "csv":
        yield Files(int(detail))
        return
    server = request.getfixturevalue("influxdb_server")
    with server.proxied() as proxy:
        yield Influx(server, proxy, request.getfixturevalue("influx_database"), detail)


EVERY = ("csv 1", "csv 10", "influx 1.x", "influx 2.x")


def each_with(name: str, cases: Iterable[str], sinks: Iterable[str] = EVERY) -> pytest.MarkDecorator:
    """Every sink with every case. In the suite the sinks take turns with the cases; the rest is for ``make soak``."""
    marks = {sink: [pytest.mark.servers] for sink in sinks if sink.startswith("influx")}
    return in_turns(("sink", name), list(sinks), cases, marks=marks, indirect=["sink"])


class Load:
    """Requests without a pause, until the service is gone or it is told to end."""

    def __init__(self, service: Service, receiver: Site) -> None:
        self.accepted: list[Any] = []
        self._service = service
        self._receiver = receiver
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.accepted.append(self._service.ask(self._receiver.url()))
            except (httpx.HTTPError, RuntimeError, AssertionError):
                self._ended.wait(0.02)  # it does not listen yet, or no more

    def end(self) -> set[str]:
        self._ended.set()
        self._thread.join()
        return {each.request_id for each in self.accepted}


def killed_at(service: Service, receiver: Site, point: str, nth: int) -> set[str]:
    """Run the service until it dies there, under load. What it accepted."""
    process = service.spawn(sys.executable, str(KILL_IN_SINK), point, str(nth))
    load = Load(service, receiver)
    try:
        assert process.wait(LIMIT_S) == -9, service.log
    finally:
        accepted = load.end()
        service.kill()
    return accepted


def check(service: Service, receiver: Site, sink: Sink, accepted: set[str]) -> None:
    """After a start of the service, the sink gets each decision that the database has, once."""
    service.start()
    for request_id in accepted:
        outside.eventually(lambda request_id=request_id: service.session(request_id)["processed_at"], LIMIT_S)
    accepted |= service.decided(receiver, 2)
    outside.eventually(lambda: sink.holds(service).total() >= len(accepted), LIMIT_S)
    assert service.stop() == 0
    recorded = Counter(row[0] for row in service.audit_rows())
    assert accepted <= recorded.keys()
    assert set(recorded.values()) == {1}
    outside.eventually(lambda: sink.holds(service).total() >= len(recorded), LIMIT_S)
    assert sink.holds(service) == recorded
    assert sink.count(service) == len(recorded)


@each_with("step", STEPS)
def test_killed_at_each_step(service: Callable[..., Service], receiver: Site, sink: Sink, step: str) -> None:
    running = service(started=False, **sink.settings)
    accepted: set[str] = set()
    if step.startswith("resum"):  # it happens once, at the start
        accepted |= killed_at(running, receiver, "offered", 3)
        accepted |= killed_at(running, receiver, step, 1)
    else:
        accepted |= killed_at(running, receiver, step, 3)
    check(running, receiver, sink, accepted)


@each_with("step", BEHIND, ("csv 10", "influx 1.x", "csv 1", "influx 2.x"))
def test_killed_while_it_catches_up(service: Callable[..., Service], receiver: Site, sink: Sink, step: str) -> None:
    running = service(started=False, **sink.settings)
    accepted = sink.fall_behind(running, receiver)
    accepted |= killed_at(running, receiver, step, 1)
    check(running, receiver, sink, accepted)


@each_with("step", FILE_STEPS, ("csv 1", "csv 10"))
def test_killed_at_each_step_of_a_file(service: Callable[..., Service], receiver: Site, sink: Sink, step: str) -> None:
    running = service(started=False, **sink.settings)
    accepted = killed_at(running, receiver, step, 2)
    check(running, receiver, sink, accepted)


TROUBLES = {
    "stopped": (lambda sink: sink.server.pause(), lambda sink: sink.server.resume()),
    "killed": (lambda sink: sink.server.kill(), lambda sink: sink.server.start()),
    "restarted": (lambda sink: (sink.server.stop(), sink.server.start()), lambda sink: None),
    "slow": (lambda sink: sink.proxy.throttle(400), lambda sink: sink.proxy.heal()),
    "late": (lambda sink: sink.proxy.delay(300), lambda sink: sink.proxy.heal()),
    "cut off": (lambda sink: sink.proxy.reset(), lambda sink: sink.proxy.heal()),
    "silent": (lambda sink: sink.proxy.drop(), lambda sink: sink.proxy.heal()),
}


@each_with("trouble", TROUBLES, ("influx 1.x", "influx 2.x"))
def test_the_service_is_killed_under_load_while_the_server_is(
    service: Callable[..., Service], receiver: Site, sink: Influx, trouble: str
) -> None:
    """No decision waits for the server, and the memory of the service holds no backlog."""
    running = service(**sink.settings)
    begin, end = TROUBLES[trouble]
    drawn = random.Random(trouble)
    accepted: set[str] = set()
    for turn in range(2):
        load = Load(running, receiver)
        outside.eventually(lambda load=load: len(load.accepted) >= 5, LIMIT_S)
        begin(sink)
        before = len(load.accepted)
        outside.eventually(lambda load=load, before=before: len(load.accepted) >= before + 15, LIMIT_S)
        time.sleep(drawn.random())  # a kill at any moment, and no condition that is waited for
        if turn == 1:
            end(sink)  # it dies while it catches up
        running.kill()
        accepted |= load.end()
        running.start()
        end(sink)
    assert running.stop() == 0
    check(running, receiver, sink, accepted)


@some_of("sink", ["csv 1", "csv 10"], ["csv 10"], indirect=True)
def test_the_service_is_killed_under_load_again_and_again(
    service: Callable[..., Service], receiver: Site, sink: Files
) -> None:
    running = service(**sink.settings)
    drawn = random.Random(3)
    accepted: set[str] = set()
    for _ in range(6):
        load = Load(running, receiver)
        outside.eventually(lambda load=load: len(load.accepted) >= 10, LIMIT_S)
        time.sleep(drawn.random() / 2)  # as above
        running.kill()
        accepted |= load.end()
        running.start()
    assert running.stop() == 0
    check(running, receiver, sink, accepted)
