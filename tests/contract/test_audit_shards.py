"""Shards of the CSV log have the same life as one file: each is rotated, compressed, chained, filled and verified."""

from __future__ import annotations

import csv
import json
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

STATIONS = [str(uuid.UUID(int=number, version=4)) for number in range(1, 13)]


def run(command: str, service: Service, *arguments: str) -> list[dict[str, Any]]:
    done = service.run(command, "audit", *arguments, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    return [json.loads(line) for line in done.stdout.splitlines()]


def decided(service: Service, receiver: Site) -> set[str]:
    """One request of each station."""
    asked = [service.ask(receiver.url(), station_id=station) for station in STATIONS]
    return {each.request_id for each in asked if service.finished(each)}


def lines(service: Service) -> Counter[str]:
    """The request ids in all files, compressed or not."""
    found: Counter[str] = Counter()
    for file in service.folder.glob("authorization_audit*"):
        content = file.read_bytes()
        text = (zstd.decompress(content) if file.name.endswith(".zst") else content).decode()
        _, *rows = csv.reader(text.splitlines(), strict=True)
        found.update(row[1] for row in rows)
    return found


@pytest.mark.parametrize("chain", [False, True])
def test_shards_are_rotated_compressed_filled_and_verified(
    service: Callable[..., Service], receiver: Site, command: str, *, chain: bool
) -> None:
    running = service(audit__csv_shards=3, audit__chain=chain)
    ids = decided(running, receiver)
    names = {f"authorization_audit_shard_{number}.log" for number in range(3)}
    used = {path.name for path in running.folder.glob("authorization_audit*") if path.read_text().count("\n") > 1}
    assert used <= names
    assert len(used) > 1
    assert {each["file"] for each in run(command, running, "rotate", "--dry-run")} == used
    assert {each["file"] for each in run(command, running, "rotate")} == used
    ids |= decided(running, receiver)
    assert {each["file"] for each in run(command, running, "rotate")} == used
    rotated = len(list(running.folder.glob("authorization_audit*.log.*")))
    assert rotated == 2 * len(used)
    assert len(run(command, running, "compress", "--all")) == rotated
    running.kill()
    running.start()
    ids |= decided(running, receiver)
    assert lines(running) == Counter(ids)
    assert run(command, running, "backfill", "--sink", "csv")[0]["written"] == 0
    if chain:
        (told,) = run(command, running, "verify")
        assert told["problems"] == []
        assert told["rows"] == len(ids)
        assert set(told["head"]) == used
    assert running.stop() == 0
    lost = running.folder / min(used)
    missing = lost.read_text().count("\n") - 1
    assert missing > 0
    lost.unlink()
    assert lines(running) < Counter(ids)
    assert run(command, running, "backfill", "--sink", "csv")[0]["written"] == missing
    assert lines(running) == Counter(ids)
    restored = run(command, running, "restore")
    assert Counter(row["request_id"] for row in restored) == Counter(ids)


def test_a_chain_goes_on_through_changes_of_the_number_of_shards(
    service: Callable[..., Service], receiver: Site, command: str
) -> None:
    """Also from files without a chain."""
    running = service()
    ids = decided(running, receiver)
    assert running.stop() == 0
    for shards in (2, 1, 3):
        running.configure(**{"audit.csv_shards": shards, "audit.chain": True})
        running.start()
        ids |= decided(running, receiver)
        assert lines(running) == Counter(ids)
        (told,) = run(command, running, "verify")
        assert told["problems"] == []
        assert told["rows"] + told["unchained"] == len(ids)
        assert running.stop() == 0
    assert {each["step"] for each in run(command, running, "rotate")} == {"rotate"}
    assert run(command, running, "rotate") == []  # no shard of an earlier number was left out
    assert lines(running) == Counter(ids)
