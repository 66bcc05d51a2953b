"""Machines whose clocks are wrong, made with libfaketime: the server's clock counts, and the difference is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from outside import eventually
from scaling.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from outside import Site
    from scaling.cluster import Cluster, Process
    from scaling.engines import Engine

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
pytestmark = pytest.mark.servers


def wrong_by(process: Process, seconds: int) -> Process:
    """Let its machine's clocks be wrong."""
    if FAKETIME is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("libfaketime is not installed; `make servers` does it")
    process.environment |= {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME": f"{seconds:+}",
        "FAKETIME_DONT_RESET": "1",
    }
    return process


WRITTEN = """
import time, pathlib
real, file = time.time_ns, pathlib.Path({file!r})
time.time_ns = lambda: real() + int(file.read_text()) * 10**9
time.time = lambda: time.time_ns() / 1e9
"""


def wrong_as_written(process: Process) -> Callable[[int], None]:
    """Let its wall clock alone be wrong by as much as is set. libfaketime also moves the clock that counts seconds,
    which no machine does and which librdkafka does not survive, so that a module that Python reads at its start stands
    in for it."""
    folder = process.folder / "python"
    folder.mkdir()
    offset = folder / "offset"
    (folder / "sitecustomize.py").write_text(WRITTEN.format(file=str(offset)))
    process.environment["PYTHONPATH"] = str(folder)

    def write(seconds: int) -> None:
        (folder / "next").write_text(str(seconds))
        (folder / "next").rename(offset)

    write(0)
    return write


def events(process: Process, name: str) -> list[dict[str, Any]]:
    lines = (process.folder / "log").read_text().splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [event for event in found if name in event["event"]]


def skew_s(process: Process) -> float:
    (line,) = [line for line in process.get("/metrics").text.splitlines() if line.startswith("clock_skew_seconds ")]
    return float(line.split()[1])


def told(process: Process, seconds: int) -> None:
    """It says everywhere that its clock is wrong, and by how much."""
    assert abs(skew_s(process) - seconds) < 5
    clock = process.health()["components"]["clock"]
    assert clock["status"] == "DEGRADED"
    assert abs(clock["details"]["ahead_ms"] / 1000 - seconds) < 5
    # A busy machine may read it more than once until it is as wrong as it was set.
    event = eventually(lambda: events(process, "clock"), 10, process.tail)[-1]
    assert event["level"] == "warning"
    assert abs(event["ahead_ms"] / 1000 - seconds) < 5


@pytest.mark.parametrize(
    ("queue", "role", "seconds"),
    [
        ("postgres", "worker", 310),
        ("postgres", "api", -310),
        ("redis", "worker", -310),
        ("redis", "api", 3600),
        ("kafka", "worker", 310),
    ],
)
def test_a_wrong_clock_makes_nothing_too_old(
    clusters: Callable[..., Cluster],
    new_engine: Callable[[str], Engine],
    receiver: Site,
    queue: str,
    role: str,
    seconds: int,
) -> None:
    """Kafka has no clock to ask, so that the database's counts."""
    with clusters(new_engine(queue).new_queue()) as cluster:
        for each in ("api", "worker"):
            process = cluster.add(each)
            if each == role and queue == "kafka":
                wrong_as_written(process)(seconds)
            elif each == role:
                wrong_by(process, seconds)
        cluster.start()
        (wrong,) = [process for process in cluster.processes if process.role == role]
        (right,) = [process for process in cluster.processes if process.role != role]
        told(wrong, seconds)
        assert right.health()["components"]["clock"]["status"] == "UP"
        assert abs(skew_s(right)) < 2
        with Load(cluster, receiver) as load:
            load.more(30)
        decided = load.check()
        assert decided["unknown"] == 0, cluster.tails()
        for call in receiver.calls[-30:]:  # a receiver refuses what is five minutes off
            assert abs(int(call.headers["webhook-timestamp"]) - call.at) < 60


def test_a_request_that_is_too_old_is_still_too_old(
    clusters: Callable[..., Cluster], new_engine: Callable[[str], Engine], receiver: Site
) -> None:
    """As the server's clock has it, whatever the worker's says."""
    queue = new_engine("redis").new_queue()
    with clusters(queue, queue__max_age_ms=1000) as cluster:
        cluster.add("api")
        cluster.start()
        load = Load(cluster, receiver, flaky=0)
        with load:
            load.more(10)
        oldest = cluster.apis[0]
        eventually(lambda: oldest.health()["components"]["queue"]["details"]["oldest_age_ms"] > 3000)
        wrong_by(cluster.add("worker"), -310)
        cluster.start()
        assert set(load.check()) == {"unknown"}


def test_a_clock_that_is_set_wrong_later_is_noticed(
    clusters: Callable[..., Cluster], new_engine: Callable[[str], Engine], receiver: Site
) -> None:
    with clusters(new_engine("redis").new_queue()) as cluster:
        worker = cluster.add("worker")
        cluster.add("api")
        set_wrong = wrong_as_written(worker)
        cluster.start()
        assert abs(skew_s(worker)) < 2
        set_wrong(310)
        eventually(lambda: skew_s(worker) > 300, 30, worker.tail)
        told(worker, 310)
        with Load(cluster, receiver) as load:
            load.more(20)
        assert load.check()["unknown"] == 0
        set_wrong(0)
        eventually(lambda: abs(skew_s(worker)) < 2, 30, worker.tail)
        assert worker.health()["components"]["clock"]["status"] == "UP"
