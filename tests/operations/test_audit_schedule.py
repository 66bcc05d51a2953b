"""The schedule of the audit's life: a clock that jumps deletes nothing at once, and a fault is told once."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chargegate.audit.life.files import LogFiles
from chargegate.audit.life.steps import Ages, Life
from chargegate.model import clock, now_ms, to_iso
from chargegate.observe import Metrics, configure_logging
from chargegate.operations.audit_schedule import Schedule

pytestmark = pytest.mark.anyio

HEADER = "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms\n"
DAY_MS = 86_400_000
AGES = Ages(rotate_ms=DAY_MS, rotate_bytes=0, compress_ms=7 * DAY_MS, archive_ms=30 * DAY_MS, keep_ms=60 * DAY_MS)


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    stream = io.BytesIO()
    configure_logging("info", "json", stream)
    try:
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    finally:
        configure_logging("info")


@pytest.fixture(autouse=True)
def clock_as_before() -> Iterator[None]:
    yield
    clock.ahead_ms = 0


def schedule(
    folder: Path, drop_rows: Callable[[int], Any], exports: Callable[[int, Any, float], Any] | None = None
) -> Schedule:
    async def unknown() -> None:
        return None

    async def nothing() -> None:
        pass

    life = Life(LogFiles(folder / "authorization_audit.log"), AGES, None, "")
    return Schedule([life], exports, drop_rows, Metrics(), unknown, sign=nothing, keep_ms=AGES.keep_ms, turn_s=0.01)


async def turns(running: Schedule, condition: Callable[[], object]) -> None:
    running.start()
    try:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)
    finally:
        await running.close()


async def test_a_clock_that_is_set_forward_deletes_nothing_in_that_turn(
    tmp_path: Path, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    rotated = tmp_path / "authorization_audit.log.20200101T000000.000Z"
    rotated.write_text(HEADER)
    (tmp_path / "authorization_audit.log").write_text(
        f"{HEADER}{to_iso(now_ms())},{1},{2},0123456789abcdef,allowed,,1\n"
    )
    dropped: list[int] = []

    async def drop(before: int) -> None:
        dropped.append(before)

    running = schedule(tmp_path, drop)
    clock.ahead_ms = -100 * DAY_MS  # as if the machine's clock was set forward

    def told(event: str) -> bool:
        return any(line["event"].startswith(event) for line in lines())

    await turns(running, lambda: dropped)
    assert told("the clock was set")
    steps = [line.get("step") or line["event"][:17] for line in lines() if "step" in line or "clock" in line["event"]]
    assert steps.index("the clock was set") < steps.index("rotate") < steps.index("prune")
    assert not rotated.exists()  # the turn after it takes the new time for the right one


async def test_a_clock_that_is_right_lets_the_first_turn_delete(
    tmp_path: Path, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    rotated = tmp_path / "authorization_audit.log.20200101T000000.000Z"
    rotated.write_text(HEADER)

    async def drop(_: int) -> None:
        pass

    await turns(schedule(tmp_path, drop), lambda: not rotated.exists())
    assert not [line for line in lines() if "clock" in line["event"]]


async def test_each_fault_is_told_once_also_where_two_take_turns(
    tmp_path: Path, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    tries: list[int] = []

    async def export(_: int, watcher: Any, _for_s: float) -> bool:
        tries.append(1)
        for number in range(3):
            watcher.failed("export", f"file {number}", ("no space", "no right")[number % 2])
        raise RuntimeError(f"at {id(tries) + len(tries)}")

    async def drop(_: int) -> None:
        pass

    running = schedule(tmp_path, drop, export)
    await turns(running, lambda: len(tries) > 5)
    errors = [line.get("error", line["event"]) for line in lines() if line["level"] == "error"]
    assert sorted(errors) == ["no right", "no space", "the life of the audit"]
    assert running.failure == "export: no space"
