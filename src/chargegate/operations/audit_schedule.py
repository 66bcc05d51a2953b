"""Carries out the life of the audit on a schedule, in a process that serves."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, get_args

from chargegate.audit.life.compressing import Stopped
from chargegate.audit.life.files import LifeBusy
from chargegate.audit.life.steps import STEPS, Done, Life, Step
from chargegate.ledger.base import LedgerUnavailable
from chargegate.model import now_ms
from chargegate.observe import Metrics, log
from chargegate.operations.audit_life import Watcher, carry_out

_JUMP_MS: Final = 60_000
_PRUNE_S: Final = 600.0
_VERDICTS_S: Final = 2.0
_WORK_S: Final = 5.0
_SOON_S: Final = 1.0
"""However much there is to compress, archive or export, it looks after so long whether a log is to be rotated."""


class Schedule:
    """Looks every ``turn_s`` seconds what is due.

    Nothing is deleted, compressed, archived or exported in a turn in which the wall clock ran apart from the monotonic
    one: a clock that was set forward by mistake would make everything old.
    """

    def __init__(
        self,
        lives: Sequence[Life],
        export: Callable[[int, Watcher, float], Awaitable[bool]] | None,
        drop_rows: Callable[[int], Awaitable[object]],
        metrics: Metrics,
        intact: Callable[[], Awaitable[bool | None]] | None,
        *,
        sign: Callable[[], Awaitable[None]],
        keep_ms: int,
        turn_s: float,
    ) -> None:
        """``lives``: the files of the log, and the daily exports, as far as this process has them. ``export`` makes
        the latter, as of a time (Unix ms) and for some seconds; see ``export_days``. ``drop_rows`` drops the rows
        of the database from before a time. ``intact``: see ``Verdicts.intact``; None where there are no chains.
        ``sign`` signs how far the logs are."""
        self.intact: bool | None = None
        self._lives = lives
        self._export = export
        self._drop_rows = drop_rows
        self._ask_intact = intact
        self._sign = sign
        self._metrics = metrics
        self._keep_ms = keep_ms
        self._turn_s = turn_s
        self._tasks: list[asyncio.Task[None]] = []
        self._failing: dict[Step, list[str]] = {}  # what was told, of the last turn in which each step was tried
        self._failed_now: dict[Step, list[str]] = {}
        self._trouble = ""  # what ended the last turn
        self._dropping: asyncio.Task[None] | None = None
        self._not_dropped = ""  # why old rows were not dropped the last time
        self._offset = _offset()
        self._pruned_at = float("-inf")
        for step in get_args(Step):  # so that a first failure is an increase
            for outcome in ("done", "failed"):
                metrics.audit_life.labels(step, outcome)

    @property
    def failure(self) -> str | None:
        """What does not work at the moment, or None."""
        return next((f"{step}: {errors[0]}" for step, errors in self._failing.items()), None)

    def start(self) -> None:
        self._tasks.append(asyncio.create_task(self._run()))
        if self._ask_intact is not None:
            self._tasks.append(asyncio.create_task(self._follow_verdicts(self._ask_intact)))

    async def close(self) -> None:
        """End what is under way; another run goes on with it."""
        for life in self._lives:
            life.stop()
        tasks = [*self._tasks, *([self._dropping] if self._dropping is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(OSError, LedgerUnavailable):  # the last one that was signed stands
            await self._sign()

    async def _run(self) -> None:
        pause_s = self._turn_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self._turn_s
            try:
                if await self._turn():
                    pause_s = min(self._turn_s, _SOON_S)
            except Stopped:
                continue  # this process ends
            except LedgerUnavailable as error:
                if self._is_new_trouble(error):
                    log.warning("old audit rows were not exported", error=str(error))
            except Exception as error:  # noqa: BLE001 - whatever it is, files are as they were, and the next turn tries
                if self._is_new_trouble(error):
                    log.exception("the life of the audit")
            else:
                self._trouble = ""

    def _is_new_trouble(self, error: Exception) -> bool:
        """Its kind alone tells one from another: a message may hold an address or a time."""
        before, self._trouble = self._trouble, type(error).__name__
        return self._trouble != before

    async def _follow_verdicts(self, ask: Callable[[], Awaitable[bool | None]]) -> None:
        """Take up what verifications find, within moments and however long a turn is."""
        while True:
            try:
                self.intact = await ask()
                self._metrics.chain_intact.set(float("nan") if self.intact is None else float(self.intact))
            except LedgerUnavailable:
                pass  # the last one that was told stands
            except Exception:  # noqa: BLE001 - as in a turn: the next look tries again
                log.exception("what verifications of the audit found cannot be read")
            await asyncio.sleep(_VERDICTS_S)

    async def _turn(self) -> bool:
        """Whether there is more to do at once. What fails in one place holds up nothing elsewhere."""
        jumped = self._clock_jumped()
        pruning = time.monotonic() - self._pruned_at >= max(min(_PRUNE_S, self._keep_ms / 10_000), self._turn_s)
        steps = [step for step in STEPS if step == "rotate" or not (jumped or (step == "prune" and not pruning))]
        self._failed_now = {}
        left: set[Step] = set()
        for life in self._lives:
            with self._failing_as("rotate"):
                left |= await carry_out(life, steps, now_ms(), self, for_s=_WORK_S)
        with (
            self._failing_as("rotate"),
            contextlib.suppress(LedgerUnavailable),
        ):  # the database's part of /health says so
            await self._sign()
        try:
            if self._export is not None and not jumped:
                steps.append("export")
                with self._failing_as("export"):
                    left |= {"export"} if await self._export(now_ms(), self, _WORK_S) else set()
        finally:
            self._note_failures(steps)
        if pruning and not jumped and "prune" not in left:
            self._pruned_at = time.monotonic()
            self._begin_dropping()
        return bool(left)

    @contextlib.contextmanager
    def _failing_as(self, step: Step) -> Iterator[None]:
        try:
            yield
        except LifeBusy:
            pass  # another process does it
        except OSError as error:
            self.failed(step, "", error.strerror or str(error))

    def _note_failures(self, steps: Sequence[Step]) -> None:
        for step in set(steps) & self._failing.keys() - self._failed_now.keys():
            del self._failing[step]
            log.info("the life of the audit goes on", step=step)
        self._failing |= self._failed_now

    def _begin_dropping(self) -> None:
        """Rows go slowly, so that writers are not held up, and files are not held up by that."""
        if self._keep_ms and (self._dropping is None or self._dropping.done()):
            self._dropping = asyncio.create_task(self._drop(now_ms() - self._keep_ms))

    async def _drop(self, before: int) -> None:
        try:
            await self._drop_rows(before)
            self._not_dropped = ""
        except Exception as error:  # noqa: BLE001 - whatever it is, rows are as they were, and the next turn tries
            was, self._not_dropped = self._not_dropped, type(error).__name__
            if was != self._not_dropped:
                log.warning("old audit rows were not dropped", error=str(error) or type(error).__name__)

    def _clock_jumped(self) -> bool:
        before, self._offset = self._offset, _offset()
        if abs(self._offset - before) <= _JUMP_MS:
            return False
        log.warning("the clock was set; nothing of the audit is deleted in this turn", by_ms=self._offset - before)
        return True

    def planned(self, step: Step, count: int) -> None:
        """Nobody watches."""

    def done(self, done: Done) -> None:
        self._metrics.audit_life.labels(done.step, "done").inc()
        log.info("audit file", step=done.step, file=done.file, to=done.to, bytes=done.bytes)

    def failed(self, step: Step, file: str, error: str) -> None:
        """Tell it once, as long as it is the same. Several files may fail for several reasons."""
        self._metrics.audit_life.labels(step, "failed").inc()
        told = self._failed_now.setdefault(step, [])
        if error in told:
            return
        told.append(error)
        if error not in self._failing.setdefault(step, []):
            self._failing[step].append(error)
            log.error("the life of the audit does not go on", step=step, file=file, error=error)


def _offset() -> int:
    """By how much the wall clock is ahead of the monotonic one (ms)."""
    return now_ms() - int(time.monotonic() * 1000)
