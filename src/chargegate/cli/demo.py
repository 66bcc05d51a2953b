"""``chargegate demo``: the service at work."""

import click
import uvloop

from chargegate.demo import run


@click.command()
@click.pass_context
def demo(context: click.Context) -> None:
    """Show the service at work, and check all of it.

    Starts it in a temporary folder, sends real requests, kills it, starts it again, and checks every result. Takes
    seconds, leaves nothing behind, exits 0 only if all came out right.

    \b
    Example:
      chargegate demo
    """
    context.exit(0 if uvloop.run(run()) else 1)
