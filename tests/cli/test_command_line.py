"""What holds for every command: help, versions, errors, exit codes, pipes."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import chargegate
from chargegate import cli

Run = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]
pytestmark = pytest.mark.true_start  # the start and the end of a command are what these are about


def commands(command: click.Command = cli.chargegate_command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


def test_version(run: Run) -> None:
    assert run("--version").out == f"chargegate {chargegate.__version__}\n"


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_help_everywhere_with_an_example(run: Run, path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert (result.code, result.err) == (0, "")
    assert "Example" in result.out
    assert f"  chargegate {' '.join(path)}" in result.out


def test_the_list_of_commands_says_what_each_command_says(run: Run) -> None:
    listed = run("--help").out.partition("Commands:\n")[2]
    for name, command in cli.chargegate_command.commands.items():
        said = " ".join(command.help.split())
        line = next(line for line in listed.splitlines() if line.split()[0] == name)
        assert said.startswith(line.split(maxsplit=1)[1].removesuffix("..."))


@pytest.mark.parametrize(
    ("arguments", "others"),
    [
        ("--help", {"chargegate.app", "chargegate.config", "rich", "starlette"}),
        ("config check", {"chargegate.api", "chargegate.app.serving", "rich.progress", "starlette"}),
        ("serve --config nowhere.toml", {"chargegate.demo", "chargegate.top", "cryptography.x509", "obstore", "rich"}),
    ],
)
def test_a_command_imports_only_what_it_needs(folder: Path, arguments: str, others: set[str]) -> None:
    code = "import sys; from chargegate.cli import main; main(sys.argv[1:]); sys.exit(' '.join(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()], capture_output=True, text=True, check=False, timeout=60
    )
    imported = set(ran.stderr.split())
    assert "chargegate.cli" in imported
    assert not others & imported


@pytest.mark.parametrize("path", [path for path in commands() if path], ids=" ".join)
def test_settings_can_be_given_to_every_command_that_reads_them(path: tuple[str, ...]) -> None:
    command = cli.chargegate_command
    for name in path:
        command = command.commands[name]
    if not isinstance(command, click.Group) and path != ("demo",):
        assert "--config" in [option for parameter in command.params for option in parameter.opts]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("acl",),
        ("nonsense",),
        ("--nonsense",),
        ("acl", "add"),
        ("acl", "add", "-", "extra"),
        ("audit", "list", "--status", "perhaps"),
        ("audit", "list", "--limit", "0"),
        ("audit", "list", "--from", "yesterday"),
        ("audit", "list", "--station", "12"),
        ("keys", "create"),
        ("keys", "create", "--role", "king"),
        ("dead-letters", "replay"),
        ("dead-letters", "replay", "not-a-uuid"),
        ("dead-letters", "discard", "not-a-uuid"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_2(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("chargegate: ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("place", [(), ("acl",), ("acl", "list"), ("acl", "add", "-"), ("dead-letters", "replay", "x")])
def test_a_misplaced_token_is_not_repeated(run: Run, token: str, place: tuple[str, ...]) -> None:
    for word in (token, "-" + token, "--" + token):
        result = run(*place, word)
        assert result.code == 2
        assert token not in result.err


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("speed = 1", "unknown key 'speed'"),
        ("server.port = 99999", "server.port"),
        ("server = ", "not valid TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_1(run: Run, folder: Path, content: str | None, named: str) -> None:
    if content is not None:
        (folder / "other.toml").write_text(content)
    for command in (["serve"], ["acl", "list"], ["config", "show"], ["config", "check"], ["audit", "stats"]):
        result = run(*command, "--config", "other.toml")
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("chargegate: ")
        assert named in result.err
        assert result.err.count("\n") == 1


def test_a_reader_that_went_away_is_no_error(start: Start, folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start("config", "show", stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")


def test_ctrl_c_is_130_without_a_trace(start: Start) -> None:
    terminal, ours = pty.openpty()
    process = start("acl", "add", "-", stdin=ours, start_new_session=True)
    asked = process.stderr.read(len("Driver token: "))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(terminal)
    assert asked == "Driver token: "
    assert (process.returncode, out, err.strip()) == (130, "", "")


def test_the_module_is_the_command(start: Start) -> None:
    process = start("--version")
    assert process.communicate(timeout=60)[0].startswith("chargegate ")
    assert process.returncode == 0
