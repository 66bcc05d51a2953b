"""Brings a database's tables up to date."""

from collections.abc import Mapping, Sequence
from typing import Final

from chargegate.engines.postgres.connection import Connection
from chargegate.observe import log
from chargegate.storage.unavailable import Unusable

Migrations = Mapping[str, Sequence[str]]
"""The scripts of each component, oldest first."""

_LOCK: Final = 0x63686172676567
"""The number of this service's advisory lock: "chargeg" in ASCII."""


async def migrate(migrations: Migrations, connection: Connection, _repeated: bool) -> None:
    """One process at a time does so, in the transaction that is open. Raises ``Unusable`` for the tables of a newer
    release."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_versions (component text PRIMARY KEY, version integer NOT NULL)"
    )
    for component, scripts in migrations.items():
        version = await connection.fetchval("SELECT version FROM schema_versions WHERE component = $1", component)
        if (version or 0) > len(scripts):
            raise Unusable(f"made by a newer release ({component} tables have version {version})")
        if version == len(scripts):
            continue
        for script in scripts[version or 0 :]:
            await connection.execute(script)
        await connection.execute(
            "INSERT INTO schema_versions VALUES ($1, $2) ON CONFLICT (component) DO UPDATE SET version = $2",
            component,
            len(scripts),
        )
        log.info("tables migrated", component=component, version_from=version or 0, version_to=len(scripts))
