"""``chargegate database``: what was decided, and what decisions are made by."""

from collections import Counter

import click
import uvloop

from chargegate import config
from chargegate.app.commands import check_target, move_database
from chargegate.cli.options import as_json, config_file
from chargegate.cli.output import write_object
from chargegate.cli.progress import counting
from chargegate.ledger.base import LedgerUnavailable


def _url(_context: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        check_target(value)
    except config.ConfigError as error:
        raise click.BadParameter(str(error).removeprefix("database.url: ")) from None
    return value


@click.group("database", no_args_is_help=False)
def database() -> None:
    """Decisions, dead letters, the audit, the access list.

    \b
    Example:
      chargegate database move --to postgresql://localhost/chargegate
    """


@database.command()
@click.option(
    "--to",
    "target",
    metavar="URL",
    required=True,
    callback=_url,
    envvar=config.MOVE_TO,
    help="As database.url: postgresql://… Not seen by others on this machine where it is in CHARGEGATE_MOVE_TO.",
)
@as_json
@config_file
def move(target: str, as_json: bool, config_file: str | None) -> None:
    """Copy the embedded database to PostgreSQL.

    Stop the service first. The embedded database stays as it is; interrupted, run it again. What waits in the queue is
    moved by `chargegate queue move`, afterwards.

    \b
    Example:
      chargegate database move --to postgresql://localhost/chargegate
    """
    settings = config.load(config_file)
    copied: Counter[str] = Counter()
    with counting("copying") as show:

        def on_copied(kind: str, more: int) -> None:
            copied[kind] += more
            show(copied.total())

        try:
            uvloop.run(move_database(settings, target, on_copied))
        except LedgerUnavailable as error:
            rows = copied.total()
            raise click.ClickException(f"{error} (copied {rows} rows before that; run it again to go on)") from None
    if as_json:
        write_object(copied)
    else:
        click.echo("copied " + ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in copied.items()))
