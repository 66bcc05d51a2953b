"""``chargegate queue``: what waits."""

from collections.abc import Callable

import click
import uvloop

from chargegate import config
from chargegate.app.commands import check_queue, move_queue
from chargegate.cli.options import Command, as_json, config_file
from chargegate.cli.output import write_object
from chargegate.cli.progress import counting
from chargegate.queues.base import QueueUnavailable


def _url(_context: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        check_queue(value)
    except config.ConfigError as error:
        raise click.BadParameter(str(error).removeprefix("queue.url: ")) from None
    return value


def _queue(flag: str, name: str, variable: str) -> Callable[[Command], Command]:
    said = "As queue.url, but not memory://."
    return click.option(flag, name, metavar="URL", required=True, callback=_url, envvar=variable, help=said)


@click.group("queue", no_args_is_help=False)
def queue() -> None:
    """Requests that wait for their decision, or for their callback.

    \b
    Example:
      chargegate queue move --from sqlite --to redis://localhost
    """


@queue.command()
@_queue("--from", "source", config.MOVE_FROM)
@_queue("--to", "target", config.MOVE_TO)
@as_json
@config_file
def move(source: str, target: str, as_json: bool, config_file: str | None) -> None:
    """Move all that waits to another queue.

    Stop the service first. Each request leaves the one queue when the other has it; interrupted, run it again. Keys and
    data_dir are those of the settings. Between different databases, `chargegate database move` comes first. Others on
    this machine see arguments, and no environment: a URL with a password may be in CHARGEGATE_MOVE_FROM and
    CHARGEGATE_MOVE_TO.

    \b
    Example:
      chargegate queue move --from sqlite --to kafka://localhost:9092
    """
    if source == target:
        raise click.UsageError("--from and --to are the same queue")
    settings = config.load(config_file)
    moved = 0
    with counting("moving") as show:

        def on_moved(more: int) -> None:
            nonlocal moved
            moved += more
            show(moved)

        try:
            uvloop.run(move_queue(settings, source, target, on_moved))
        except QueueUnavailable as error:
            raise click.ClickException(f"{error} (moved {moved} before that; run it again to go on)") from None
    if as_json:
        write_object({"moved": moved})
    else:
        way = f"from {config.scheme(source)} to {config.scheme(target)}"
        click.echo(f"moved {moved} request{'' if moved == 1 else 's'} {way}")
