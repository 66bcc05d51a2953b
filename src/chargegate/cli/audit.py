"""``chargegate audit``: what was decided."""

from collections.abc import AsyncIterator, Sequence
from typing import get_args

import click
import msgspec
import uvloop

from chargegate import config
from chargegate.app.backfilling import SinkName, backfill_sink
from chargegate.app.commands import Offline
from chargegate.cli import audit_life
from chargegate.cli.audit_restore import restore
from chargegate.cli.audit_verify import verify
from chargegate.cli.options import as_json, client, config_file, paging, time_range
from chargegate.cli.options import station as only_station
from chargegate.cli.output import write_listing, write_object, write_rows
from chargegate.cli.progress import counting
from chargegate.cli.store import in_store
from chargegate.ledger.anomalies import AnomalyType
from chargegate.ledger.records import DecisionFilter, StationStats
from chargegate.model import Status
from chargegate.operations import anomalies, decisions, statistics
from chargegate.operations.views import columns


@click.group(no_args_is_help=False)
def audit() -> None:
    """Decisions, newest first. Drivers appear as a short keyed hash.

    \b
    Examples:
      chargegate audit list --status not_allowed --from 2026-01-31
      chargegate audit stats --json
      chargegate audit prune --before 2026-01-01
      chargegate audit backfill --sink influx --from 2026-01-01
      chargegate audit aggregate --rebuild
      chargegate audit anomalies --open
    """


@audit.command("list")
@only_station
@click.option("--status", type=click.Choice([str(status) for status in Status]), help="Only this status.")
@client
@time_range
@paging
@as_json
@config_file
def list_decisions(
    *,
    station: str | None,
    status: str | None,
    client: str | None,
    since: int | None,
    until: int | None,
    limit: int | None,
    as_json: bool,
    config_file: str | None,
) -> None:
    """List decisions.

    \b
    Example:
      chargegate audit list --station 0a1b2c3d-0000-4000-8000-000000000001 --limit 10
    """

    async def write(store: Offline) -> None:
        listing = decisions.decisions(store.ledger, DecisionFilter(station, status, since, until, client=client))
        await write_listing(listing, limit=limit, as_json=as_json)

    in_store(config_file, write)


@audit.command()
@only_station
@client
@time_range
@paging
@as_json
@config_file
def timeouts(
    *,
    station: str | None,
    client: str | None,
    since: int | None,
    until: int | None,
    limit: int | None,
    as_json: bool,
    config_file: str | None,
) -> None:
    """List decisions that were `unknown` because the authorizer did not answer in time.

    \b
    Example:
      chargegate audit timeouts --from 2026-01-31 --to 2026-02-01 --all --json
    """

    async def write(store: Offline) -> None:
        listing = decisions.timeouts(store.ledger, station, since, until, client)
        await write_listing(listing, limit=limit, as_json=as_json)

    in_store(config_file, write)


@audit.command()
@only_station
@client
@time_range
@as_json
@config_file
def stats(
    *,
    station: str | None,
    client: str | None,
    since: int | None,
    until: int | None,
    as_json: bool,
    config_file: str | None,
) -> None:
    """Count decisions by station and status, busiest station first.

    \b
    Example:
      chargegate audit stats --from 2026-01-01
    """

    async def write(store: Offline) -> None:
        counted = await store.ledger.station_stats(since, until, station_id=station, client=client)
        await write_rows(_one_page(counted), columns(StationStats), as_json=as_json)

    in_store(config_file, write)


@audit.command()
@click.option("--sink", "sink", type=click.Choice(get_args(SinkName)), required=True, help="Which copy to fill.")
@time_range
@click.option("--dry-run", is_flag=True, help="Only say what would be written.")
@as_json
@config_file
def backfill(
    *,
    sink: SinkName,
    since: int | None,
    until: int | None,
    dry_run: bool,
    as_json: bool,
    config_file: str | None,
) -> None:
    """Give a copy of the audit the decisions of a time range again, from the database.

    Each decision is there once afterwards, however often this is run, also beside a running service. CSV files get the
    lines that are in none of the files beside them. InfluxDB gets all points, and those that it had stay as they were.

    \b
    Example:
      chargegate audit backfill --sink influx --from 2026-01-01 --to 2026-02-01
    """
    settings = config.load(config_file)
    with counting("reading") as show:
        filled = uvloop.run(
            backfill_sink(
                settings,
                sink,
                since,
                until,
                dry_run=dry_run,
                on_total=lambda total: show(total=total),
                on_read=show,
            )
        )
    if as_json:
        write_object({"sink": sink, "dry_run": dry_run, **msgspec.structs.asdict(filled)})
    else:
        verb = "would be written" if dry_run else "written"
        refused = f", {filled.refused} refused for good" if filled.refused else ""
        click.echo(f"{sink}: {filled.decisions} decisions, {filled.written} {verb}{refused}")


@audit.command("anomalies")
@click.option("--type", "type_", type=click.Choice([str(kind) for kind in AnomalyType]), help="Only this type.")
@click.option("--open", "open_", is_flag=True, help="Only those that have not ended.")
@paging
@as_json
@config_file
def list_anomalies(
    *, type_: str | None, open_: bool, limit: int | None, as_json: bool, config_file: str | None
) -> None:
    """List what the analysis of the audit found, those that began last first.

    \b
    Example:
      chargegate audit anomalies --open --json
    """

    async def write(store: Offline) -> None:
        listing = anomalies.anomalies(store.anomalies, type_, open_ or None)
        await write_listing(listing, limit=limit, as_json=as_json)

    in_store(config_file, write)


@audit.command()
@click.option("--rebuild", is_flag=True, help="Take the counts back first, and make all of them again.")
@as_json
@config_file
def aggregate(*, rebuild: bool, as_json: bool, config_file: str | None) -> None:
    """Count decisions that are not counted yet.

    A running service does so within seconds. With --rebuild all counts are made again from the rows of the audit;
    counts of rows that were dropped stay. Answers are right also meanwhile. Beside a running service, which may then do
    a part of it.

    \b
    Example:
      chargegate audit aggregate --rebuild
    """

    async def count(store: Offline) -> int:
        with counting("counting") as show:
            return await statistics.count_all(store.counts, show, again=rebuild)

    counted = in_store(config_file, count)
    if as_json:
        write_object({"counted": counted})
    else:
        click.echo(f"counted {counted} decisions")


async def _one_page(records: Sequence[StationStats]) -> AsyncIterator[Sequence[StationStats]]:
    yield records


for command in (*audit_life.COMMANDS, restore, verify):
    audit.add_command(command)
