"""The chain is switched on or off while a log has no line yet: what is written then fits the header above it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site


def verified(command: str, service: Service) -> tuple[int, dict[str, object]]:
    done = service.run(command, "audit", "verify", "--json")
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("end", ["stopped", "killed", "unfinished"])
@pytest.mark.parametrize("chain", [True, False], ids=["on", "off"])
def test_the_chain_is_switched_before_the_first_line(
    service: Callable[..., Service], receiver: Site, command: str, end: str, *, chain: bool, shards: int
) -> None:
    running = service(audit__chain=not chain, audit__csv_shards=shards)
    if end == "stopped":
        running.stop()
    else:
        running.kill()
    if end == "unfinished":  # as a kill in the middle of the first write leaves it
        for file in running.folder.glob("authorization_audit*.log"):
            with file.open("a") as log:
                log.write("2026-01-3")
    running.configure(**{"audit.chain": chain, "audit.csv_shards": shards})
    running.start()
    ids = running.decided(receiver, 6)
    running.stop()
    found = set()
    for file in running.folder.glob("authorization_audit*.log*"):
        header, *lines = file.read_text().splitlines()
        assert header.endswith(",chain") == chain
        assert {line.count(",") for line in lines} <= {header.count(",")}
        found |= {line.split(",")[1] for line in lines}
    assert found == ids
    code, told = verified(command, running)
    assert (code, told["problems"]) == (0, [])
    assert told["rows" if chain else "unchained"] == 6


def test_the_chain_is_switched_just_after_a_rotation(
    service: Callable[..., Service], receiver: Site, command: str
) -> None:
    running = service(audit__chain=True)
    for chain in (False, True, False):
        running.decided(receiver, 2)
        subprocess.run([command, "audit", "rotate"], cwd=running.folder, env=running._environ, check=True)
        running.restart()  # which begins a new file
        running.stop()
        running.configure(**{"audit.chain": chain})
        running.start()
    running.decided(receiver, 2)
    running.stop()
    code, told = verified(command, running)
    assert (code, told["problems"]) == (0, [])
    assert (told["rows"], told["unchained"]) == (4, 4)
