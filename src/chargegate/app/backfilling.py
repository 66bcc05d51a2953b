"""Opens what ``chargegate audit backfill`` uses."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from chargegate.app.auditing import csv_chain, influx_sink
from chargegate.app.commands import Offline, opened_store
from chargegate.app.life import audit_heads, audit_life, kept_heads
from chargegate.app.opening import StartError
from chargegate.audit.base import SinkUnavailable
from chargegate.audit.filling import CsvFilling, InfluxFilling
from chargegate.audit.life.archive import ArchiveUnavailable
from chargegate.audit.life.compressing import Damaged
from chargegate.config import Settings
from chargegate.ledger.base import LedgerUnavailable
from chargegate.operations.backfilling import Fillable, Filled, backfill

SinkName = Literal["csv", "influx"]
_KEYS: Final[dict[SinkName, str]] = {"csv": "audit.csv_path", "influx": "audit.influx_url"}


async def backfill_sink(
    settings: Settings,
    name: SinkName,
    since: int | None,
    until: int | None,
    *,
    dry_run: bool,
    on_total: Callable[[int], None],
    on_read: Callable[[int], None],
) -> Filled:
    """Give a sink of the settings what it lacks of a range (Unix ms). ``on_total`` is told how many decisions that is
    about, where the database counts them soon. A running service goes on meanwhile. Raises ``StartError`` and
    ``LedgerUnavailable``."""
    key = _KEYS[name]
    if not (settings.audit.csv_path if name == "csv" else settings.audit.influx_url):
        raise StartError(f"{key}: is not set, so that there is nothing to fill")
    async with opened_store(settings) as store:
        try:
            sink = _opened(name, settings, since, until, store)
            try:
                if isinstance(sink, CsvFilling) and settings.audit.archive_url:
                    await sink.leave_out_archived(audit_life(settings, changing=False))
                await _count(store, since, until, on_total)
                return await backfill(store.ledger, sink, since, until, dry_run=dry_run, on_read=on_read)
            finally:
                await sink.close()
                if isinstance(sink, CsvFilling) and not dry_run:
                    await kept_heads(settings, store.ledger).keep()
        except OSError as error:
            raise StartError(f"{key}: {error.filename or settings.audit.csv_path}: {error.strerror}") from None
        except SinkUnavailable as error:
            raise StartError(f"{key}: {error}") from None
        except (ArchiveUnavailable, Damaged) as error:  # which name the setting, or the file
            raise StartError(str(error)) from None


def _opened(name: SinkName, settings: Settings, since: int | None, until: int | None, store: Offline) -> Fillable:
    audit = settings.audit
    if name == "csv":
        path, chain, heads = Path(audit.csv_path), csv_chain(audit, store.keyring), audit_heads(settings)
        return CsvFilling(path, audit.csv_shards, since, until, chain=chain, heads=heads)
    return InfluxFilling(influx_sink(audit), store.ledger)


async def _count(store: Offline, since: int | None, until: int | None, on_total: Callable[[int], None]) -> None:
    try:
        stations = await store.ledger.station_stats(since, until)
    except LedgerUnavailable:  # It takes too long to count so many.
        return
    on_total(sum(station.total for station in stations))
