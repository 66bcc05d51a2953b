"""``chargegate trace``: one request's story."""

from typing import BinaryIO, Final

import click
import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chargegate import config
from chargegate.app.commands import tell_story
from chargegate.cli.options import as_json, config_file
from chargegate.cli.output import printable, write_object
from chargegate.model import is_uuid, to_iso
from chargegate.operations.story import Step, Story, lines_about
from chargegate.operations.views import shown

_FACTS: Final = ("request_id", "station_id", "client", "trace_id", "status", "stands")


@click.command()
@click.argument("request_id")
@click.option(
    "--log",
    "log_file",
    metavar="FILE",
    type=click.File("rb"),
    help="The service's log, as JSON, to tell from as well; `-` is standard input.",
)
@as_json
@config_file
def trace(*, request_id: str, log_file: BinaryIO | None, as_json: bool, config_file: str | None) -> None:
    """Tell one request's story: accepted, taken, decided and why, each attempt, replays, its end.

    From the ledger, the audit, the queue where the request still waits there, and a log file where one is given. Times
    are UTC. Beside a running service.

    \b
    Examples:
      chargegate trace 018d5c1e-7f00-7000-8000-000000000001
      journalctl -u chargegate -o cat | chargegate trace 018d5c1e-7f00-7000-8000-000000000001 --log - --json
    """
    if not is_uuid(request_id):
        raise click.UsageError("REQUEST_ID: must be a UUID")
    request_id = request_id.lower()
    lines = [] if log_file is None else list(lines_about(request_id, log_file))
    story = uvloop.run(tell_story(config.load(config_file), request_id, lines))
    if story is None:
        raise click.ClickException(f"no request {request_id} is known: never accepted, or dropped since")
    if as_json:
        write_object(shown(story) | {"steps": [shown(step) for step in story.steps]})
    else:
        _write(story)


def _write(story: Story) -> None:
    """A table on a terminal, else tab-separated lines: the steps, then an empty line, then what is known of it all."""
    console = Console()
    facts = [(name, printable(str(getattr(story, name)))) for name in _FACTS if getattr(story, name)]
    if not console.is_terminal:
        click.echo("at\tafter_ms\twhat\ttook_ms\tsource\tdetails")
        for step in story.steps:
            click.echo("\t".join(_cells(step)))
        click.echo()
        for fact in facts:
            click.echo("\t".join(fact))
        return
    for name, value in facts:
        console.print(Text(f"{name.replace('_', ' '):<12}", "bold") + Text(value))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column, justify in (("at", "left"), ("after ms", "right"), ("what", "left"), ("took ms", "right")):
        table.add_column(column, justify="right" if justify == "right" else "left", no_wrap=True)
    table.add_column("from")
    table.add_column("details", overflow="fold")
    for step in story.steps:
        style = "dim" if step.source == "log" else "red" if step.what == "given up" or "error" in step.details else ""
        table.add_row(*(Text(cell) for cell in _cells(step)), style=style)
    console.print(table)


def _cells(step: Step) -> tuple[str, ...]:
    details = " ".join(f"{name}={value}" for name, value in step.details.items())
    took = "" if step.took_ms is None else str(step.took_ms)
    return to_iso(step.at), f"+{step.after_ms}", printable(step.what), took, step.source, printable(details)
