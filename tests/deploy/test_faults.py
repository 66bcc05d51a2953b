"""A fault as an operator meets it: the overview says it and names its cause, in its data and on its page; it raises
the alerts that the runbook says, and no others; and all of it ends by itself once the fault is gone.

The rules are the real ones, on a real Prometheus, but their minutes are seconds.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from browsing import chromium
from deploy.installation import Installation, can_mount, with_schema
from deploy.promql import ROOT
from outside import Reply, Site, eventually, sites, verdict
from servers.influxdb import query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page

    from servers.proxy import Proxy
    from servers.server import Server

pytestmark = pytest.mark.servers  # Prometheus is provisioned together with the servers

LIMIT_S = 90
# Whether this machine is slow is not what these tests are about.
MACHINE = {"ChargegateSlowAnswers", "ChargegateSlowAnswersForHours", "ChargegateDown"}


class Stage:
    """An installation under traffic, and what can go wrong in it."""

    def __init__(self, installation: Installation, influx: Proxy | None, dead: Site) -> None:
        self.installation = installation
        self.influx = influx
        self._dead = dead
        self._to_the_dead = 0
        self._sent_at = 0.0

    def traffic(self) -> None:
        """A few requests, some time after the last ones. Who looks in between looks no more often, because the overview
        and the rules cost more than the requests."""
        time.sleep(max(0, self._sent_at + 0.4 - time.monotonic()))
        self._sent_at = time.monotonic()
        for _ in range(3):
            assert self.installation.post() in (202, 503)
        for _ in range(self._to_the_dead):
            assert self.installation.post(self._dead.url()) == 202

    def firing(self) -> set[str]:
        return self.installation.firing() - MACHINE

    # Each of these begins a fault, and returns what ends it.

    def authorizer_hangs(self) -> Callable[[], None]:
        site, path = self.installation.authorizer, "/decide"
        site.hold(path)
        self.installation.verdict = Reply(how="held")

        def end() -> None:
            self.installation.verdict = verdict("allowed")
            site.release(path)

        return end

    def authorizer_fails(self) -> Callable[[], None]:
        self.installation.verdict = Reply(500)

        def end() -> None:
            self.installation.verdict = verdict("allowed")

        return end

    def receiver_dead(self) -> Callable[[], None]:
        self._dead.down()
        self._to_the_dead = 3

        def end() -> None:
            self._dead.up()
            self._to_the_dead = 1

        return end

    def disk_full(self, name: str) -> Callable[[], None]:
        filler = self.installation.disk_of(name) / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while file.write(b"x"):
                pass
        return filler.unlink

    def sink_away(self) -> Callable[[], None]:
        assert self.influx is not None
        self.influx.reset()
        return self.influx.heal

    def worker_killed(self) -> Callable[[], None]:
        self.installation.kill("worker")
        return lambda: self.installation.start("worker")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def staged(prometheus: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stage]]:
    """Starts an installation, and waits until all is well with it."""
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(sites())

        def start(roles: tuple[str, ...], disk: tuple[str, str], influx: Proxy | None = None, **settings: Any) -> Stage:
            folder = tmp_path_factory.mktemp("staged")
            if not can_mount(folder):
                pytest.skip("this machine lets no process mount a small disk (user namespaces are off)")
            installation = Installation(
                folder, prometheus, site, roles, disks={roles[-1]: disk},
                authorization__timeout_ms=6000, authorization__circuit_breaker__min_calls=5,
                callback__deadline_ms=3000, callback__circuit__probe_interval_ms=500,
                callback__circuit__forget_after_ms=2000, **settings,
            )  # fmt: skip
            stack.callback(installation.close)
            installation.start()
            stage = Stage(installation, influx, site())

            def well() -> bool:
                stage.traffic()
                return installation.problems() == [] and len(installation.query("chargegate:delivered:rate5m")) == 1

            eventually(well, LIMIT_S, installation.told)
            return stage

        yield start


@pytest.fixture(scope="module")
def apart(staged: Callable[..., Stage], postgres_server: Any, influxdb_server: Server) -> Iterator[Stage]:
    """An API and a worker on PostgreSQL. The worker's audit files lie on a small disk."""
    database, bucket = with_schema(postgres_server.url), f"t{uuid.uuid4().hex}"
    query(influxdb_server.url, f'CREATE DATABASE "{bucket}"')
    with influxdb_server.proxied() as influx:
        yield staged(
            ("api", "worker"), ("audit", "2m"), influx,
            queue__url=database, queue__lease_ms=2000, database__url=database, audit__csv_path="audit/audit.log",
            audit__influx_url=influx.url, audit__influx_database=bucket,
        )  # fmt: skip


@pytest.fixture(scope="module")
def alone(staged: Callable[..., Stage]) -> Stage:
    """Everything in one process, with the embedded database on a small disk."""
    return staged(("serve",), ("data", "64m"))


