"""``chargegate audit restore``: rows of a time range, from wherever they are."""

from contextlib import ExitStack
from pathlib import Path

import click
import uvloop

from chargegate import config
from chargegate.app.life import audit_life
from chargegate.audit.csv_lines import Row
from chargegate.audit.life.archive import ArchiveUnavailable
from chargegate.audit.life.compressing import Damaged
from chargegate.audit.life.restoring import restore as restore_rows
from chargegate.audit.life.row_writers import CsvWriter, DatabaseWriter, RowWriter, StreamWriter
from chargegate.cli.options import as_json, config_file, dry_run, time_range
from chargegate.cli.output import write_object
from chargegate.cli.progress import advancing
from chargegate.model import AUDIT_COLUMNS


@click.command()
@time_range
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="A new CSV file.  [default: stdout]")
@click.option("--database", metavar="FILE", type=click.Path(path_type=Path), help="An SQLite file, for queries.")
@click.option("--origin", metavar="NAME", help="Only what this service has archived; see `archive list`.")
@click.option("--exports", is_flag=True, help="From the daily exports.  [default: only where audit.csv_path is empty]")
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
    exports: bool,
    dry_run: bool,
    as_json: bool,
    config_file: str | None,
) -> None:
    """Bring back the rows of a time range, wherever they are: archived, compressed, rotated or being written.

    They come from the CSV log, or from the daily exports, which hold the same decisions. Nothing is changed there.
    Without --output or --database the rows go to standard output. What cannot be read is left out and named, and the
    exit code is 1.

    \b
    Examples:
      chargegate audit restore --from 2025-03-01 --to 2025-04-01 --output march.csv
      chargegate audit restore --from 2025-03-01 --database march.db
    """
    if output and database:
        raise click.UsageError("--output and --database: only one of them")
    settings = config.load(config_file)
    exports = exports or bool(settings.audit.export_dir and not settings.audit.csv_path)
    life = audit_life(settings, exports=exports, changing=False)
    target = output or database
    with advancing("restoring") as show, ExitStack() as stack:
        try:
            writer = _writer(stack, output, database, dry_run=dry_run, as_json=as_json)
            restored = uvloop.run(restore_rows(life, writer, since, until, show, origin=origin))
        except (ArchiveUnavailable, Damaged) as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            where = error.filename or target
            raise click.ClickException(f"{where}: {error.strerror}" if where else str(error.strerror)) from None
    if dry_run or target:
        rows = restored.rows
        summary = {"rows": rows, "to": None if dry_run else str(target)}
        if as_json:
            write_object(summary)
        else:
            click.echo(f"would restore {rows} rows" if dry_run else f"restored {rows} rows to {target}")
    if restored.faults:
        more = f"; and {len(restored.faults) - 1} more files" if len(restored.faults) > 1 else ""
        raise click.ClickException(restored.faults[0] + more)


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

    def write(self, row: Row) -> None:
        values = dict(zip(AUDIT_COLUMNS, row.fields, strict=True))
        write_object({**values, "processing_time_ms": int(values["processing_time_ms"])})

    def finish(self) -> None:
        """Nothing is kept back."""
