"""How far long work is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn


@contextmanager
def advancing(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error while it lasts, where that is a terminal. The callable is told how many of how many are
    done."""
    console = Console(stderr=True)
    if not console.is_interactive:
        yield lambda _done, _total: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def counting(what: str) -> Iterator[Callable[..., None]]:
    """A line on standard error while it lasts, where that is a terminal. The callable is told how many are done, and
    with ``total`` of how many, once that is known."""
    console = Console(stderr=True)
    if not console.is_interactive:
        yield lambda *_, **__: None  # a progress bar would still write an empty line
        return
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done=None, total=None: progress.update(task, completed=done, total=total)
