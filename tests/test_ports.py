import os
import subprocess
import sys
from pathlib import Path

import pytest

import ports

COUNT = 200
GIVE = f"import ports; print(*[ports.free_port() for _ in range({COUNT})])"


def given(worker: str) -> set[int]:
    environ = {**os.environ, "PYTEST_XDIST_WORKER": worker, "PYTHONPATH": str(Path(ports.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", GIVE], env=environ, capture_output=True, text=True, check=True)
    return set(map(int, done.stdout.split()))


@pytest.mark.parametrize("others", [["gw1"], ["gw7", "gw15"]])
def test_no_two_workers_are_given_the_same_port(others: list[str]) -> None:
    all_of_them = [given(worker) for worker in ["gw0", *others]]
    assert [len(each) for each in all_of_them] == [COUNT] * len(all_of_them)
    assert len(set.union(*all_of_them)) == COUNT * len(all_of_them)


def test_no_port_is_one_of_an_outgoing_connection() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(given("gw3")) < first
