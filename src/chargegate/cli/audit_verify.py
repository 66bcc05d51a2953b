"""``chargegate audit verify``: whether the audit is as it was written."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from chargegate import config
from chargegate.app.commands import Offline
from chargegate.app.life import audit_heads, audit_lives, audit_origin, audit_verdicts, has_files, kept_heads
from chargegate.audit.chaining import RowProblem, VerifiedRows, verify_rows
from chargegate.audit.life.archive import ArchiveUnavailable
from chargegate.audit.life.heads import Heads
from chargegate.audit.life.joining import Problem
from chargegate.audit.life.verifying import Verified, joined, verify_only
from chargegate.audit.life.verifying import verify as verify_files
from chargegate.audit.row_statements import Statements
from chargegate.cli.options import as_json, config_file
from chargegate.cli.output import write_object, write_rows
from chargegate.cli.progress import advancing, counting
from chargegate.cli.store import in_store
from chargegate.model import now_ms
from chargegate.operations.views import columns


@click.command()
@click.option("--rows/--no-rows", default=True, help="Verify the database too.  [default: yes]")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@as_json
@config_file
@click.pass_context
def verify(
    context: click.Context, *, files: tuple[Path, ...], rows: bool, as_json: bool, config_file: str | None
) -> None:
    """Verify that no row was changed, removed, put in between or moved.

    In the database, and in all CSV files and daily exports here and in the archive; or only in FILES. Exits 0 if all is
    as it was written, else 1 after naming each row at fault. Needs the keys of the service. Lines from before
    audit.chain was switched on are only counted. A running service goes on meanwhile.

    \b
    Examples:
      chargegate audit verify
      chargegate audit verify --json authorization_audit.log.20260131T000000.000Z
    """
    settings = config.load(config_file)
    heads = audit_heads(settings)
    if files:
        of_files = _only(settings, heads, files)
    else:
        of_files = _files(config_file, settings, heads) if has_files(settings) else Verified(0, 0, 0, {}, [])
    of_rows = _rows(config_file, heads) if rows and not files else {}
    row_problems = [problem for each in of_rows.values() for problem in each.problems]
    if settings.audit.chain and not files:
        of_all_files = not of_files.problems if has_files(settings) else None
        _keep(config_file, settings, files=of_all_files, rows=not row_problems if rows else None)
    if as_json:
        write_object(msgspec.to_builtins(of_files) | {"database": msgspec.to_builtins(of_rows)})
    else:
        uvloop.run(_write(of_files, of_rows, row_problems))
    context.exit(1 if of_files.problems or row_problems else 0)


def _only(settings: config.Settings, heads: Heads, files: Sequence[Path]) -> Verified:
    """They may be of a log that these settings do not name."""
    try:
        return verify_only(files, heads.chain, Path(settings.audit.csv_path or config.Audit().csv_path))
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None


def _files(config_file: str | None, settings: config.Settings, heads: Heads) -> Verified:
    lives = audit_lives(settings)
    with advancing("verifying files") as show:

        async def verify(store: Offline) -> Verified:
            kept, problems = await kept_heads(settings, store.ledger).read()
            parts = []
            for life in lives:
                held = partial(store.exports.held, audit_origin(settings)) if life.files.exports else None
                parts.append(await verify_files(life, heads, show, kept=kept, registered=held))
            return joined([Verified(0, 0, 0, {}, problems), *parts])

        try:
            if settings.audit.chain or heads.statements():
                return in_store(config_file, verify)
            return joined([uvloop.run(verify_files(life, heads, show)) for life in lives])
        except ArchiveUnavailable as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror}") from None


def _rows(config_file: str | None, heads: Heads) -> dict[str, VerifiedRows]:
    """By writer."""
    with counting("verifying rows") as show:

        async def verify(store: Offline) -> dict[str, VerifiedRows]:
            return await verify_rows(store.chain, Statements(heads, store.ledger), show)

        return in_store(config_file, verify)


def _keep(config_file: str | None, settings: config.Settings, *, files: bool | None, rows: bool | None) -> None:
    """So that the service's metrics tell it."""

    async def keep(store: Offline) -> None:
        await audit_verdicts(settings, store.ledger).keep(now_ms(), files=files, rows=rows)

    try:
        in_store(config_file, keep)
    except OSError as error:
        raise click.ClickException(f"data_dir: {error.filename}: {error.strerror}") from None


async def _write(of_files: Verified, of_rows: dict[str, VerifiedRows], row_problems: list[RowProblem]) -> None:
    if of_files.problems:
        await write_rows(_one_page(of_files.problems), columns(Problem), as_json=False)
    if row_problems:
        await write_rows(_one_page(row_problems), columns(RowProblem), as_json=False)
    before = f", and {of_files.unchained} from before the chain" if of_files.unchained else ""
    found = f"{len(of_files.problems) or 'no'} problems"
    click.echo(f"{of_files.rows} lines in {of_files.files} files{before}: {found}")
    for log, head in of_files.head.items():
        click.echo(f"head of {log}: {head}")
    for writer, each in of_rows.items():
        waiting = f", and {each.waiting} without a link yet" if each.waiting else ""
        click.echo(f"{each.rows} rows of {writer} in the database{waiting}: {len(each.problems) or 'no'} problems")
        click.echo(f"head of the rows of {writer}: {each.head}")


async def _one_page(records: Sequence[Any]) -> AsyncIterator[Sequence[Any]]:
    yield records
