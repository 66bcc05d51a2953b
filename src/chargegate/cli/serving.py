"""``chargegate serve``, ``chargegate api`` and ``chargegate worker``: the processes of the service."""

import signal
from functools import partial

import click
import uvloop

from chargegate import config
from chargegate.app.process import Role
from chargegate.app.serving import serve as serve_until_told
from chargegate.cli.options import config_file
from chargegate.observe import configure_logging


@click.command()
@config_file
def serve(config_file: str | None) -> None:
    """Serve the API and decide, in one process.

    Runs until SIGTERM or Ctrl-C, then finishes what is under way.

    \b
    Example:
      chargegate serve --config chargegate.toml
    """
    _run(config_file, "serve")


@click.command()
@config_file
def api(config_file: str | None) -> None:
    """Serve the API alone; workers elsewhere decide.

    Any number of them, on a queue that processes share. It accepts also while the database is away. Health and metrics
    are the API's own. Runs until SIGTERM or Ctrl-C.

    \b
    Example:
      chargegate api --config chargegate.toml
    """
    _run(config_file, "api")


@click.command()
@config_file
def worker(config_file: str | None) -> None:
    """Decide and call back, without an API.

    Any number of them, on a queue that processes share. Health and metrics are at worker.host and worker.port. Runs
    until SIGTERM or Ctrl-C, then finishes what is under way; what is left goes to the others.

    \b
    Example:
      chargegate worker --config chargegate.toml
    """
    _run(config_file, "worker")


def _run(config_file: str | None, role: Role) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the service itself follows it
    reread = partial(config.load, config_file)
    settings = reread()
    configure_logging(settings.logging.level, settings.logging.format)
    uvloop.run(serve_until_told(settings, role=role, reread=reread))
