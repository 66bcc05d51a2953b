"""Several sinks at once, as an operator has them: each has every decision once, whatever happens to any of them."""

from __future__ import annotations

import csv
import json
import signal
import socket
import sqlite3
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from servers.influxdb import query

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.conftest import Service, Site

    from servers.server import Server

LIMIT_S = 60


def csv_lines(folder: Path) -> Counter[str]:
    """The request ids in all the CSV files. Each station is in one shard only."""
    found: Counter[str] = Counter()
    for file in folder.glob("authorization_audit*.log"):
        with file.open(newline="") as lines:
            _, *rows = csv.reader(lines, strict=True)
        assert all(len(row) == 7 for row in rows)
        found.update(row[1] for row in rows)
    return found


def points(url: str, database: str) -> Counter[str]:
    found = query(url, "SELECT request_id FROM authorization_decisions", database)
    return Counter(row["request_id"] for row in found)


def audit(service: Service) -> dict[str, Any]:
    return service.client.get("/health").json()["components"]["audit"]


def lag(service: Service, sink: str = "influx") -> float:
    return service.metrics()[f'audit_sink_lag_seconds{{sink="{sink}"}}']


def decided(service: Service, receiver: Site, count: int, **fields: Any) -> set[str]:
    asked = [service.ask(receiver.url(), **fields) for _ in range(count)]
    return {each.request_id for each in asked if service.finished(each)}


@pytest.fixture
def both(service: Callable[..., Service], influxdb_server: Server, influx_database: str) -> Callable[..., Service]:
    """Makes a service with ten shards and InfluxDB."""

    def make(**settings: Any) -> Service:
        values = {"audit__influx_url": influxdb_server.url, "audit__influx_database": influx_database}
        return service(**values | {"audit__csv_shards": 10} | settings)

    return make


def test_every_sink_has_each_decision_and_says_so(
    both: Callable[..., Service],
    receiver: Site,
    eventually: Callable[..., Any],
    influxdb_server: Server,
    influx_database: str,
) -> None:
    running = both()
    everything = decided(running, receiver, 25)
    station = "0A1B2C3D-0000-4000-8000-00000000000A"
    everything |= decided(running, receiver, 25, station_id=station) | decided(
        running, receiver, 5, station_id=station.lower()
    )
    assert csv_lines(running.folder) == Counter(everything)
    eventually(lambda: points(influxdb_server.url, influx_database) == Counter(everything), LIMIT_S)
    eventually(lambda: lag(running) == 0, LIMIT_S)
    metrics = running.metrics()
    for sink in ("csv", "influx", "database"):
        assert metrics[f'audit_log_entries_total{{sink="{sink}"}}'] == 55
    assert lag(running, "csv") == 0
    assert audit(running) == {"status": "UP", "details": {"csv": "on", "influx": "on"}}
    assert running.stop() == 0
    assert not running.csv_file.exists()
    holding = [file for file in running.folder.glob("*_shard_*.log") if station.lower() in file.read_text().lower()]
    assert len(holding) == 1
    assert {file.name for file in running.folder.glob("*.log")} >= {
        f"authorization_audit_shard_{number}.log" for number in range(10)
    }
    found = query(influxdb_server.url, "SELECT * FROM authorization_decisions", influx_database, epoch="ms")
    shards = [file.read_text() for file in running.folder.glob("*_shard_*.log")]
    rows = {row[1]: row for text in shards for row in csv.reader(text.splitlines())}
    for point in found:
        row = rows[point["request_id"]]
        assert [point["station_id"], point["driver_token_hash"], point["status"], point["reason"]] == [
            row[2].lower(), *row[3:6],
        ]  # fmt: skip
        assert point["processing_time_ms"] == int(row[6])
        assert f"{point['time'] % 1000:03}Z" == row[0][-4:]


