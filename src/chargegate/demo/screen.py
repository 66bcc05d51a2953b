"""What the demo shows: a live table in a terminal, a line for each step anywhere else."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chargegate.demo.checks import Check
from chargegate.demo.story import Scene

_CHECKED = (
    "Checked of every request: the 202 with its exact message, the decision and its reason, how often it was called"
    " back, each callback's body, headers and signature, what GET says of it, its one line in the audit log."
)
_GOOD = r"\b(allowed|200|202|COMPLETED)\b"
_BAD = r"\b(not_allowed|invalid|500|FAILED|unanswered)\b"
_WAITING = r"\b(unknown|TIMEOUT|QUEUED|PROCESSING)\b"


class Screen:
    """Shows scenes while they are played."""

    def __init__(self, console: Console, scenes: Sequence[Scene]) -> None:
        self._console = console
        self._scenes = scenes
        self._started = time.monotonic()
        self._shown: dict[str, str] = {}
        self._live = (
            Live(console=console, get_renderable=self._table, refresh_per_second=15) if _animated(console) else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """A step of the story."""
        self._print(Text(f"{time.monotonic() - self._started:5.1f} s  ", "dim"), text)

    def update(self) -> None:
        """Show what changed. The live table redraws itself."""
        if self._live:
            return
        for scene in self._scenes:
            steps = zip(("accepted ", "decided ", "called back ", ""), _cells(scene), strict=True)
            line = ", ".join(title + cell for title, cell in steps if cell)
            if line and self._shown.get(scene.title) != line:
                self._shown[scene.title] = line
                self.say(f"{scene.title}: {line}")

    def verdict(self, checks: Sequence[Check]) -> None:
        """Every check with its mark, and the sum."""
        self._console.print()
        self._print(Text(), _CHECKED)
        for check in checks:
            mark, style = ("✗", "red") if check.faults else ("✓", "green")
            self._print(Text(f"{mark} ", style), check.claim)
            for fault in check.faults:
                self._print(Text("    "), fault)
        wrong = sum(bool(check.faults) for check in checks)
        seconds = f"{time.monotonic() - self._started:.1f} s"
        self._console.print()
        if wrong:
            self._print(Text(f"{wrong} of {len(checks)} checks failed", "bold red"), f", after {seconds}.")
        else:
            self._print(Text(f"All {len(checks)} checks passed", "bold green"), f", in {seconds}.")

    def _print(self, head: Text, text: str) -> None:
        # Only a terminal's lines may be broken to its width.
        self._console.print(head + Text(text), soft_wrap=not self._console.is_terminal)

    def _table(self) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("", "request", "accepted", "decided", "callback", "is now"):
            table.add_column(title, overflow="fold", no_wrap=title in ("accepted", "is now"))
        for scene in self._scenes:
            mark = Text("✓", "green") if scene.done else Text("·", "dim")
            table.add_row(mark, scene.title, *map(_coloured, _cells(scene)))
        return table


def _animated(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def _coloured(text: str) -> Text:
    cell = Text(text)
    cell.highlight_regex(_GOOD, "green")
    cell.highlight_regex(_BAD, "red")
    cell.highlight_regex(_WAITING, "yellow")
    return cell


def _cells(scene: Scene) -> tuple[str, str, str, str]:
    """How far a scene has come: accepted, decided, called back, and what the service says of it."""
    answers = [answer for sent in scene.requests for answer in sent.answers]
    accepted = _counted(answer.status for answer in answers)
    if answers:
        accepted += f" in {max(answer.took_ms for answer in answers):.0f} ms"
    decided = _counted(f"{sent.decision} {sent.reason}".strip() for sent in scene.requests if sent.decision)
    statuses = [status or "unanswered" for sent in scene.requests for _, status in sent.callbacks]
    callbacks = _counted(statuses) if len(scene.requests) > 1 else " ".join(map(str, statuses))
    now = _counted(sent.status for sent in scene.requests if sent.status)
    return accepted, decided, callbacks, now


def _counted(values: Iterable[object]) -> str:
    """``3 x 200, 500``."""
    return ", ".join(str(value) if number == 1 else f"{number} x {value}" for value, number in Counter(values).items())
