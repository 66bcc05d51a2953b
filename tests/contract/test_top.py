"""``chargegate top``: how a running service is, read from outside."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from outside import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.contract.conftest import Reply, Service, Site


@pytest.fixture
def top(command: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, "top", *arguments],
            cwd=tmp_path,
            env=os.environ | environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )

    return run


def figures(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stderr == ""
    [line] = done.stdout.splitlines()
    return json.loads(line)


def test_the_figures_are_those_of_the_service(service: Callable[..., Service], receiver: Site, top: Any) -> None:
    well = service()
    asked = [well.ask(receiver.url(), driver_token=well.allow()) for _ in range(5)]
    for each in asked:
        well.finished(each)
    done = top("--url", well.url, "--once", "--json", "--every", "0.5")
    assert done.returncode == 0
    found = figures(done)
    assert (found["status"], found["sentence"], found["url"]) == ("UP", "Nothing is wrong.", well.url)
    assert found["end_to_end_ms"]["count"] == 5
    assert found["end_to_end_ms"]["since_start"]
    assert 0 <= found["end_to_end_ms"]["p50"] <= found["end_to_end_ms"]["p95"] <= found["end_to_end_ms"]["p99"]
    assert found["answered_per_second"]["accepted"] == 0
    assert found["decided_per_second"]["allowed"] == 0
    assert found["circuits"] == {"authorization": "closed", "callbacks": "closed"}
    assert (found["queue_depth"], found["in_flight"], found["dead_letters"]) == (0, 0, 0)
    plain = top("--url", f"{well.url}/", "--once", "--every", "0.5")
    assert plain.returncode == 0
    assert plain.stdout.splitlines()[0].strip() == "UP  Nothing is wrong."
    for each in asked:
        assert each.driver_token not in plain.stdout


def test_what_is_wrong_is_said_first(
    service: Callable[..., Service], authorizer: Site, answer: Callable[..., Reply], receiver: Site, top: Any
) -> None:
    token = f"held-{uuid.uuid4().hex}"
    authorizer.plan(token, answer("allowed", how="held"))
    full = service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        queue__consumer_concurrency=1,
        queue__max_size=3,
    )
    full.ask(receiver.url(), driver_token=token)
    eventually(lambda: full.metrics()["requests_in_flight"] >= 1, 30)
    eventually(lambda: full.post(full.body(receiver.url())).status_code == 503, 30, "the queue did not fill")
    done = top("--url", full.url, "--once", "--json", "--every", "0.5")
    assert done.returncode == 1
    found = figures(done)
    assert found["status"] == "DOWN"
    assert found["sentence"].startswith("The queue is full (")
    assert found["queue_depth"] >= 1
    authorizer.release(token)


def test_a_narrow_terminal_is_told_the_same(service: Callable[..., Service], top: Any) -> None:
    well = service()

    def told(columns: str) -> str:
        done = top("--url", well.url, "--once", "--every", "0.2", COLUMNS=columns)
        assert done.returncode == 0
        assert max(map(len, done.stdout.splitlines())) <= int(columns)
        _, _, table = done.stdout.partition("answered")
        return "".join(sorted("".join(table.split())))  # each letter, in whatever lines

    wide = told("80")
    assert wide
    for columns in ("20", "24", "40"):
        assert told(columns) == wide


def test_a_dead_letter_is_mentioned(service: Callable[..., Service], top: Any) -> None:
    failing = service(callback__max_attempts=1)
    asked = failing.ask("http://127.0.0.1:9/gone")
    failing.finished(asked)
    found = figures(top("--url", failing.url, "--once", "--json", "--every", "0.3"))
    assert found["dead_letters"] == 1
    assert "one dead letter waits" in found["sentence"]


def test_a_service_that_is_away_is_said(top: Any) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        done = top("--url", url, "--once", "--json")
        assert done.returncode == 1
        found = figures(done)
        assert (found["status"], found["answered_per_second"]) == ("AWAY", None)
        assert found["sentence"] == "The service does not answer: Connection refused."
        assert "Traceback" not in top("--url", url, "--once").stdout


@pytest.mark.parametrize("body", [b"", b"hello", b"[]", b'{"status": "UP"}', b'{"status": "fine", "components": {}}'])
def test_another_service_is_none(site: Callable[..., Site], reply: type[Reply], top: Any, body: bytes) -> None:
    other = site(lambda _call: reply(200, body))
    done = top("--url", other.url("/"), "--once", "--json")
    assert done.returncode == 1
    assert figures(done)["status"] == "AWAY"


def test_a_service_without_metrics_still_has_health(service: Callable[..., Service], top: Any) -> None:
    quiet = service(monitoring__metrics__enabled=False)
    found = figures(top("--url", quiet.url, "--once", "--json", "--every", "0.3"))
    assert found["status"] == "UP"
    assert found["queue_depth"] is None
    assert "/metrics is answered 404" in found["sentence"]


def test_the_key_is_sent_and_comes_from_a_file_or_the_environment(
    site: Callable[..., Site], reply: type[Reply], top: Any, tmp_path: Path
) -> None:
    health = b'{"status": "UP", "components": {}}'
    asked = site(lambda call: reply(200, health if call.path.endswith("/health") else b"queue_depth 3\n"))
    file = tmp_path / "key"
    file.write_text("key-of-a-file\n")
    found = figures(top("--url", asked.url("/below"), "--key-file", str(file), "--once", "--json", "--every", "0.2"))
    assert found["queue_depth"] == 3
    assert {call.path for call in asked.calls} == {"/below/health", "/below/metrics"}
    assert {call.headers["authorization"] for call in asked.calls} == {"Bearer key-of-a-file"}
    asked.calls.clear()
    top("--url", asked.url("/"), "--once", "--every", "0.2", CHARGEGATE_KEY="key-of-a-variable")
    assert {call.headers["authorization"] for call in asked.calls} == {"Bearer key-of-a-variable"}


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://user:secret-word@a", "http://a:port"])
def test_a_url_that_is_none_is_wrong_usage(top: Any, url: str) -> None:
    done = top("--url", url, "--once")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "secret-word" not in done.stderr


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def test_on_a_terminal_it_goes_on_until_it_is_interrupted(
    service: Callable[..., Service], command: str, terminal: tuple[int, int]
) -> None:
    well = service()
    ours, theirs = terminal
    shown = subprocess.Popen(
        [command, "top", "--every", "0.3"],  # the address is that of the settings in its folder
        cwd=well.folder,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = b""
    while text.count(b"Nothing is wrong.") < 3:
        text += os.read(ours, 65536)
    well.kill()
    while b"AWAY" not in text:
        text += os.read(ours, 65536)
    shown.send_signal(signal.SIGINT)
    while True:
        try:
            if not os.read(ours, 65536):
                break
        except OSError:  # the other side of the terminal is closed
            break
    assert shown.wait(30) == 130
    assert b"Traceback" not in text