def test_decisions_about_one_station_in_one_millisecond_are_all_there(
    both: Callable[..., Service],
    command: str,
    receiver: Site,
    eventually: Callable[..., Any],
    influxdb_server: Server,
    influx_database: str,
) -> None:
    """InfluxDB replaces a point that has the tags and the time of another one. The service is killed meanwhile, and
    the points are written again."""
    running = both()
    here: dict[str, Any] = {"station_id": "0a1b2c3d-0000-4000-8000-00000000000a"}

    def ask_many() -> None:
        with ThreadPoolExecutor(16) as pool:
            asked = list(pool.map(lambda _: running.ask(receiver.url(), **here), range(400)))
        for each in asked:
            running.finished(each)

    ask_many()
    running.kill()
    running.start()
    ask_many()
    assert running.stop() == 0
    with closing(sqlite3.connect(running.data / "chargegate.db")) as database:
        rows = database.execute("SELECT request_id, timestamp FROM authorization_audit").fetchall()
    assert len({at for _, at in rows}) < len(rows) == 800, "no two were decided in one millisecond"

    def told() -> Counter[tuple[str, int]]:
        found = query(influxdb_server.url, "SELECT * FROM authorization_decisions", influx_database, epoch="ms")
        return Counter((point["request_id"], point["time"]) for point in found)

    assert told() == Counter(rows)
    done = running.run(command, "audit", "backfill", "--sink", "influx", "--json")
    assert json.loads(done.stdout)["written"] == 800, done.stderr
    assert told() == Counter(rows)


def test_a_server_that_is_away_delays_nothing_and_is_brought_up_to_date(
    both: Callable[..., Service],
    receiver: Site,
    eventually: Callable[..., Any],
    influxdb_server: Server,
    influx_database: str,
) -> None:
    """It is stopped, killed, and away while the service starts and is killed itself."""
    running = both()
    everything = decided(running, receiver, 5)
    eventually(lambda: len(points(influxdb_server.url, influx_database)) == 5, LIMIT_S)
    influxdb_server.stop()
    everything |= decided(running, receiver, 20)
    assert csv_lines(running.folder) == Counter(everything)
    eventually(lambda: audit(running)["status"] == "DEGRADED", LIMIT_S)
    assert "connection refused" in audit(running)["details"]["influx"]
    assert audit(running)["details"]["csv"] == "on"
    assert running.client.get("/health").json()["status"] == "DEGRADED"
    assert running.ready() == 200
    assert lag(running) > 0
    influxdb_server.start()
    eventually(lambda: points(influxdb_server.url, influx_database) == Counter(everything), LIMIT_S)
    eventually(lambda: audit(running)["status"] == "UP", LIMIT_S)
    influxdb_server.kill()
    everything |= decided(running, receiver, 10)
    running.kill()
    running.start()
    everything |= decided(running, receiver, 10)
    influxdb_server.start()
    eventually(lambda: points(influxdb_server.url, influx_database) == Counter(everything), LIMIT_S)
    assert csv_lines(running.folder) == Counter(everything)
    assert sum("audit sink failed" in line for line in running.log.splitlines()) <= 3


