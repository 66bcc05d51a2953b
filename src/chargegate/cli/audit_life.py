"""``chargegate audit rotate|compress|export|archive|prune``: what becomes of the CSV files, and of old rows."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import click
import uvloop

from chargegate import config
from chargegate.app.commands import Offline
from chargegate.app.life import audit_exporter, audit_heads, audit_lives, has_files, kept_heads
from chargegate.audit.life.archive import ArchiveUnavailable
from chargegate.audit.life.files import LifeBusy
from chargegate.audit.life.steps import Done, Step
from chargegate.audit.row_statements import Statements
from chargegate.cli.options import as_json, at, before, config_file, dry_run
from chargegate.cli.output import write_object, write_rows
from chargegate.cli.progress import advancing, counting
from chargegate.cli.store import in_store
from chargegate.ledger.records import DroppedAudit
from chargegate.model import now_ms
from chargegate.operations.audit_life import Place, carry_out, drop_chained_rows, export_days, places
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
        failure = f"{step} {file}: {error}" if file else f"{step}: {error}"
        if failure not in self.failures:  # an archive that is away is so for the log and for the daily exports
            self.failures.append(failure)


def _run(config_file: str | None, step: Step, at: int | None, *, dry_run: bool, **options: Any) -> _Shown:
    lives = audit_lives(config.load(config_file), changing=not dry_run)
    with advancing(step) as show, _telling("audit.csv_path"):
        shown = _Shown(show)
        for life in lives:
            step_of_life = partial(
                carry_out, life, (step,), now_ms() if at is None else at, shown, dry_run=dry_run, **options
            )
            uvloop.run(_once_free(step_of_life))
    return shown


@contextmanager
def _telling(key: str) -> Iterator[None]:
    """``key`` names the setting that says where the files are."""
    try:
        yield
    except LifeBusy as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{key}: {where}{error.strerror}") from None


async def _once_free(act: Callable[[], Awaitable[object]]) -> None:
    """A running service seldom needs long for what it does."""
    end = time.monotonic() + _BUSY_S
    while True:
        try:
            await act()
        except LifeBusy:
            if time.monotonic() >= end:
                raise
        else:
            return
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


@click.command()
@click.option("--all", "every", is_flag=True, help="Also what there is of the day under way.")
@at
@dry_run
@as_json
@config_file
def export(*, every: bool, at: int | None, dry_run: bool, as_json: bool, config_file: str | None) -> None:
    """Export audit rows of the database to audit.export_dir, one compressed CSV file for each day that has ended.

    Each row is in one file. Rows that were written late are in the file of a later day. Beside a running service.

    \b
    Example:
      chargegate audit export --dry-run
    """
    settings = config.load(config_file)
    now = now_ms() if at is None else at
    with advancing("export") as show, _telling("audit.export_dir"):
        shown = _Shown(show)

        async def run(store: Offline) -> None:
            exporter = audit_exporter(settings, store, changing=not dry_run)
            await _once_free(partial(export_days, exporter, store.exports, now, shown, every=every, dry_run=dry_run))
            if not dry_run:
                await kept_heads(settings, store.ledger).keep()

        in_store(config_file, run)
    _finish(shown, as_json=as_json)


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
    """Move rotated files and daily exports that are older than audit.archive_after_ms to audit.archive_url.

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
    """Say what is where: in the archive, compressed, rotated, exported, and being written.

    \b
    Example:
      chargegate audit archive list
    """
    lives = audit_lives(config.load(config_file or context.obj), changing=False)

    async def write() -> None:
        await write_rows(_one_page(await places(lives)), columns(Place), as_json=as_json)

    _answered(write)


def _answered(act: Callable[[], Any]) -> Any:
    try:
        return uvloop.run(act())
    except ArchiveUnavailable as error:
        raise click.ClickException(str(error)) from None


@click.command()
@before
@at
@dry_run
@as_json
@config_file
def prune(*, before: int | None, at: int | None, dry_run: bool, as_json: bool, config_file: str | None) -> None:
    """Drop old audit rows, and delete old CSV files and daily exports here and in the archive, for good.

    What is older than audit.retention_ms, or than --before. Counts stay. With audit.export_dir only rows go that are
    exported. With PostgreSQL whole months of rows go, and
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
    result = _run(config_file, "prune", now, before=before, dry_run=dry_run) if has_files(settings) else None
    files = [done.file for done in result.all_done] if result else []
    if as_json:
        write_object({"dropped": rows.tables, "rows": rows.rows, "files": files})
    else:
        gone = [*rows.tables, *files] + ([f"{rows.rows} rows"] if rows.rows else [])
        click.echo(("would drop " if dry_run else "dropped ") + (", ".join(gone) or "nothing: nothing is so old"))
    if result:
        _fail(result)


def _prune_rows(config_file: str | None, before: int, *, dry_run: bool) -> DroppedAudit:
    settings = config.load(config_file)
    exported = bool(settings.audit.export_dir)
    with counting("dropping") as show:

        async def drop(store: Offline) -> DroppedAudit:
            if dry_run:
                return await store.ledger.audit_before(before, exported=exported)
            statements = Statements(audit_heads(settings), store.ledger)
            exports = store.exports if exported else None
            return await drop_chained_rows(
                store.ledger, store.chain, statements, before, on_dropped=show, exports=exports
            )

        return in_store(config_file, drop)


COMMANDS = (rotate, compress, export, archive, prune)
