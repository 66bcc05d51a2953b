"""The database, for one command."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click
import uvloop

from chargegate import config
from chargegate.app.commands import Offline, opened_store

T = TypeVar("T")


def in_store(config_file: str | None, act: Callable[[Offline], Awaitable[T]], *, make: bool = False) -> T:
    """Run ``act`` with the database that the settings name. With ``make`` a missing one is made, and that is said."""

    async def run() -> T:
        async with opened_store(config.load(config_file), made=_say_made if make else None) as store:
            return await act(store)

    return uvloop.run(run())


def _say_made(folder: Path) -> None:
    click.echo(f"chargegate: made a new database in {folder} (data_dir)", err=True)