def test_a_silent_server_delays_nothing(
    service: Callable[..., Service], receiver: Site, eventually: Callable[..., Any]
) -> None:
    """It takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        running = service(audit__influx_url=url, audit__influx_bucket="b", audit__influx_token="t")
        everything = decided(running, receiver, 20)
        assert csv_lines(running.folder) == Counter(everything)
        eventually(lambda: lag(running) > 0, LIMIT_S)
        assert running.stop() == 0


def test_killed_at_any_moment_with_the_server_coming_and_going(
    both: Callable[..., Service],
    receiver: Site,
    eventually: Callable[..., Any],
    influxdb_server: Server,
    influx_database: str,
) -> None:
    """The service is killed under load, and the number of files changes each time."""
    running = both()
    everything: set[str] = set()
    for turn, shards in enumerate((3, 1, 10, 2)):
        accepted: list[Any] = []
        load = threading.Thread(target=_pressed, args=(running, receiver, accepted))
        load.start()
        eventually(partial(_has, accepted, 15), LIMIT_S)
        (influxdb_server.kill, influxdb_server.start)[turn % 2]()
        assert running.process is not None
        running.process.send_signal(signal.SIGKILL)
        load.join()
        running.ended()
        running.configure(
            **{
                "audit.influx_url": influxdb_server.url,
                "audit.influx_database": influx_database,
                "audit.csv_shards": shards,
            }
        )
        running.start()
        everything |= {each.request_id for each in accepted if running.finished(each)}
    everything |= decided(running, receiver, 3)
    influxdb_server.start()
    eventually(lambda: len(points(influxdb_server.url, influx_database)) >= len(everything), LIMIT_S)
    assert running.stop() == 0
    recorded = Counter(row[0] for row in running.audit_rows())
    assert everything <= set(recorded)
    assert csv_lines(running.folder) == recorded
    eventually(lambda: points(influxdb_server.url, influx_database) == recorded, LIMIT_S)


def _has(accepted: list[Any], count: int) -> bool:
    return len(accepted) >= count


def _pressed(running: Service, receiver: Site, accepted: list[Any]) -> None:
    """Ask until the service is gone."""
    import httpx

    client = running.client
    while True:
        try:
            accepted.append(running.ask(receiver.url()))
        except (httpx.HTTPError, RuntimeError, AssertionError):
            assert client is not None
            return


def test_secrets_stand_nowhere(
    service: Callable[..., Service], command: str, receiver: Site, eventually: Callable[..., Any]
) -> None:
    """The port refuses connections."""
    running = service(
        audit__influx_url="http://127.0.0.1:1", audit__influx_bucket="b", audit__influx_token="a-secret-of-influx"
    )
    decided(running, receiver, 1)
    eventually(lambda: audit(running)["status"] == "DEGRADED", LIMIT_S)
    seen = running.log + running.client.get("/health").text + running.client.get("/metrics").text
    shown = subprocess.run(
        [command, "config", "show", "--config", "chargegate.toml"],
        cwd=running.folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "a-secret-of-influx" not in seen + shown


def test_backfill(
    service: Callable[..., Service],
    command: str,
    receiver: Site,
    influxdb_server: Server,
    influx_database: str,
) -> None:
    """Into InfluxDB that was not there, and into CSV files that were deleted; again changes nothing."""
    running = service()
    everything = decided(running, receiver, 12)
    assert running.stop() == 0
    into = {"audit.influx_url": influxdb_server.url, "audit.influx_database": influx_database}
    running.configure(**into)

    def backfilled(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [command, "audit", "backfill", "--config", "chargegate.toml", "--json", *arguments],
            cwd=running.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert backfilled("--sink", "influx", "--dry-run")["written"] == 12
    assert not points(influxdb_server.url, influx_database)
    for _ in range(2):
        assert backfilled("--sink", "influx", "--from", "2020-01-01")["written"] == 12
        assert points(influxdb_server.url, influx_database) == Counter(everything)
    assert backfilled("--sink", "influx", "--to", "2020-01-01")["decisions"] == 0
    lines = running.csv_file.read_text().splitlines(keepends=True)
    running.csv_file.write_text("".join(lines[:5]))
    assert backfilled("--sink", "csv", "--dry-run")["written"] == 8
    assert backfilled("--sink", "csv")["written"] == 8
    assert backfilled("--sink", "csv")["written"] == 0
    assert csv_lines(running.folder) == Counter(everything)
    running.start()
    everything |= decided(running, receiver, 3)
    assert backfilled("--sink", "csv")["written"] == 0
    assert running.stop() == 0
    assert csv_lines(running.folder) == Counter(everything)
    assert points(influxdb_server.url, influx_database) == Counter(everything)
