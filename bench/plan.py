"""What an entry of the benchmark gets: how long to measure, and where to say what was left out."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped]  # it ships no types
from rich.console import Console

import load

CORES: Final = sorted(os.sched_getaffinity(0))
ALONE: Final = CORES[0]
"""The core that a measured process has for itself, where an entry measures one core."""
REST: Final = CORES[1:] or CORES
"""The cores of the load generator and of servers then."""

Figures = dict[str, Any]


class Plan:
    """One run. ``seconds`` is the length of one measurement. ``missing`` has a reason for each part left out."""

    def __init__(self, *, seconds: float, quick: bool, engines: Sequence[str], console: Console) -> None:
        self.seconds = seconds
        self.quick = quick
        self.engines = engines
        self.console = console
        self.missing: dict[str, str] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """An error in the ``with`` block is printed and kept in ``missing``, and the run goes on."""
        started = time.monotonic()
        try:
            yield
        except (load.Failed, OSError, RuntimeError, subprocess.SubprocessError, asyncpg.PostgresError) as error:
            self.missing[name] = str(error) or type(error).__name__
            self.console.print(f"{name}: left out: {self.missing[name]}", markup=False, style="red")
        else:
            self.console.print(f"{name}: {time.monotonic() - started:.0f} s", style="dim")


@contextmanager
def one_core() -> Iterator[None]:
    """In the ``with`` block, this process and what it starts use the other cores; ``ALONE`` is for what is measured."""
    os.sched_setaffinity(0, REST)
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)
