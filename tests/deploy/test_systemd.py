"""The systemd unit, as far as it can be checked without a systemd that runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "chargegate.service"
CHARGEGATE = str(Path(sys.executable).with_name("chargegate"))
PR_SET_MDWE, PR_GET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 66, 1
# Starts a program that can make no memory executable that was ever writable.
DENYING = (
    sys.executable,
    "-c",
    "import ctypes, os, sys\n"  # noqa: ISC004 - one script
    f"if ctypes.CDLL(None).prctl({PR_SET_MDWE}, {PR_MDWE_REFUSE_EXEC_GAIN}, 0, 0, 0): sys.exit(1)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])",
)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with the command of this environment, because systemd looks whether it is there."""
    text = UNIT.read_text()
    assert text.count("/opt/chargegate/bin/chargegate") == 1
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace("/opt/chargegate/bin/chargegate", CHARGEGATE))
    return copy


@pytest.mark.servers  # systemd is provisioned together with the servers
def test_systemd_takes_it(systemd_analyze: str, unit: Path) -> None:
    done = subprocess.run(
        [systemd_analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.servers
def test_systemd_refuses_a_wrong_one(systemd_analyze: str, unit: Path) -> None:
    unit.write_text(unit.read_text().replace("Type=exec", "Type=exact").replace(CHARGEGATE, "/nowhere/chargegate"))
    done = subprocess.run(
        [systemd_analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "/nowhere/chargegate" in done.stderr


@pytest.mark.servers
def test_it_may_do_little(systemd_analyze: str, unit: Path) -> None:
    done = subprocess.run(
        [systemd_analyze, "security", "--offline=true", "--threshold=15", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-500:]


def test_the_service_has_time_to_stop() -> None:
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert int(seconds) > 30


def test_settings_in_it_are_taken(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("%S", str(tmp_path)).replace("%L", str(tmp_path))
    pairs = [
        pair.split("=", 1) for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE) for pair in line.split()
    ]
    assert len(pairs) >= 3
    (tmp_path / "chargegate.toml").touch()
    done = subprocess.run(
        [CHARGEGATE, "config", "show", "--config", tmp_path / "chargegate.toml"],
        env=dict(pairs),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f'data_dir = "{tmp_path}/chargegate"' in done.stdout


def test_the_service_needs_no_memory_that_is_written_and_run(tmp_path: Path) -> None:
    """MemoryDenyWriteExecute: the kernel's own switch for it, which the next program in the same process inherits."""
    if subprocess.run([*DENYING, "true"], check=False, timeout=60).returncode:
        pytest.skip("this kernel is older than 6.3")
    script = (
        "import ctypes, confluent_kafka, asyncpg, aio_pika, redis\n"
        f"assert ctypes.CDLL(None).prctl({PR_GET_MDWE}, 0, 0, 0, 0) == {PR_MDWE_REFUSE_EXEC_GAIN}"
    )
    subprocess.run([*DENYING, sys.executable, "-c", script], check=True, timeout=60)
    process = subprocess.Popen(
        [*DENYING, CHARGEGATE, "serve"],
        cwd=tmp_path,
        env={"CHARGEGATE_SERVER__PORT": "0", "PATH": "/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        assert any('"event":"ready"' in line for line in iter(process.stderr.readline, ""))
    finally:
        process.terminate()
        process.communicate(timeout=40)
    assert process.returncode == 0
