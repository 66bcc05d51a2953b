"""What is forked (``forked.py``) is to a test what a true start is."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forked
from outside import eventually
from ports import free_port

COMMANDS = [[forked.COMMAND], [sys.executable, "-m", "chargegate"]]


@pytest.fixture(params=["forked", "true"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Starts the service in both ways in turn, and verifies which one it was."""
    if os.environ.get("CHARGEGATE_TEST_TRUE_STARTS"):
        pytest.skip("CHARGEGATE_TEST_TRUE_STARTS is set")
    monkeypatch.setattr(forked.Popen, "allowed", request.param == "forked")
    started: list[forked.Popen] = []

    def start(*arguments: str, command: int = 0, **options: Any) -> forked.Popen:
        process = forked.Popen([*COMMANDS[command], *arguments], **options)
        assert (process._end is not None) == (request.param == "forked")
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def serving(start: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A service that is ready."""

    def serving(**options: Any) -> Any:
        port = free_port()
        (tmp_path / "chargegate.toml").write_text(f"server.port = {port}\n")
        with (tmp_path / "log").open("wb") as log:
            files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            process = start("serve", "--config", "chargegate.toml", cwd=tmp_path, **files | options)
        eventually(lambda: process.poll() is not None or answers(port), 60)
        assert process.poll() is None, (tmp_path / "log").read_text()
        return process

    return serving


def answers(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("command", [0, 1])
def test_output_errors_and_exit_codes(start: Callable[..., Any], command: int) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "command": command}
    version = start("--version", **pipes)
    out, err = version.communicate(timeout=60)
    assert (version.returncode, err) == (0, "")
    assert out.startswith("chargegate ")
    wrong = start("no-such-command", **pipes)
    out, err = wrong.communicate(timeout=60)
    assert (wrong.returncode, out) == (2, "")
    assert err.startswith("chargegate: ")


def test_what_the_command_is_given(start: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "chargegate.toml").write_text('server.host = "127.0.0.2"\n')
    kept = {name: value for name, value in os.environ.items() if name == "PATH" or name.startswith("PYTHON")}
    environ = kept | {"CHARGEGATE_SERVER__PORT": "1234"}
    shown = start("config", "show", "--json", cwd=tmp_path, env=environ, stdout=subprocess.PIPE)
    text, _ = shown.communicate(timeout=60)
    assert b'"127.0.0.2"' in text
    assert b"1234" in text


def test_it_reads_what_is_written_to_it(start: Callable[..., Any], tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    added = start("acl", "add", "-", cwd=tmp_path, **pipes, text=True)
    out, err = added.communicate("driver-token.0123456789\n", timeout=60)
    assert added.returncode == 0, err
    assert "driver-token" not in out
    assert (tmp_path / "data").is_dir()


def test_a_pipe_that_nobody_reads(start: Callable[..., Any]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        assert start("--help", stdout=closed, stderr=subprocess.PIPE).wait(60) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_signals_reach_it(serving: Callable[..., Any], number: signal.Signals, code: int) -> None:
    process = serving()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(number)
    assert process.wait(60) == code
    assert process.poll() == code
    process.kill()  # as with any process that has ended, this does nothing
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_process_of_its_own(serving: Callable[..., Any], tmp_path: Path) -> None:
    lowest = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, lowest[1]))
    try:
        process = serving(start_new_session=True, umask=0o027)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, lowest)
    place = Path(f"/proc/{process.pid}")
    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
    assert (place / "cwd").readlink() == tmp_path
    assert "Umask:\t0027" in (place / "status").read_text()
    assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, lowest[1])
    for number, file in enumerate([Path("/dev/null"), tmp_path / "log", tmp_path / "log"]):
        assert (place / "fd" / str(number)).readlink() == file
    assert b"CHARGEGATE_TEST_TRUE_STARTS" not in (place / "environ").read_bytes()


def test_it_has_no_file_of_ours(serving: Callable[..., Any], tmp_path: Path) -> None:
    with (tmp_path / "ours").open("wb") as ours:
        os.set_inheritable(ours.fileno(), True)
        process = serving()
        opened = []
        for file in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it closed this one just now
                opened.append(file.readlink())
    assert tmp_path / "log" in opened
    assert tmp_path / "ours" not in opened


def test_two_have_different_random_numbers(start: Callable[..., Any], tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        created = start("keys", "create", "--role", "admin", "--json", cwd=tmp_path / name, stdout=subprocess.PIPE)
        made.append(json.loads(created.communicate(timeout=60)[0])["key"])
    assert made[0] != made[1]


def test_many_threads_wait_for_one(serving: Callable[..., Any]) -> None:
    process = serving()
    codes: list[int] = []
    waiting = [threading.Thread(target=lambda: codes.append(process.wait(60))) for _ in range(4)]
    for thread in waiting:
        thread.start()
    process.terminate()
    for thread in waiting:
        thread.join()
    assert codes == [0] * 4
