"""Builds the audit sinks that the settings name, and joins each with the ledger."""

from contextlib import AsyncExitStack
from pathlib import Path

from chargegate.audit.base import Feed
from chargegate.audit.chain import Chain
from chargegate.audit.csv_shards import CsvShards, shard_paths
from chargegate.audit.feed import AuditFeed
from chargegate.audit.influx import InfluxSink, InfluxTarget, bucket_target, database_target
from chargegate.audit.life.heads import Heads
from chargegate.audit.remote_feed import RemoteFeed
from chargegate.config import Audit
from chargegate.engines import Place
from chargegate.http1 import HttpClient
from chargegate.keys import Keyring
from chargegate.ledger.base import AuditSource
from chargegate.ledger.records import AuditRow
from chargegate.model import parse_callback_url
from chargegate.observe import Metrics


class SinkError(Exception):
    """A sink cannot be opened. The message is one line and names its key."""


def build_feeds(audit: Audit, place: Place, metrics: Metrics, keyring: Keyring) -> list[Feed]:
    """One for each sink that is turned on. Raises ``SinkError``."""
    feeds: list[Feed] = []
    if audit.csv_path:
        feeds.append(AuditFeed(_csv_files(audit, place, metrics, keyring), metrics))
    if audit.influx_url:
        feeds.append(RemoteFeed(influx_sink(audit), metrics))
    return feeds


def csv_paths(audit: Audit) -> list[Path]:
    """The files that the CSV's lines go into."""
    return shard_paths(Path(audit.csv_path), audit.csv_shards)


def audit_chain(keyring: Keyring) -> Chain:
    """The chain of the audit, under a key of its own."""
    return Chain(keyring.derived("audit chain"))


def csv_chain(audit: Audit, keyring: Keyring) -> Chain | None:
    """That of the CSV files, where it is turned on."""
    return audit_chain(keyring) if audit.chain else None


def _csv_files(audit: Audit, place: Place, metrics: Metrics, keyring: Keyring) -> CsvShards:
    path = Path(audit.csv_path)
    metrics.disks.watch("audit", path.absolute().parent)
    notes = place.folder / f"{place.process or 'serve'}.csv-notes"
    try:
        heads = Heads(place.folder, audit_chain(keyring))
        return CsvShards(path, audit.csv_shards, notes, csv_chain(audit, keyring), heads)
    except OSError as error:
        raise SinkError(f"audit.csv_path: {error.filename or audit.csv_path}: {error.strerror}") from None


def influx_sink(audit: Audit) -> InfluxSink:
    """It writes one batch at a time, to an address that the operator chose: no network is blocked."""
    client = HttpClient(max_connections=1, idle_s=30, content_type="text/plain; charset=utf-8")
    return InfluxSink(client, _influx_target(audit))


def _influx_target(audit: Audit) -> InfluxTarget:
    url = parse_callback_url(audit.influx_url)
    if audit.influx_database:
        return database_target(url, audit.influx_database, audit.influx_user, audit.influx_password)
    return bucket_target(url, audit.influx_org, audit.influx_bucket, audit.influx_token)


def audited(metrics: Metrics, feeds: list[Feed], rows: list[AuditRow]) -> None:
    """Tell all of committed rows. The ledger's writing thread calls it."""
    metrics.audit_entries.labels("database").inc(len(rows))
    for feed in feeds:
        feed.offer(rows)


async def start_feeds(feeds: list[Feed], source: AuditSource, stack: AsyncExitStack) -> None:
    """Bring the sinks up to date, and keep them so. Raises ``SinkError``."""
    for feed in feeds:
        stack.push_async_callback(feed.close)
        try:
            await feed.start(source)
        except OSError as error:
            raise SinkError(f"audit.{feed.name}_path: cannot be read back: {error.strerror}") from None
