"""``chargegate replay``: decisions once more, for what Kafka still holds."""

from datetime import UTC, datetime

import click
import msgspec
import uvloop

from chargegate import config
from chargegate.app.commands import replay_from
from chargegate.cli.options import as_json, config_file
from chargegate.cli.output import write_object
from chargegate.cli.progress import counting
from chargegate.ledger.base import LedgerUnavailable
from chargegate.model import from_iso
from chargegate.operations.replaying import Replayed
from chargegate.queues.base import QueueUnavailable


def _start(_context: click.Context, _option: click.Parameter, value: str) -> int | datetime:
    if value.isascii() and value.isdigit():
        return int(value)
    try:
        return datetime.fromtimestamp(from_iso(value) / 1000, UTC)
    except ValueError as error:
        raise click.BadParameter(f"must be a whole number, or a time: {error}") from None


@click.command()
@click.option(
    "--from",
    "start",
    metavar="OFFSET|TIME",
    required=True,
    callback=_start,
    help="An offset of every partition, or a time: ISO 8601, such as 2026-01-31T12:30:00Z; UTC if it names no zone.",
)
@as_json
@config_file
def replay(start: int | datetime, as_json: bool, config_file: str | None) -> None:
    """Send recorded decisions again, for the requests in the Kafka topic since then.

    A receiver gets the callback that it had, with the same webhook-id. Nothing is decided: what has no decision yet, or
    is still being sent, is passed over. The running workers deliver.

    \b
    Examples:
      chargegate replay --from 2026-01-31T08:00
      chargegate replay --from 120000 --json
    """
    settings = config.load(config_file)
    done = Replayed()
    with counting("replaying") as show:

        def on_read(so_far: Replayed) -> None:
            nonlocal done
            done = so_far
            show(done.replayed)

        try:
            uvloop.run(replay_from(settings, start, on_read))
        except (QueueUnavailable, LedgerUnavailable) as error:
            raise click.ClickException(f"{error} (replayed {done.replayed} before that)") from None
    if as_json:
        write_object(msgspec.to_builtins(done))
    else:
        requests = "request" if done.replayed == 1 else "requests"
        click.echo(f"replayed {done.replayed} {requests}; {done.not_decided} not decided, {done.unreadable} unreadable")
