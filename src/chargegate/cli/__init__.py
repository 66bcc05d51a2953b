"""The command line: parse, call, print.

Errors are one line on standard error: exit 1, or 2 for wrong usage. Ctrl-C is 130.
"""

import io
import re
import signal
import sys
from collections.abc import Sequence
from functools import partial

import click
import uvloop

import chargegate
from chargegate import app, config, demo
from chargegate.cli import audit_life
from chargegate.cli.acl import acl
from chargegate.cli.audit import audit
from chargegate.cli.audit_restore import restore
from chargegate.cli.audit_verify import verify
from chargegate.cli.database import database
from chargegate.cli.dead_letters import dead_letters
from chargegate.cli.keys import keys
from chargegate.cli.options import config_file
from chargegate.cli.queue import queue
from chargegate.cli.replay import replay
from chargegate.cli.settings import show_settings
from chargegate.cli.top import top
from chargegate.cli.trace import trace
from chargegate.keys import CannotOpen, KeyFileError
from chargegate.ledger.base import LedgerUnavailable
from chargegate.model import one_line
from chargegate.observe import configure_logging
from chargegate.queues.base import QueueFull, QueueUnavailable

_EXPECTED = (
    config.ConfigError,
    app.StartError,
    demo.DemoError,
    KeyFileError,
    CannotOpen,
    LedgerUnavailable,
    QueueFull,
    QueueUnavailable,
)
# Click's messages quote the arguments, and one of those may be a driver token, or a URL with a password.
_could_be_token = re.compile(r"[\w.~-]{20,}|(?<=://)\S*(?=@)").sub


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; ``arguments`` default to the process's own. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = chargegate_command.main(arguments, prog_name="chargegate", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "chargegate"
        rule = _could_be_token("***", error.format_message().rstrip("."))
        return _fail(f"{rule}; see {path} --help", 2)
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # Nobody reads it, so there is nothing to flush at exit.
        sys.stdout = None
        return 1
    except _EXPECTED as error:
        return _fail(str(error))
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int = 1) -> int:
    click.echo("chargegate: " + one_line(" ".join(message.split())), err=True)
    return code


@click.group("chargegate", no_args_is_help=False)
@click.version_option(chargegate.__version__, message="%(prog)s %(version)s")
def chargegate_command() -> None:
    """The asynchronous authorization gate for EV charging.

    \b
    Examples:
      chargegate serve --config chargegate.toml
      chargegate acl add -
      chargegate audit list --status unknown --json
    """
    configure_logging("warning")


@chargegate_command.command()
@config_file
def serve(config_file: str | None) -> None:
    """Serve the API and decide, in one process.

    Runs until SIGTERM or Ctrl-C, then finishes what is under way.

    \b
    Example:
      chargegate serve --config chargegate.toml
    """
    _run(config_file, "serve")


@chargegate_command.command()
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


@chargegate_command.command()
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


def _run(config_file: str | None, role: app.Role) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the service itself follows it
    reread = partial(config.load, config_file)
    settings = reread()
    configure_logging(settings.logging.level, settings.logging.format)
    uvloop.run(app.serve(settings, role=role, reread=reread))


@chargegate_command.command("demo")
@click.pass_context
def run_demo(context: click.Context) -> None:
    """Show the service at work, and check all of it.

    Starts it in a temporary folder, sends real requests, kills it, starts it again, and checks every result. Takes
    seconds, leaves nothing behind, exits 0 only if all came out right.

    \b
    Example:
      chargegate demo
    """
    context.exit(0 if uvloop.run(demo.run()) else 1)


for command in (*audit_life.COMMANDS, restore, verify):
    audit.add_command(command)
for command in (acl, audit, database, dead_letters, keys, queue, replay, show_settings, top, trace):
    chargegate_command.add_command(command)
