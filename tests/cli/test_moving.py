"""`chargegate queue move`, `chargegate database move` and `chargegate replay`, where they cannot do what is asked.
What they do is tested in tests/scaling."""

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

NOBODY = "127.0.0.1:1"


def fails(run: Run, *arguments: str) -> tuple[int, str]:
    result = run(*arguments)
    assert result.out == ""
    assert "hunter2" not in result.err
    told = [line for line in result.err.splitlines(keepends=True) if not line.startswith("{")]  # else of the log
    assert len(told) == 1
    assert told[0].startswith("chargegate: ")
    return result.code, told[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("queue", "move", "--from", "sqlite"), "--to"),
        (("queue", "move", "--from", "sqlite", "--to", "sqlite"), "same queue"),
        (("queue", "move", "--from", "ftp://host", "--to", "sqlite"), "--from"),
        (("queue", "move", "--from", "sqlite", "--to", "mysql://user:hunter2@host/db"), "--to"),
        (("queue", "move", "--from", "memory://", "--to", "sqlite"), "memory://"),
        (("database", "move"), "--to"),
        (("database", "move", "--to", "sqlite"), "postgresql://"),
        (("database", "move", "--to", "mysql://user:hunter2@host/db"), "postgresql://"),
        (("replay",), "--from"),
        (("replay", "--from", "yesterday"), "ISO 8601"),
        (("replay", "--from", "-1"), "whole number"),
    ],
)
def test_wrong_usage(run: Run, arguments: tuple[str, ...], says: str) -> None:
    code, error = fails(run, *arguments)
    assert code == 2
    assert says in error


@pytest.mark.parametrize(
    "arguments",
    [
        ("queue", "move", "--from", "sqlite", "--to", f"redis://{NOBODY}"),
        ("database", "move", "--to", "postgresql://h/d"),
    ],
)
def test_without_a_database_there_is_nothing_to_move(run: Run, folder: Path, arguments: tuple[str, ...]) -> None:
    assert fails(run, *arguments) == (1, "chargegate: data_dir: data has no database\n")
    assert not (folder / "data").exists()


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("queue", "move", "--from", "sqlite", "--to", f"redis://:hunter2@{NOBODY}"), "moved 0 before that"),
        (("queue", "move", "--from", f"amqp://user:hunter2@{NOBODY}", "--to", "sqlite"), "--from"),
        (("queue", "move", "--from", "sqlite", "--to", f"postgresql://user:hunter2@{NOBODY}/d"), "--to"),
        (("database", "move", "--to", f"postgresql://user:hunter2@{NOBODY}/d"), "--to"),
    ],
)
def test_a_side_that_does_not_answer_is_named(run: Run, arguments: tuple[str, ...], says: str) -> None:
    code, error = fails(run, *arguments)
    assert code == 1
    assert says in error


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    "arguments",
    [
        ("queue", "move", "--from", "sqlite", "--to", f"redis://{NOBODY}"),
        ("queue", "move", "--from", f"redis://{NOBODY}", "--to", "sqlite"),
        ("database", "move", "--to", f"postgresql://{NOBODY}/d"),
    ],
)
def test_nobody_else_may_use_the_embedded_database(run: Run, folder: Path, arguments: tuple[str, ...]) -> None:
    with (folder / "data" / "chargegate.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, error = fails(run, *arguments)
    assert code == 1
    assert "another process" in error


def test_urls_may_be_in_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARGEGATE_MOVE_FROM", f"redis://u:hidden@{NOBODY}")
    monkeypatch.setenv("CHARGEGATE_MOVE_TO", f"postgresql://u:hidden@{NOBODY}/d")
    code, error = fails(run, "queue", "move")
    assert code == 1
    assert "--from: " in error
    code, error = fails(run, "database", "move", "--to", "sqlite")
    assert code == 2
    assert "hidden" not in error


def test_a_url_in_the_wrong_place_is_not_repeated_with_its_password(run: Run) -> None:
    code, error = fails(run, "queue", "move", "--from", "sqlite", "--to", "amqp://x", "redis://u:hidden@redis.example")
    assert code == 2
    assert "redis://***@redis.example" in error


def test_a_lease_that_brokers_refuse(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARGEGATE_QUEUE__LEASE_MS", "1000")
    code, error = fails(run, "queue", "move", "--from", f"kafka://{NOBODY}", "--to", "sqlite")
    assert code == 1
    assert "queue.lease_ms" in error


def test_only_a_topic_keeps_what_was_delivered(run: Run) -> None:
    code, error = fails(run, "replay", "--from", "0")
    assert code == 1
    assert "queue.url: only kafka:// keeps what was delivered" in error
    assert "dead-letters replay" in error


def test_without_decisions_there_is_nothing_to_replay(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARGEGATE_QUEUE__URL", f"kafka://{NOBODY}")
    code, error = fails(run, "replay", "--from", "2026-01-31T08:00")
    assert code == 1
    assert "has no database" in error
    assert not (folder / "data").exists()
