"""``chargegate audit``: what was decided."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import click
import msgspec
import uvloop

from chargegate import app, config
from chargegate.cli.options import as_json, before, config_file, time_range
from chargegate.cli.options import station as only_station
from chargegate.cli.output import Row, write_object, write_rows
from chargegate.cli.paging import pages, paging
from chargegate.ledger.records import DecisionFilter, StationStats
from chargegate.model import Decision, Reason, Status

_COLUMNS = ("timestamp", "request_id", "station_id", "driver_token_hash", "status", "reason", "processing_time_ms")


@click.group(no_args_is_help=False)
def audit() -> None:
    """Decisions, newest first. Drivers appear as a short keyed hash.

    \b
    Examples:
      chargegate audit list --status not_allowed --from 2026-01-31
      chargegate audit stats --json
      chargegate audit prune --before 2026-01-01
    """


@audit.command("list")
@only_station
@click.option("--status", type=click.Choice([str(status) for status in Status]), help="Only this status.")
@time_range
@paging
@as_json
@config_file
def list_decisions(
    *,
    station: str | None,
    status: str | None,
    since: int | None,
    until: int | None,
    limit: int,
    everything: bool,
    as_json: bool,
    config_file: str | None,
) -> None:
    """List decisions.

    \b
    Example:
      chargegate audit list --station 0a1b2c3d-0000-4000-8000-000000000001 --limit 10
    """
    which = DecisionFilter(station, status, since, until)
    uvloop.run(_write(which, None if everything else limit, as_json, config_file))


@audit.command()
@only_station
@time_range
@paging
@as_json
@config_file
def timeouts(
    *,
    station: str | None,
    since: int | None,
    until: int | None,
    limit: int,
    everything: bool,
    as_json: bool,
    config_file: str | None,
) -> None:
    """List decisions that were `unknown` because the authorizer did not answer in time.

    \b
    Example:
      chargegate audit timeouts --from 2026-01-31 --to 2026-02-01 --all --json
    """
    which = DecisionFilter(station, Status.UNKNOWN, since, until, Reason.TIMEOUT)
    uvloop.run(_write(which, None if everything else limit, as_json, config_file))


@audit.command()
@only_station
@time_range
@as_json
@config_file
def stats(station: str | None, since: int | None, until: int | None, as_json: bool, config_file: str | None) -> None:
    """Count decisions by station and status, busiest station first.

    \b
    Example:
      chargegate audit stats --from 2026-01-01
    """

    async def run() -> None:
        async with app.opened_store(config.load(config_file)) as store:
            counted = await store.ledger.station_stats(since, until, station_id=station)
        rows = [msgspec.to_builtins(line) for line in counted]
        await write_rows(_one(rows), StationStats.__struct_fields__, as_json=as_json)

    uvloop.run(run())


@audit.command()
@before
@as_json
@config_file
def prune(before: int, as_json: bool, config_file: str | None) -> None:
    """Drop whole months of the audit, for good.

    Only with PostgreSQL, where each month is a table of its own: of those that ended by then, the rows go. Requests and
    their decisions stay, and so do CSV files. Beside a running service.

    \b
    Example:
      chargegate audit prune --before 2026-01-01
    """

    dropped = uvloop.run(app.prune_audit(config.load(config_file), before))
    if as_json:
        write_object({"dropped": dropped})
    else:
        click.echo("dropped " + (", ".join(dropped) or "nothing: no month ended by then"))


async def _one(rows: Sequence[Row]) -> AsyncIterator[Sequence[Row]]:
    yield rows


async def _write(which: DecisionFilter, limit: int | None, as_json: bool, config_file: str | None) -> None:
    async with app.opened_store(config.load(config_file)) as store:

        async def fetch(size: int, after: tuple[int, str] | None) -> Sequence[Decision]:
            return await store.ledger.decisions(which, size, after)

        async def rows() -> AsyncIterator[list[Row]]:
            async for page in pages(fetch, lambda decision: (decision.timestamp, decision.request_id), limit):
                yield [_row(decision) for decision in page]

        await write_rows(rows(), _COLUMNS, as_json=as_json)


def _row(decision: Decision) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(decision)
    return {column: values[column] for column in _COLUMNS}
