"""``chargegate acl``: the access list."""

import os
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from chargegate.app.commands import Offline
from chargegate.authorizers.acl_entries import AclLineError
from chargegate.cli.options import as_json, config_file
from chargegate.cli.output import write_listing, write_object
from chargegate.cli.store import in_store
from chargegate.ledger.records import AccessEntry
from chargegate.model import Invalid
from chargegate.operations import access_list
from chargegate.operations.views import shown


@click.group(no_args_is_help=False)
def acl() -> None:
    """The access list: which drivers may charge where. A running service follows within a second.

    Tokens are kept as keyed hashes only.

    \b
    Examples:
      chargegate acl add -
      chargegate acl import drivers.csv
    """


@acl.command()
@click.argument("token")
@click.option("--blocked", is_flag=True, help="Refuse this driver everywhere.")
@click.option("--valid-from", metavar="TIME", help="Refuse before this time (ISO 8601, UTC if it names no zone).")
@click.option("--valid-until", metavar="TIME", help="Refuse from this time on.")
@click.option("--allowed-station", metavar="UUID", multiple=True, help="Only here; may be repeated. [default: all]")
@click.option("--denied-station", metavar="UUID", multiple=True, help="Not here; may be repeated.")
@click.option("--note", default="", help="For people; never the token.")
@as_json
@config_file
def add(
    *,
    token: str,
    blocked: bool,
    valid_from: str | None,
    valid_until: str | None,
    allowed_station: tuple[str, ...],
    denied_station: tuple[str, ...],
    note: str,
    as_json: bool,
    config_file: str | None,
) -> None:
    """Add a driver, or replace the driver's entry.

    With `-` the token is read from standard input, and stays out of the shell's history: prefer that.

    \b
    Examples:
      chargegate acl add - --note "depot, van 7" < token.txt
      chargegate acl add - --blocked
    """
    fields = {
        "driver_token": _token(token),
        "blocked": blocked,
        "valid_from": valid_from,
        "valid_until": valid_until,
        "allowed_stations": list(allowed_station),
        "denied_stations": list(denied_station),
        "note": note,
    }

    async def put(store: Offline) -> AccessEntry:
        return await access_list.put_entry(store.access_list, store.keyring, fields)

    try:
        entry = in_store(config_file, put, make=True)
    except Invalid as error:
        raise click.UsageError("; ".join(f"{field}: {rule}" for field, rule in error.details.items())) from None
    if as_json:
        write_object(shown(entry))
    else:
        click.echo(f"added {entry.driver_token_hash}")


@acl.command()
@click.argument("token", metavar="TOKEN|HASH")
@as_json
@config_file
def remove(token: str, as_json: bool, config_file: str | None) -> None:
    """Remove a driver, named by the token (`-`: from standard input) or by the hash that `acl list` shows.

    \b
    Example:
      chargegate acl remove -
    """
    named = _token(token)

    async def take_out(store: Offline) -> str | None:
        return await access_list.remove_entry(store.access_list, store.keyring, named)

    removed = in_store(config_file, take_out)
    if removed is None:
        raise click.ClickException("the access list has no such entry")
    if as_json:
        write_object({"driver_token_hash": removed})
    else:
        click.echo(f"removed {removed}")


@acl.command("list")
@as_json
@config_file
def list_entries(as_json: bool, config_file: str | None) -> None:
    """List every entry, by hash.

    \b
    Example:
      chargegate acl list --json
    """

    async def write(store: Offline) -> None:
        await write_listing(access_list.access_entries(store.access_list), as_json=as_json)

    in_store(config_file, write)


@acl.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@as_json
@config_file
def import_file(file: Path, as_json: bool, config_file: str | None) -> None:
    """Add the entries of a CSV file, or replace those that are there. One wrong line, and nothing is stored.

    The columns are driver_token,blocked,valid_from,valid_until,allowed_stations,denied_stations,note; only the first
    is required; stations are separated by semicolons.

    \b
    Example:
      chargegate acl import drivers.csv
    """

    async def fill(store: Offline) -> int:
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            return await _import(store, file, progress)

    try:
        imported = in_store(config_file, fill, make=True)
    except AclLineError as error:
        raise click.ClickException(f"{file}: {error}") from None
    if as_json:
        write_object({"imported": imported})
    else:
        click.echo(f"imported {imported} {'entry' if imported == 1 else 'entries'}")


async def _import(store: Offline, file: Path, progress: Progress) -> int:
    checking = progress.add_task("checking", total=None)
    storing = progress.add_task("storing", visible=False)
    try:
        with file.open("rb") as lines:
            progress.update(checking, total=os.fstat(lines.fileno()).st_size)
            return await access_list.import_csv(
                store.access_list,
                store.keyring,
                lines,
                lambda read: progress.update(checking, completed=read),
                lambda stored, count: progress.update(storing, completed=stored, total=count, visible=True),
            )
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from None


def _token(argument: str) -> str:
    if argument != "-":
        return argument
    if sys.stdin.isatty():
        return str(click.prompt("Driver token", hide_input=True, err=True))
    return sys.stdin.readline().strip()
