"""Statements for many rows, and queries whose rows become something in the thread that reads them."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final, TypeVar

from chargegate.engines.sqlite.threads import Work

T = TypeVar("T")

_SIZES: Final = (128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
"""How many rows a statement has. A batch is cut into few pieces, of few sizes, so that few statements are prepared."""


def many(
    connection: sqlite3.Connection, statement: str, rows: Sequence[Sequence[Any]]
) -> Iterator[tuple[sqlite3.Cursor, int]]:
    """Run a statement with as many rows as fit in place of ``{rows}``, until all are done, and yield each cursor with
    its number of rows. Rows of one value stand there without parentheses, as a list for ``IN``.

    One statement for many rows is one call into SQLite, and so one release of the interpreter's lock.
    """
    start = 0
    while start < len(rows):
        left = len(rows) - start
        count = next(size for size in _SIZES if size <= left)
        values = list(chain.from_iterable(rows[start : start + count]))
        yield connection.execute(_with_rows(statement, count, len(rows[0])), values), count
        start += count


def run_many(connection: sqlite3.Connection, statement: str, rows: Sequence[Sequence[Any]]) -> None:
    """As ``many``, where the cursors are of no use."""
    for _ in many(connection, statement, rows):
        pass


def insert_new(connection: sqlite3.Connection, statement: str, rows: Sequence[Sequence[Any]]) -> range:
    """Insert rows into a table that numbers them, none of which can be there already. Returns their numbers: those of
    one transaction follow one another."""
    last = 0
    for cursor, _ in many(connection, statement, rows):
        last = cursor.lastrowid or 0
    return range(last - len(rows) + 1, last + 1)


@cache
def _with_rows(statement: str, count: int, width: int) -> str:
    row = "?" if width == 1 else f"({', '.join('?' * width)})"
    return statement.replace("{rows}", ", ".join([row] * count))


def select(shape: Callable[[Any], T], query: str, values: Sequence[Any] = ()) -> Work[list[T]]:
    """A query that makes something of each row."""
    return lambda connection: [shape(row) for row in connection.execute(query, values)]


def select_one(shape: Callable[[Any], T], query: str, values: Sequence[Any] = ()) -> Work[T | None]:
    """As ``select``, for the first row; None where there is none."""

    def work(connection: sqlite3.Connection) -> T | None:
        row = connection.execute(query, values).fetchone()
        return None if row is None else shape(row)

    return work
