"""The command line: parse, call, print.

Errors are one line on standard error: exit 1, or 2 for wrong usage. Ctrl-C is 130.
"""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from pkgutil import resolve_name

import click

import chargegate
from chargegate.cli.commands import Entry, LazyGroup
from chargegate.cli.standard_output import OutputClosed, OutputFailed, give_up_standard_output, open_standard_output
from chargegate.model import one_line
from chargegate.observe import configure_logging

_COMMANDS = {
    "acl": Entry("chargegate.cli.acl:acl", "The access list: which drivers may charge where."),
    "api": Entry("chargegate.cli.serving:api", "Serve the API alone; workers elsewhere decide."),
    "audit": Entry("chargegate.cli.audit:audit", "Decisions, newest first."),
    "config": Entry("chargegate.cli.settings:show_settings", "The settings: file and environment together."),
    "database": Entry("chargegate.cli.database:database", "Decisions, dead letters, the audit, the access list."),
    "dead-letters": Entry(
        "chargegate.cli.dead_letters:dead_letters", "Callbacks that were given up: send them again, or discard them."
    ),
    "demo": Entry("chargegate.cli.demo:demo", "Show the service at work, and check all of it."),
    "keys": Entry("chargegate.cli.keys:keys", "Access keys for the HTTP API."),
    "queue": Entry("chargegate.cli.queue:queue", "Requests that wait for their decision, or for their callback."),
    "replay": Entry(
        "chargegate.cli.replay:replay", "Send recorded decisions again, for the requests in the Kafka topic since then."
    ),
    "serve": Entry("chargegate.cli.serving:serve", "Serve the API and decide, in one process."),
    "top": Entry(
        "chargegate.cli.top:top",
        "Show how a running service is: what is wrong, rates, times, queue, circuits, dead letters.",
    ),
    "trace": Entry(
        "chargegate.cli.trace:trace",
        "Tell one request's story: accepted, taken, decided and why, each attempt, replays, its end.",
    ),
    "worker": Entry("chargegate.cli.serving:worker", "Decide and call back, without an API."),
}
# What a person can mend. A command that has not imported the module of one cannot have raised it.
_EXPECTED = (
    "chargegate.app.opening:StartError",
    "chargegate.config:ConfigError",
    "chargegate.demo:DemoError",
    "chargegate.keys:CannotOpen",
    "chargegate.keys:KeyFileError",
    "chargegate.ledger.base:LedgerUnavailable",
    "chargegate.queues.base:QueueFull",
    "chargegate.queues.base:QueueUnavailable",
)
# Click's messages quote the arguments, and one of those may be a driver token, or a URL with a password.
_could_be_token = re.compile(r"[\w.~-]{20,}|(?<=://)\S*(?=@)").sub


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; ``arguments`` default to the process's own. Returns the exit code."""
    open_standard_output()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = chargegate_command.main(arguments, prog_name="chargegate", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "chargegate"
        rule = _without_tokens(error.format_message().rstrip("."), _own_words(error.ctx))
        return _fail(f"{rule}; see {path} --help", 2)
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return 130
    except (OutputClosed, BrokenPipeError):
        give_up_standard_output()
        return 1
    except OutputFailed as error:
        give_up_standard_output()
        return _fail(str(error))
    except _expected() as error:
        return _fail(str(error))
    return code if isinstance(code, int) else 0


def _own_words(context: click.Context | None) -> set[str]:
    """What the program itself calls its commands, options and choices. These are no secrets, whoever typed them."""
    words: set[str] = set()
    while context is not None:
        words |= set(getattr(context.command, "commands", ()))
        for parameter in context.command.params:
            words |= {option for names in (parameter.opts, parameter.secondary_opts) for option in names}
            words |= {str(choice) for choice in getattr(parameter.type, "choices", ())}
        context = context.parent
    return words


def _without_tokens(text: str, own: set[str]) -> str:
    return _could_be_token(lambda found: found[0] if found[0] in own else "***", text)


def _expected() -> tuple[type[Exception], ...]:
    return tuple(resolve_name(name) for name in _EXPECTED if name.partition(":")[0] in sys.modules)


def _fail(message: str, code: int = 1) -> int:
    with contextlib.suppress(OSError):  # then the exit code alone says it
        click.echo("chargegate: " + one_line(" ".join(message.split())), err=True)
    return code


@click.group("chargegate", cls=LazyGroup, table=_COMMANDS, no_args_is_help=False)
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
