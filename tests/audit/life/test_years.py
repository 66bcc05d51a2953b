"""A row is in exactly one place all its life, whenever the processes die that move it."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

SIMULATION = Path(__file__).with_name("simulated.py")


def simulate(server: Any, folder: Path, limit_s: float, *numbers: int) -> str:
    """``numbers``: days and kills; then the ages in days at which a file is compressed, archived and deleted."""
    key, secret = server.writer
    name = f"b{random.getrandbits(48):x}"
    access = {"access_key_id": key, "secret_access_key": secret, "region": "us-east-1"}
    store = S3Store(name, endpoint=server.url, client_options={"allow_http": True}, **access)
    obstore.put(store, "other", b"")  # makes the bucket
    environ = {"PYTHONPATH": str(SIMULATION.parents[2])}
    environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1"}
    url = f"s3://{name}/audit?endpoint={server.url}"
    done = subprocess.run(
        [sys.executable, SIMULATION, folder, url, *map(str, numbers)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.timeout(600)
def test_a_season_with_thirty_kills(s3_server: Any, tmp_path: Path) -> None:
    assert "30 kills" in simulate(s3_server, tmp_path, 550, 70, 30, 3, 10, 40)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_three_years_with_two_hundred_kills(s3_server: Any, tmp_path: Path) -> None:
    assert "200 kills" in simulate(s3_server, tmp_path, 3500, 1096, 200, 7, 30, 730)
