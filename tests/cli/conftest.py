"""Commands as a user types them, in a folder of their own."""

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chargegate import cli, config
from chargegate.app.commands import Offline, opened_store
from chargegate.observe import log

TOKEN = "driver-token.0123456789"


@dataclass
class Result:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("CHARGEGATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A command sets up the log of its process; here that is one of many tests."""
    root = logging.getLogger()
    ours, handlers, level = vars(log).copy(), root.handlers[:], root.level
    yield
    vars(log).update(ours)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def token() -> str:
    return TOKEN


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """One command in this process: its exit code and all that it wrote."""

    def run(*arguments: str, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capfd.readouterr()
        code = cli.main(arguments)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """One command in a process of its own."""
    started = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        started.append(subprocess.Popen([sys.executable, "-m", "chargegate", *arguments], **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def in_store() -> Callable[[Callable[[Offline], Awaitable[Any]]], Any]:
    """Something done to the database that the commands will read."""

    def in_store(act: Callable[[Offline], Awaitable[Any]]) -> Any:
        async def inside() -> Any:
            async with opened_store(config.load(), made=lambda _: None) as store:
                return await act(store)

        return asyncio.run(inside())

    return in_store


@pytest.fixture
def database(in_store: Callable[[Callable[[Offline], Awaitable[Any]]], Any]) -> None:
    """An empty one."""

    async def nothing(_: Offline) -> None:
        pass

    in_store(nothing)
