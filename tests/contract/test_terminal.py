"""What strangers wrote, on the terminal of whoever looks: no command writes a character that a terminal runs, or that
changes the order in which others are read."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

CODES = (*range(1, 32), 127, *range(128, 160), 0xAD, 0x61C, *range(0x200B, 0x2010), 0x2028, 0x2029)
HOSTILE = "".join(map(chr, (*CODES, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF, 0xE0001, 0xE0041)))
COMMANDS = [
    ("acl", "list"),
    ("audit", "list"),
    ("audit", "timeouts"),
    ("audit", "stats"),
    ("dead-letters", "list"),
    ("config", "show"),
    ("config", "check"),
]


@pytest.fixture(scope="module")
def written(shared_service: Callable[..., Service], receiver: Site, reply: type[Reply]) -> Service:
    """A service that is stopped, in whose database every text that is listed is hostile."""
    caller = shared_service(callback__retry_delay_ms=1, callback__max_attempts=1)
    caller.allow(note=f"a{HOSTILE}b")
    for _ in range(2):
        assert caller.finished(caller.ask(receiver.planned(reply(500))))["status"] == "FAILED"
    assert caller.stop() == 0
    with contextlib.closing(sqlite3.connect(caller.data / "chargegate.db")) as database, database:
        database.execute("UPDATE charging_requests SET last_error = ?1, client = ?1, station_id = ?1", (HOSTILE,))
        database.execute("UPDATE charging_requests SET driver_token_hash = ?1", (HOSTILE,))
        database.execute("UPDATE authorization_audit SET station_id = ?1, driver_token_hash = ?1", (HOSTILE,))
        database.execute(
            "UPDATE authorization_audit SET status = 'unknown', reason = iif(sequence = 1, ?, 'authorization_timeout')",
            (HOSTILE,),
        )
    return caller


def run(command: str, service: Service, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **environ}
    return subprocess.run(
        [command, *arguments], cwd=service.folder, env=environment, capture_output=True, text=True, check=False
    )


def raw(text: str) -> set[str]:
    """The characters that a terminal would not simply show."""
    return {c for c in text if not c.isprintable()} - {"\n", "\t"}


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_a_command_writes_nothing_that_a_terminal_runs(
    written: Service, command: str, arguments: tuple[str, ...], *, as_json: bool
) -> None:
    done = run(command, written, *arguments, *["--json"] * as_json)
    assert (done.returncode, done.stderr) == (0, "")
    assert raw(done.stdout) == set()
    if as_json:
        lines: list[Any] = [json.loads(line) for line in done.stdout.splitlines()]
        assert "\t" not in done.stdout
        if arguments[0] not in ("config", "acl"):
            assert all(line["station_id"] == HOSTILE for line in lines)
            assert lines


@pytest.mark.parametrize(
    "arguments",
    [
        ("acl", "import", f"a{HOSTILE}b.csv"),
        ("acl", "add", "too-short", "--note", HOSTILE),
        ("acl", "list", f"--{HOSTILE}"),
        (HOSTILE,),
        ("audit", "list", "--status", HOSTILE),
        ("audit", "list", "--station", HOSTILE),
        ("audit", "list", "--from", HOSTILE),
        ("dead-letters", "replay", HOSTILE),
        ("config", "check", "--config", f"a{HOSTILE}b.toml"),
        ("keys", "create", "--role", "client", "--name", HOSTILE),
        ("queue", "move", "--from", "sqlite", "--to", f"redis://{HOSTILE}"),
    ],
    ids=lambda arguments: " ".join(word for word in arguments if word.isascii() and word.isprintable()) or "command",
)
def test_an_error_writes_nothing_that_a_terminal_runs(
    written: Service, command: str, arguments: tuple[str, ...]
) -> None:
    done = run(command, written, *arguments)
    assert done.returncode in (1, 2)
    assert (done.stdout, raw(done.stderr)) == ("", set())
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["CHARGEGATE_QUEUE__URL", "CHARGEGATE_CALLBACK__BLOCKED_NETWORKS", "CHARGEGATE_A__B"])
def test_a_wrong_setting_is_named_without_what_a_terminal_runs(written: Service, command: str, name: str) -> None:
    done = run(command, written, "config", "check", **{name: f"x{HOSTILE}y"})
    assert done.returncode == 1
    assert (done.stdout, raw(done.stderr)) == ("", set())


def test_the_log_writes_nothing_that_a_terminal_runs(
    service: Callable[..., Service], site: Callable[..., Site], receiver: Site, answer: Callable[..., Reply]
) -> None:
    """The reason is another service's, and any text."""
    authorizer = site(lambda _call: answer("not_allowed", HOSTILE))
    caller = service(authorization__backend="http", authorization__url=authorizer.url("/decide"))
    asked = caller.ask(receiver.url())
    assert caller.finished(asked)["status"] == "COMPLETED"
    assert caller.stop() == 0
    assert raw(caller.log) == set()
    assert all(json.loads(line) for line in caller.log.splitlines())
