"""Rules and dashboards on a real Prometheus, which reads the metrics of a real API and a real worker."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from deploy.installation import Installation, with_schema
from deploy.promql import ALERTS, EXPRESSIONS, RECORDS, TO_COME, metrics_in
from outside import eventually, sites
from ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.servers  # Prometheus is provisioned together with the servers


class Scraped(Installation):
    """Under traffic of every kind: decided, cached, malformed, refused by the authorizer, and with a receiver away."""

    nobody = f"http://127.0.0.1:{free_port()}/"

    def traffic(self) -> None:
        same = {"driver_token": f"driver-{uuid.uuid4().hex}", "station_id": str(uuid.uuid4())}
        for callback in (None, None, None, self.nobody, self.nobody):
            assert self.post(callback, **same) == 202
        assert self.post() == 202
        assert self.post("nowhere") == 400


@pytest.fixture(scope="module")
def scraped(prometheus: str, postgres_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    with sites() as site:
        folder, database = tmp_path_factory.mktemp("scraped"), with_schema(postgres_server.url)
        installation = Scraped(
            folder, prometheus, site, ("api", "worker"), tls=True,
            queue__url=database, queue__lease_ms=2000, database__url=database,
            callback__deadline_ms=600_000,  # those to nobody wait as long as the tests take
        )  # fmt: skip
        try:
            installation.start()

            def seen() -> bool:
                installation.traffic()
                return all(installation.query(text) for name, text in EXPRESSIONS.items() if must_find(name))

            with contextlib.suppress(AssertionError):  # the tests say which expression finds nothing
                eventually(seen, 45)
            yield installation
        finally:
            installation.close()


def must_find(name: str) -> bool:
    """Whether an expression finds something while all is well: no alert does, and no metric that is to come."""
    return name.removeprefix("rule ") not in ALERTS and not metrics_in(EXPRESSIONS[name]) & TO_COME


def test_every_metric_is_exported_or_to_come(scraped: Scraped) -> None:
    exported = scraped.exported()
    known = exported | TO_COME | RECORDS.keys() | {"up"}
    for name, expression in EXPRESSIONS.items():
        assert metrics_in(expression) <= known, name
    assert not TO_COME & exported, "take these from the list of metrics to come"


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_is_answered(scraped: Scraped, name: str) -> None:
    found = scraped.query(EXPRESSIONS[name])
    if must_find(name) and not found:  # a busy machine may have left out a few scrapes
        eventually(lambda: scraped.traffic() or scraped.query(EXPRESSIONS[name]), 20, EXPRESSIONS[name])


def test_every_process_tells_of_itself(scraped: Scraped) -> None:
    """Each process of a host has an address of its own, and the dashboard shows them side by side."""
    for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"):
        found = scraped.query(f'process_{name}{{job="chargegate"}}')
        assert len({sample["metric"]["instance"] for sample in found}) == 2, name
        assert len(found) == 2


def test_what_is_always_wrong_here_is_raised(scraped: Scraped) -> None:
    """The certificate is good for one day, and a receiver is away."""
    always = {"ChargegateCertificateExpiring", "ChargegateReceiversAway"}

    def raised() -> bool:
        scraped.traffic()
        return always <= scraped.firing()

    eventually(raised, 60, scraped.told)
