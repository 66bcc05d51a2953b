"""The options that several commands share."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from chargegate.config import FILE_VARIABLE
from chargegate.keys import ANONYMOUS_CLIENT, client_name_fault
from chargegate.model import from_iso, station_fault

Command = Callable[..., Any]


def _moment(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else from_iso(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _client(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and (fault := client_name_fault(value)):
        raise click.BadParameter(fault)
    return value


def name_of_key(context: click.Context, option: click.Parameter, value: str | None) -> str:
    """A name that a new access key may have; empty for none."""
    name = _client(context, option, value)
    if name is not None and name.lower() == ANONYMOUS_CLIENT:
        raise click.BadParameter("is that of callers without a key")
    return name or ""


def _station(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and (fault := station_fault(value)):
        raise click.BadParameter(fault)
    return value


config_file = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    envvar=FILE_VARIABLE,
    help="Settings in TOML.  [default: ./chargegate.toml if there is one]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="For machines: JSON, one object a line.")
client = click.option("--client", metavar="NAME", callback=_client, help="Only this client: the name of its keys.")
station = click.option("--station", metavar="UUID", callback=_station, help="Only this station.")

before = click.option("--before", metavar="TIME", callback=_moment, help="ISO 8601, such as 2026-01-31.")
dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
at = click.option("--at", metavar="TIME", callback=_moment, help="As if it were this time.  [default: now]")


def time_range(command: Command) -> Command:
    """``--from`` (included) and ``--to`` (not included), as ``since`` and ``until`` in Unix milliseconds."""
    until = click.option("--to", "until", metavar="TIME", callback=_moment, help="Before this time.")
    since = click.option(
        "--from",
        "since",
        metavar="TIME",
        callback=_moment,
        help="From this time on: ISO 8601, such as 2026-01-31 or 2026-01-31T12:30:00Z; UTC if it names no zone.",
    )

    @wraps(command)
    def in_order(*, since: int | None, until: int | None, **others: Any) -> Any:
        if since is not None and until is not None and since > until:
            raise click.UsageError("--from: must not be later than --to")
        return command(since=since, until=until, **others)

    return since(until(in_order))


def paging(command: Command) -> Command:
    """``--limit`` and ``--all``, as ``limit``: how many items at most, or None for all of them."""

    @wraps(command)
    def limited(*, limit: int, everything: bool, **others: Any) -> Any:
        return command(limit=None if everything else limit, **others)

    all_of_them = click.option("--all", "everything", is_flag=True, help="All of them, however many.")
    at_most = click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
    return at_most(all_of_them(limited))
