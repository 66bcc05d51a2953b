"""A group of commands that imports the module of a command when the command is needed.

A command starts in a third of the time that it takes to import them all.
"""

from collections import UserDict
from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import Any, NamedTuple

import click


class Entry(NamedTuple):
    """``where`` is ``module:name``. ``line`` is the first sentence of the command's own help."""

    where: str
    line: str


class LazyGroup(click.Group):
    """Its help shows the lines of the table, and so imports no command."""

    def __init__(self, name: str | None = None, *, table: Mapping[str, Entry], **options: Any) -> None:
        super().__init__(name, commands=_Commands(table), **options)
        self._lines = {name: click.Command(name, help=entry.line) for name, entry in table.items()}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        click.Group(commands=self._lines).format_commands(ctx, formatter)


class _Commands(UserDict[str, click.Command]):
    def __init__(self, table: Mapping[str, Entry]) -> None:
        super().__init__()
        self._table = table

    def __getitem__(self, name: str) -> click.Command:
        if name not in self.data:
            self.data[name] = resolve_name(self._table[name].where)
        return self.data[name]

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
