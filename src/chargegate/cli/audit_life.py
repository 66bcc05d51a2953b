"""``chargegate audit rotate|compress|archive|prune``: what becomes of the CSV files, and of old rows."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import uvloop

from chargegate import config
from chargegate.app.commands import Offline
from chargegate.app.life import audit_heads, audit_life
from chargegate.audit.chaining import Statements
from chargegate.audit.life.archive import ArchiveUnavailable
from chargegate.audit.life.compressing import Damaged
from chargegate.audit.life.files import LifeBusy
from chargegate.audit.life.restoring import CsvWriter, DatabaseWriter, RowWriter, StreamWriter
from chargegate.audit.life.restoring import restore as restore_rows
from chargegate.audit.life.steps import Done, Step
from chargegate.cli.options import as_json, at, before, config_file, dry_run, time_range
from chargegate.cli.output import write_object, write_rows
from chargegate.cli.progress import advancing, counting
from chargegate.cli.store import in_store
from chargegate.ledger.records import DroppedAudit
from chargegate.model import AUDIT_COLUMNS, now_ms
from chargegate.operations.audit_life import Place, carry_out, drop_chained_rows, places
from chargegate.operations.views import columns

_BUSY_S: Final = 10.0
_AGAIN_S: Final = 0.1

_everything = click.option("--all", "every", is_flag=True, help="Of whatever age.")


class _Shown:
    """Keeps what was done, and shows how far it is."""

    def __init__(self, show: Callable[[int, int], None]) -> None:
        self.all_done: list[Done] = []
        self.failures: list[str] = []
        self._show = show
        self._planned = 0

    def planned(self, step: Step, count: int) -> None:  # noqa: ARG002 - the protocol's
        self._planned += count
        self._show(0, self._planned)

    def done(self, done: Done) -> None:
        self.all_done.append(done)
        self._show(len(self.all_done), self._planned)

    def failed(self, step: Step, file: str, error: str) -> None:
        self.failures.append(f"{step} {file}: {error}" if file else f"{step}: {error}")


def _run(config_file: str | None, step: Step, at: int | None, **options: Any) -> _Shown:
    life = audit_life(config.load(config_file))
    with advancing(step) as show:
        shown = _Shown(show)
        try:
            uvloop.run(_once_free(partial(carry_out, life, (step,), now_ms() if at is None else at, shown, **options)))
        except LifeBusy as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise click.ClickException(f"audit.csv_path: {error.filename}: {error.strerror}") from None
    return shown


async def _once_free(act: Callable[[], Awaitable[None]]) -> None:
    """A running service seldom needs long for what it does."""
    end = time.monotonic() + _BUSY_S
    while True:
        try:
            return await act()
        except LifeBusy:
            if time.monotonic() >= end:
                raise
        await asyncio.sleep(_AGAIN_S)


def _finish(result: _Shown, *, as_json: bool) -> None:
    uvloop.run(write_rows(_one_page(result.all_done), columns(Done), as_json=as_json))
    _fail(result)


def _fail(result: _Shown) -> None:
    if result.failures:
        more = f" (and {len(result.failures) - 1} more)" if len(result.failures) > 1 else ""
        raise click.ClickException(result.failures[0] + more)


async def _one_page(records: Sequence[Any]) -> AsyncIterator[Sequence[Any]]:
    yield records


@click.command()
@click.option("--due", is_flag=True, help="Only what audit.rotate_after_ms or audit.rotate_bytes asks for.")
@at
@dry_run
@as_json
@config_file
def rotate(*, due: bool, at: int | None, dry_run: bool, as_json: bool, config_file: str | None) -> None:
    """Begin new CSV files now, beside a running service.

    The old ones get the time behind their names. No decision is lost or written twice.

    \b
    Example:
      chargegate audit rotate
    """
    _finish(_run(config_file, "rotate", at, every=not due, dry_run=dry_run), as_json=as_json)


@click.command()
@_everything
@at
@dry_run
@as_json
@config_file
def compress(*, every: bool, at: int | None, dry_run: bool, as_json: bool, config_file: str | None) -> None:
    """Compress rotated files that are older than audit.compress_after_ms.

    \b
    Example:
      chargegate audit compress --dry-run
    """
    _finish(_run(config_file, "compress", at, every=every, dry_run=dry_run), as_json=as_json)


@click.group(invoke_without_command=True, no_args_is_help=False)
@_everything
@at
@dry_run
@as_json
@config_file
@click.pass_context
def archive(
    context: click.Context, *, every: bool, at: int | None, dry_run: bool, as_json: bool, config_file: str | None
) -> None:
    """Move rotated files that are older than audit.archive_after_ms to audit.archive_url.

    A file is removed here once the archive has given it back whole.

    \b
    Examples:
      chargegate audit archive
      chargegate audit archive list --json
    """
    context.obj = config_file
    if context.invoked_subcommand is not None:
        return
    if not config.load(config_file).audit.archive_url:
        raise click.ClickException("audit.archive_url: is empty, and so there is no archive")
    _finish(_run(config_file, "archive", at, every=every, dry_run=dry_run), as_json=as_json)


@archive.command("list")
@as_json
@config_file
@click.pass_context
def list_places(context: click.Context, *, as_json: bool, config_file: str | None) -> None:
    """Say what is where: in the archive, compressed, rotated, and being written.

    \b
    Example:
      chargegate audit archive list
    """
    life = audit_life(config.load(config_file or context.obj))

    async def write() -> None:
        await write_rows(_one_page(await places(life)), columns(Place), as_json=as_json)

    _answered(write)


def _answered(act: Callable[[], Any]) -> Any:
    try:
        return uvloop.run(act())
    except ArchiveUnavailable as error:
        raise click.ClickException(f"audit.archive_url: {error}") from None


@click.command()
@before
@at
@dry_run
@as_json
@config_file
def prune(*, before: int | None, at: int | None, dry_run: bool, as_json: bool, config_file: str | None) -> None:
    """Drop old audit rows, and delete old CSV files here and in the archive, for good.

    What is older than audit.retention_ms, or than --before. Counts stay. With PostgreSQL whole months of rows go, and
    requests keep their decisions. The embedded database has a decision only in its audit row, so that requests that
    have ended go too. Beside a running service.

    \b
    Example:
      chargegate audit prune --before 2026-01-01
    """
    settings = config.load(config_file)
    now = now_ms() if at is None else at
    if before is None:
        if not settings.audit.retention_ms:
            raise click.UsageError("audit.retention_ms is 0, so --before must say how old")
        before = now - settings.audit.retention_ms
    rows = _prune_rows(config_file, before, dry_run=dry_run)
    result = _run(config_file, "prune", now, before=before, dry_run=dry_run) if settings.audit.csv_path else None
    files = [done.file for done in result.all_done] if result else []
    if as_json:
        write_object({"dropped": rows.tables, "rows": rows.rows, "files": files})
    else:
        gone = [*rows.tables, *files] + ([f"{rows.rows} rows"] if rows.rows else [])
        click.echo(("would drop " if dry_run else "dropped ") + (", ".join(gone) or "nothing: nothing is so old"))
    if result:
        _fail(result)


def _prune_rows(config_file: str | None, before: int, *, dry_run: bool) -> DroppedAudit:
    heads = audit_heads(config.load(config_file))
    with counting("dropping") as show:

        async def drop(store: Offline) -> DroppedAudit:
            if dry_run:
                return await store.ledger.audit_before(before)
            statements = Statements(heads, store.ledger)
            return await drop_chained_rows(store.ledger, store.chain, statements, before, show)

        return in_store(config_file, drop)


@click.command()
@time_range
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="A new CSV file.  [default: stdout]")
@click.option("--database", metavar="FILE", type=click.Path(path_type=Path), help="An SQLite file, for queries.")
@click.option("--origin", metavar="NAME", help="Only what this service has archived; see `archive list`.")
@dry_run
@as_json
@config_file
def restore(
    *,
    since: int | None,
    until: int | None,
    output: Path | None,
    database: Path | None,
    origin: str | None,
    dry_run: bool,
    as_json: bool,
    config_file: str | None,
) -> None:
    """Bring back the rows of a time range, wherever they are: archived, compressed, rotated or being written.

    Nothing is changed there. Without --output or --database the rows go to standard output.

    \b
    Examples:
      chargegate audit restore --from 2025-03-01 --to 2025-04-01 --output march.csv
      chargegate audit restore --from 2025-03-01 --database march.db
    """
    if output and database:
        raise click.UsageError("--output and --database: only one of them")
    life = audit_life(config.load(config_file))
    target = output or database
    with advancing("restoring") as show, ExitStack() as stack:
        try:
            writer = _writer(stack, output, database, dry_run=dry_run, as_json=as_json)
            rows = uvloop.run(restore_rows(life, writer, since, until, show, origin=origin))
        except ArchiveUnavailable as error:
            raise click.ClickException(f"audit.archive_url: {error}") from None
        except Damaged as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise click.ClickException(f"{error.filename or target}: {error.strerror}") from None
    if dry_run or target:
        summary = {"rows": rows, "to": None if dry_run else str(target)}
        if as_json:
            write_object(summary)
        else:
            click.echo(f"would restore {rows} rows" if dry_run else f"restored {rows} rows to {target}")


def _writer(stack: ExitStack, output: Path | None, database: Path | None, *, dry_run: bool, as_json: bool) -> RowWriter:
    if dry_run:
        return StreamWriter(lambda _: None)
    if output:
        return stack.enter_context(CsvWriter(output))
    if database:
        return stack.enter_context(DatabaseWriter(database))
    return JsonWriter() if as_json else StreamWriter(click.echo)


class JsonWriter:
    """Writes each row as an object on a line."""

    def write(self, line: str, fields: list[str]) -> None:  # noqa: ARG002 - the protocol's
        write_object({**dict(zip(AUDIT_COLUMNS, fields, strict=False)), "processing_time_ms": int(fields[6])})

    def finish(self) -> None:
        """Nothing is kept back."""


COMMANDS = (rotate, compress, archive, prune, restore)
