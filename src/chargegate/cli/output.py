"""How results are written: tables for people, tab-separated lines for pipes, JSON lines for machines."""

import sys
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chargegate.model import printable_json, to_iso
from chargegate.operations.listing import Listing
from chargegate.operations.views import shown

Row = Mapping[str, Any]

_ANY_WIDTH = 10_000


async def write_listing(listing: Listing[Any], *, limit: int | None = None, as_json: bool) -> None:
    """Write up to ``limit`` items of a list, each page as it comes."""
    await write_rows(listing.pages(limit), listing.columns, as_json=as_json)


async def write_rows(pages: AsyncIterable[Sequence[msgspec.Struct]], columns: Sequence[str], *, as_json: bool) -> None:
    """Write each page of records as it comes. ``columns`` are the fields in the order in which people see them."""
    write: Callable[[Sequence[Row]], None]
    if as_json:
        write = _write_json
    elif sys.stdout.isatty():

        def write(rows: Sequence[Row]) -> None:
            _write_table(rows, columns)
    else:
        click.echo("\t".join(columns))

        def write(rows: Sequence[Row]) -> None:
            click.echo("\n".join("\t".join(_cell(column, row[column]) for column in columns) for row in rows))

    some = False
    async for records in pages:
        if records:
            some = True
            write([shown(record) for record in records])
    if not some and sys.stderr.isatty():
        click.echo("none found", err=True)


def write_object(value: Row) -> None:
    """One JSON object on a line."""
    _write_json([value])


def _write_json(rows: Sequence[Row]) -> None:
    click.echo("\n".join(map(_json, rows)))


def _json(row: Row) -> str:
    """One line of JSON. What does not print is escaped, because it could change what a terminal shows."""
    return printable_json(msgspec.json.encode(row).decode())


def _write_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """A table where it fits the terminal, else a block for each row."""
    console = Console()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        numbers = column != "timestamp" and all(type(row[column]) is int for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(Text(_cell(column, row[column])) for column in columns))
    if console.measure(table, options=console.options.update_width(_ANY_WIDTH)).maximum <= console.width:
        console.print(table)
        return
    for row in rows:
        block = Table(box=None, show_header=False, pad_edge=False)
        block.add_column(style="bold", no_wrap=True)
        block.add_column(overflow="fold")
        for column in columns:
            block.add_row(column.replace("_", " "), Text(_cell(column, row[column])))
        console.print(block, Text())


def _cell(column: str, value: Any) -> str:
    """A value for a person. What could move the cursor or break a line is shown as a blank."""
    if value is None:
        return ""
    if column == "timestamp":
        return to_iso(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(";".join(value) if isinstance(value, list) else str(value))


def printable(text: str) -> str:
    """What could move the cursor or break a line is a blank."""
    return "".join(character if character.isprintable() else " " for character in text)
