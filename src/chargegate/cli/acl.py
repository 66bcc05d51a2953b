"""``chargegate acl``: the access list."""

import asyncio
import io
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click
import uvloop
from rich.console import Console
from rich.progress import Progress

from chargegate import app, config
from chargegate.authorizers.acl_entries import AclLineError, entry_from, read_csv
from chargegate.cli.options import as_json, config_file
from chargegate.cli.output import Row, write_object, write_rows
from chargegate.cli.paging import pages
from chargegate.keys import Keyring
from chargegate.ledger.records import AccessEntry
from chargegate.model import Invalid, to_iso

# A commit of so many does not hold up a running service.
_AT_ONCE = 5000
_COLUMNS = (
    "driver_token_hash",
    "blocked",
    "valid_from",
    "valid_until",
    "allowed_stations",
    "denied_stations",
    "note",
)


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

    async def run() -> AccessEntry:
        async with app.opened_store(config.load(config_file), made=_say_made) as store:
            entry = entry_from(fields, store.keyring.token_hash)
            await store.access_list.put([entry])
            return entry

    try:
        entry = uvloop.run(run())
    except Invalid as error:
        raise click.UsageError("; ".join(f"{field}: {rule}" for field, rule in error.details.items())) from None
    if as_json:
        write_object(_row(entry))
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

    async def run() -> str | None:
        async with app.opened_store(config.load(config_file)) as store:
            for token_hash in (named.lower(), store.keyring.token_hash(named)):
                if await store.access_list.remove(token_hash):
                    return token_hash
            return None

    removed = uvloop.run(run())
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

    async def run() -> None:
        async with app.opened_store(config.load(config_file)) as store:

            async def rows() -> AsyncIterator[list[Row]]:
                async for page in pages(store.access_list.entries, lambda entry: entry.driver_token_hash):
                    yield [_row(entry) for entry in page]

            await write_rows(rows(), _COLUMNS, as_json=as_json)

    uvloop.run(run())


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
    console = Console(stderr=True)

    async def run() -> int:
        async with app.opened_store(config.load(config_file), made=_say_made) as store:
            with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
                entries = []
                for entry in _read(file, store.keyring, progress):
                    entries.append(entry)
                    if len(entries) % _AT_ONCE == 0:
                        await asyncio.sleep(0)  # lets Ctrl-C in
                task = progress.add_task("storing", total=len(entries))
                for start in range(0, len(entries), _AT_ONCE):
                    part = entries[start : start + _AT_ONCE]
                    await store.access_list.put(part)
                    progress.advance(task, len(part))
            return len(entries)

    imported = uvloop.run(run())
    if as_json:
        write_object({"imported": imported})
    else:
        click.echo(f"imported {imported} {'entry' if imported == 1 else 'entries'}")


def _read(file: Path, keyring: Keyring, progress: Progress) -> Iterator[AccessEntry]:
    try:
        with file.open("rb") as raw:
            lines = io.TextIOWrapper(raw, "utf-8", errors="surrogateescape", newline="")
            task = progress.add_task("checking", total=file.stat().st_size)
            for entry in read_csv(lines, keyring.token_hash):
                progress.update(task, completed=raw.tell())
                yield entry
    except AclLineError as error:
        raise click.ClickException(f"{file}: {error}") from None
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from None


def _say_made(folder: Path) -> None:
    click.echo(f"chargegate: made a new database in {folder} (data_dir)", err=True)


def _token(argument: str) -> str:
    if argument != "-":
        return argument
    if sys.stdin.isatty():
        return str(click.prompt("Driver token", hide_input=True, err=True))
    return sys.stdin.readline().strip()


def _row(entry: AccessEntry) -> dict[str, Any]:
    return {
        "driver_token_hash": entry.driver_token_hash,
        "blocked": entry.blocked,
        "valid_from": None if entry.valid_from is None else to_iso(entry.valid_from),
        "valid_until": None if entry.valid_until is None else to_iso(entry.valid_until),
        "allowed_stations": sorted(entry.allowed_stations),
        "denied_stations": sorted(entry.denied_stations),
        "note": entry.note,
    }
