"""``chargegate top`` shows a running service in a terminal, and says in one line why it cannot."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.conftest import Service, Site


def run(command: str, folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [command, "top", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False, timeout=60, **options)


def test_it_shows_the_service_of_the_settings(service: Callable[..., Service], command: str, receiver: Site) -> None:
    gate = service()
    gate.finished(gate.ask(receiver.url()))
    shown = run(command, gate.folder, "--once")
    assert shown.returncode == 0, shown.stderr
    assert "Everything works." in shown.stdout
    assert "dead letters" in shown.stdout
    printed = run(command, gate.folder, "--once", "--json")
    seen = json.loads(printed.stdout)
    assert seen["status"] == "UP"
    assert sum(point["not_allowed"] for point in seen["hour"]["points"]) == 1
    assert seen.keys() == gate.client.get("/api/v1/overview").json().keys()


def test_with_keys_it_needs_an_administrators(service: Callable[..., Service], command: str, tmp_path: Path) -> None:
    files, lines = {}, []
    for role in ("admin", "client"):
        create = [command, "keys", "create", "--role", role, "--json"]
        made = json.loads(subprocess.run(create, check=True, capture_output=True, text=True).stdout)
        lines.append(made["hash"])
        files[role] = tmp_path / role
        files[role].write_text(made["key"] + "\n")
    gate = service(security__api_keys=lines)
    once = ("--url", gate.url, "--once", "--json")
    assert json.loads(run(command, tmp_path, *once, "--key-file", str(files["admin"])).stdout)["status"] == "UP"
    piped = run(command, tmp_path, *once, "--key-file", "-", input=files["admin"].read_text())
    assert json.loads(piped.stdout)["status"] == "UP"
    for refused, status in (
        (run(command, tmp_path, *once), 401),
        (run(command, tmp_path, *once, "--key-file", str(files["client"])), 403),
    ):
        assert refused.returncode == 1
        assert f"answered {status}" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_where_nothing_answers_it_says_so(command: str, tmp_path: Path, receiver: Site) -> None:
    for url in (
        "http://127.0.0.1:9",
        "ftp://x",
        "nonsense",
        "http://[",
        f"http://127.0.0.1:{receiver.port}",
        "http://h:99999",
    ):
        ended = run(command, tmp_path, "--once", "--url", url)
        assert ended.returncode == 1, url
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        assert ended.stderr.startswith("chargegate: ")
