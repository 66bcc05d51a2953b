"""``chargegate audit verify FILE…``: an auditor has the key and some files, and perhaps none of the settings."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.conftest import Service, Site


@pytest.fixture(scope="module")
def stopped(shared_service: Callable[..., Service], receiver: Site, command: str) -> Service:
    """A service with a rotated file of the log, the file that was written after it, and a daily export of all rows."""
    running = shared_service(audit__chain=True, audit__export_dir="exports")
    for _ in range(2):
        for asked in [running.ask(receiver.url()) for _ in range(3)]:
            running.finished(asked)
        if not list(running.folder.glob("authorization_audit.log.*")):
            subprocess.run([command, "audit", "rotate"], cwd=running.folder, env=running._environ, check=True)
    subprocess.run([command, "audit", "export", "--all"], cwd=running.folder, env=running._environ, check=True)
    assert running.stop() == 0
    return running


def verify(command: str, service: Service, *files: Path) -> tuple[int, dict[str, object]]:
    done = service.run(command, "audit", "verify", "--json", *map(str, files))
    return done.returncode, json.loads(done.stdout)


SETTINGS = {
    "those of the service": {"audit.export_dir": "exports"},
    "those of another log": {"audit.csv_path": "decisions.csv"},
    "no log": {"audit.csv_path": ""},
    "no log, but exports": {"audit.csv_path": "", "audit.export_dir": "exports"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_files_are_verified_whatever_the_settings_are(
    stopped: Service, command: str, tmp_path: Path, settings: dict[str, object]
) -> None:
    stopped.configure(**settings)
    (rotated,) = stopped.folder.glob("authorization_audit.log.*")
    (export,) = (stopped.folder / "exports").glob("authorization_audit_rows.*")
    code, told = verify(command, stopped, rotated, stopped.csv_file)
    assert (code, told["files"], told["rows"], told["problems"]) == (0, 2, 6, [])
    assert list(told["head"]) == ["authorization_audit.log"]
    code, told = verify(command, stopped, export)
    assert (code, told["files"], told["rows"], told["problems"]) == (0, 1, 6, [])
    assert list(told["head"]) == ["authorization_audit_rows"]
    changed = tmp_path / rotated.name
    changed.write_text(rotated.read_text().replace("not_allowed", "allowed", 1))
    code, told = verify(command, stopped, changed)
    assert code == 1
    assert [problem["what"] for problem in told["problems"]] == ["changed"]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_files_of_the_log_and_daily_exports_are_chains_of_their_own(
    stopped: Service, command: str, settings: dict[str, object]
) -> None:
    stopped.configure(**settings)
    files = [*stopped.folder.glob("authorization_audit.log*"), *(stopped.folder / "exports").glob("a*")]
    code, told = verify(command, stopped, *files)
    assert (code, told["files"], told["rows"], told["problems"]) == (0, 3, 12, [])