@dataclass(frozen=True)
class Fault:
    """``begin`` is a method of ``Stage``. ``says``: what the overview's sentences must match. ``page``: the alert whose
    page in the runbook tells the others. ``perhaps``: alerts that only a slow machine raises."""

    stage: str
    begin: str
    says: str
    page: str
    alerts: set[str]
    perhaps: set[str] = field(default_factory=set)
    arguments: tuple[str, ...] = field(default=())


FAULTS = {
    "the authorizer hangs": Fault(
        "apart", "authorizer_hangs", r"authorizer has not answered a request for \d+ s", "AuthorizerFailing",
        {"AuthorizerFailing", "CircuitOpen"}, {"NoAnswers"},
    ),
    "the authorizer fails": Fault(
        "apart", "authorizer_fails", "authorizer is degraded: its circuit is open", "AuthorizerFailing",
        {"AuthorizerFailing", "CircuitOpen"},
    ),
    "a receiver is dead": Fault(
        "apart", "receiver_dead", "Callbacks are degraded: 1 destination cannot be reached", "ReceiversAway",
        {"ReceiversAway", "DeadLettersGrowing"},
    ),
    "a sink is away": Fault(
        "apart", "sink_away", "The audit is degraded: influx: connection", "SinkBehind", {"SinkBehind"}
    ),
    "the audit's disk is full": Fault(
        "apart", "disk_full", "The audit is degraded: csv: No space left on device", "DiskFilling",
        {"DiskFilling", "SinkBehind"}, arguments=("worker",),
    ),
    "the worker is killed": Fault(
        "apart", "worker_killed", "No worker runs: the last one was heard from", "QueueStuck",
        {"QueueStuck", "NoAnswers"},
    ),
    "the database's disk is full": Fault(
        "alone", "disk_full", "(queue|database) is down: .*disk is full", "DiskFilling", {"DiskFilling", "Refusing"},
        arguments=("serve",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen_raises_its_alerts_and_ends(
    name: str, request: pytest.FixtureRequest, browser: Browser
) -> None:
    fault = FAULTS[name]
    stage: Stage = request.getfixturevalue(fault.stage)
    page = browser.new_page(base_url=stage.installation.url(stage.installation.roles[0]))
    try:
        page.goto("/dashboard")
        sentences = page.get_by_role("list", name="What is wrong")
        expect(sentences).to_have_text("Everything works.", timeout=LIMIT_S * 1000)
        before = time.monotonic()
        end = getattr(stage, fault.begin)(*fault.arguments)
        says = re.compile(fault.says)

        def said(sentences: Callable[[], list[str]]) -> bool:
            stage.traffic()
            return any(map(says.search, sentences()))

        eventually(lambda: said(stage.installation.problems), LIMIT_S, stage.installation.told)
        in_data = time.monotonic() - before
        eventually(lambda: said(sentences.all_inner_texts), LIMIT_S, stage.installation.told)
        print(f"{name}: in the data after {in_data:.1f} s, on the page after {time.monotonic() - before:.1f} s")
        alerts = {f"Chargegate{alert}" for alert in fault.alerts} - MACHINE
        seen = raised(stage, alerts)
        end()
        over(stage, seen, page)
        assert seen - {f"Chargegate{alert}" for alert in fault.perhaps} == alerts
    finally:
        page.close()


def test_no_api_is_an_alert_although_a_worker_runs(apart: Stage) -> None:
    """Nothing else would be raised, because nothing is accepted that could wait."""
    installation = apart.installation
    installation.kill("api")
    eventually(lambda: "ChargegateDown" in installation.firing(), LIMIT_S, installation.told)
    installation.start("api")
    eventually(lambda: "ChargegateDown" not in installation.firing(), LIMIT_S, installation.told)


def raised(stage: Stage, alerts: set[str]) -> set[str]:
    """Go on with the traffic until these alerts fire; all that fired meanwhile."""
    seen: set[str] = set()

    def all_fire() -> bool:
        stage.traffic()
        firing = stage.firing()
        seen.update(firing)
        return alerts <= firing

    eventually(all_fire, LIMIT_S, stage.installation.told)
    return seen


def over(stage: Stage, seen: set[str], page: Page) -> None:
    """Go on with the traffic until nothing is said any more; what fires meanwhile is added."""

    def well() -> bool:
        stage.traffic()
        seen.update(stage.firing())
        return not stage.firing() and stage.installation.problems() == []

    eventually(well, LIMIT_S, stage.installation.told)
    expect(page.get_by_role("list", name="What is wrong")).to_have_text("Everything works.")


def test_the_runbook_says_which_alerts_come_together() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    for fault in FAULTS.values():
        page = runbook.partition(f"\n## Chargegate{fault.page}\n")[2].partition("\n## ")[0]
        _, found, comes_with = page.partition("**Comes with**")
        assert found
        for alert in fault.alerts - {fault.page}:
            assert f"Chargegate{alert}" in comes_with, (fault.page, alert)
