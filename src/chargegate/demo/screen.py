"""Shows the demo: a live table in a terminal, and elsewhere a line for each step."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chargegate.demo.cases import Case
from chargegate.demo.checks import Check

_CHECKED = (
    "Checked of every request: the 202 with its exact message, the decision and its reason, how often it was called"
    " back, each callback's body, headers and signature, what GET says of it, its one line in the audit log."
)
_GOOD = r"\b(allowed|200|202|COMPLETED)\b"
_BAD = r"\b(not_allowed|invalid|500|FAILED|unanswered)\b"
_WAITING = r"\b(unknown|TIMEOUT|QUEUED|PROCESSING)\b"


class Screen:
    """Shows how far the cases are."""

    def __init__(self, console: Console, cases: Sequence[Case]) -> None:
        self._console = console
        self._cases = cases
        self._started = time.monotonic()
        self._shown: dict[str, str] = {}
        self._animated = console.is_terminal and not console.is_dumb_terminal

    def live(self) -> AbstractContextManager[object]:
        """In a terminal, a table that redraws itself during the ``with`` block."""
        if self._animated:
            return Live(console=self._console, get_renderable=self._table, refresh_per_second=15)
        return nullcontext()

    def say(self, text: str) -> None:
        """Show one line of text."""
        self._print(Text(f"{time.monotonic() - self._started:5.1f} s  ", "dim"), text)

    def update(self) -> None:
        """Show each case that changed, unless the live table does."""
        if self._animated:
            return
        for case in self._cases:
            steps = zip(("accepted ", "decided ", "called back ", ""), _cells(case), strict=True)
            line = ", ".join(title + cell for title, cell in steps if cell)
            if line and self._shown.get(case.title) != line:
                self._shown[case.title] = line
                self.say(f"{case.title}: {line}")

    def verdict(self, checks: Sequence[Check]) -> None:
        """Show every check with its faults, and how many failed."""
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
        # Lines are wrapped in a terminal only.
        self._console.print(head + Text(text), soft_wrap=not self._console.is_terminal)

    def _table(self) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("", "request", "accepted", "decided", "callback", "is now"):
            table.add_column(title, overflow="fold", no_wrap=title in ("accepted", "is now"))
        for case in self._cases:
            mark = Text("✓", "green") if case.done else Text("·", "dim")
            table.add_row(mark, case.title, *map(_coloured, _cells(case)))
        return table


def _coloured(text: str) -> Text:
    cell = Text(text)
    cell.highlight_regex(_GOOD, "green")
    cell.highlight_regex(_BAD, "red")
    cell.highlight_regex(_WAITING, "yellow")
    return cell


def _cells(case: Case) -> tuple[str, str, str, str]:
    """How far a case is: accepted, decided, called back, and its state in the service."""
    requests = case.requests
    answers = [answer for sent in requests for answer in sent.answers]
    accepted = _counted(answer.status for answer in answers)
    if answers:
        accepted += f" in {max(answer.took_ms for answer in answers):.0f} ms"
    decided = _counted(f"{sent.decision} {sent.reason}".strip() for sent in requests if sent.decision)
    statuses = [status or "unanswered" for sent in requests for _, status in sent.callbacks]
    callbacks = _counted(statuses) if len(requests) > 1 else " ".join(map(str, statuses))
    return accepted, decided, callbacks, _counted(sent.status for sent in requests if sent.status)


def _counted(values: Iterable[object]) -> str:
    """The different values and how often each occurs, such as ``3 x 200, 500``."""
    return ", ".join(str(value) if number == 1 else f"{number} x {value}" for value, number in Counter(values).items())
