"""A folder that was copied to another machine: two processes never go on under one name."""

from __future__ import annotations

import csv
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from outside import eventually
from scaling.load import Load
from trying import some_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from outside import Site
    from scaling.cluster import Cluster, Process
    from scaling.engines import Engine

pytestmark = pytest.mark.servers


def copied(cluster: Cluster, worker: Process) -> Process:
    """Another worker, with a copy of the folder of this one."""
    other = cluster.add("worker")
    shutil.copytree(worker.folder / "data", other.folder / "data")
    return other


def told(process: Process) -> list[dict[str, Any]]:
    """What its log says of a name that was taken."""
    lines = (process.folder / "log").read_text().splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [event for event in found if "takes another name" in event["event"]]


def file_of(process: Process) -> Path:
    return process.folder / "data" / "worker-1.name"


def name_of(process: Process) -> str:
    return file_of(process).read_text().split()[0]


def audited(*workers: Process) -> list[str]:
    rows: list[str] = []
    for worker in workers:
        file = worker.folder / "authorization_audit.log"
        if file.exists():
            rows += [row["request_id"] for row in csv.DictReader(file.read_text().splitlines())]
    return rows


def each_line_once(cluster: Cluster, load: Load, *workers: Process) -> None:
    load.check()
    decided = {row["request_id"] for row in cluster.decisions()}
    eventually(lambda: set(audited(*workers)) == decided, 20, cluster.tails)
    lines = audited(*workers)
    assert len(lines) == len(set(lines)), f"{len(lines) - len(set(lines))} audit lines twice"


@some_of("queue", ["postgres", "redis", "kafka"], ["postgres", "redis"])
def test_a_copy_of_a_folder_beside_the_original(
    clusters: Callable[..., Cluster], new_engine: Callable[[str], Engine], receiver: Site, queue: str
) -> None:
    with clusters(new_engine(queue).new_queue()) as cluster:
        cluster.add("api")
        worker = cluster.add("worker")
        cluster.start()
        with Load(cluster, receiver, flaky=0) as load:
            load.more(20)
            copy = copied(cluster, worker)
            copy.start()
            load.more(60)
            worker.kill()  # which goes on under its own name
            worker.start()
            load.more(40)
        each_line_once(cluster, load, worker, copy)
        (event,) = eventually(lambda: told(copy), 10, copy.tail)
        assert event["level"] == "warning"
        assert event["name"] == name_of(worker) != name_of(copy) == event["takes"]
        assert not told(worker)


def test_an_original_that_comes_back_beside_its_copy(
    clusters: Callable[..., Cluster], new_engine: Callable[[str], Engine], receiver: Site
) -> None:
    """The folder moved to another machine, and somebody starts the first one again."""
    with clusters(new_engine("redis").new_queue()) as cluster:
        cluster.add("api")
        worker = cluster.add("worker")
        cluster.start()
        with Load(cluster, receiver, flaky=0) as load:
            load.more(20)
            worker.kill()
            copy = copied(cluster, worker)
            copy.start()
            load.more(20)
            worker.start()
            load.more(40)
        each_line_once(cluster, load, worker, copy)
        assert eventually(lambda: told(copy), 10, copy.tail)
        assert not told(worker)
        assert name_of(copy) != name_of(worker)


def test_copies_of_a_whole_machine_that_start_together(
    clusters: Callable[..., Cluster], new_engine: Callable[[str], Engine], receiver: Site
) -> None:
    """Each file has the number that it had there, so that only the server can tell them apart."""
    with clusters(new_engine("postgres").new_queue()) as cluster:
        cluster.add("api")
        worker = cluster.add("worker")
        cluster.start()
        worker.terminate()
        worker.ended()
        copy = copied(cluster, worker)
        numbers = [str(file_of(each).stat().st_ino) for each in (worker, copy)]
        written = file_of(copy).read_text()
        file_of(copy).write_text(written.replace(*numbers))
        assert written.count(numbers[0]) == 1
        cluster.start()
        with Load(cluster, receiver, flaky=0) as load:
            load.more(80)
        each_line_once(cluster, load, worker, copy)
        assert len(eventually(lambda: told(worker) + told(copy), 10, cluster.tails)) == 1
        assert name_of(worker) != name_of(copy)
