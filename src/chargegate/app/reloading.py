"""Reads again, while the service runs, what may change without a restart (SIGHUP)."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from chargegate.api.server import Server
from chargegate.app.authorization import apply_acl_file, check_acl_file
from chargegate.app.opening import Opened, StartError
from chargegate.app.tls import certificate_end, server_context
from chargegate.config import ConfigError, Settings
from chargegate.delivering.signing import Signer
from chargegate.keys import AccessKeys
from chargegate.ledger.base import LedgerUnavailable
from chargegate.observe import Metrics, log

_OF_TLS: Final = frozenset({"server.tls_certificate", "server.tls_key", "server.tls_client_ca"})
FOLLOWED: Final = _OF_TLS | {"security.api_keys", "callback.signing_secrets", "authorization.acl_file"}
"""The keys whose new values are taken up, where a part of the process follows them."""

Apply = Callable[[], Awaitable[None]]
Prepare = Callable[[Settings], Awaitable[Apply]]
"""Checks all that new settings say of one part, and returns what takes it up. It changes nothing itself. Raises
``StartError``."""


class Reloading:
    """All or nothing: what cannot be read leaves every part as it was."""

    def __init__(self, settings: Settings, reread: Callable[[], Settings], parts: Sequence[Prepare]) -> None:
        """``settings`` are those that the process was started with. ``reread`` raises ``ConfigError``."""
        self._started_with = self._taken_up = settings
        self._reread = reread
        self._parts = parts

    async def reload(self) -> None:
        """This raises nothing: the process goes on, whatever was found."""
        try:
            settings = await asyncio.to_thread(self._reread)
            prepared = [await prepare(settings) for prepare in self._parts]
        except (ConfigError, StartError) as error:
            log.error("not reloaded, all settings stay as they were", why=str(error))
            return
        except Exception as error:  # noqa: BLE001 - a defect must not end a service that works
            log.error("not reloaded, all settings stay as they were", why=type(error).__name__)
            return
        try:
            for apply in prepared:
                await apply()
        except (LedgerUnavailable, StartError) as error:
            log.error("reloaded in part, without the access list file; send SIGHUP again", why=str(error))
        switched = bool(settings.server.tls_certificate) != bool(self._started_with.server.tls_certificate)
        followed = FOLLOWED - _OF_TLS if switched else FOLLOWED
        log.info("reloaded", changed=[key for key in changes(self._taken_up, settings) if key in followed])
        self._taken_up = settings
        if later := [key for key in changes(self._started_with, settings) if key not in followed]:
            log.warning("these changes need a restart", keys=later)


def following_access_keys(keys: AccessKeys) -> Prepare:
    async def prepare(settings: Settings) -> Apply:
        configured = settings.security.api_keys
        if keys and not configured:
            raise StartError("security.api_keys: is empty now, which would let everybody in; that needs a restart")

        async def apply() -> None:
            keys.replace(configured)

        return apply

    return prepare


def following_secrets(signer: Signer) -> Prepare:
    async def prepare(settings: Settings) -> Apply:
        async def apply() -> None:
            signer.replace(settings.callback.signing_secrets)

        return apply

    return prepare


def following_certificates(server: Server, metrics: Metrics) -> Prepare:
    """The files are read again also where their names are the same. HTTPS neither begins nor ends."""

    async def prepare(settings: Settings) -> Apply:
        context = await asyncio.to_thread(server_context, settings.server)
        end = await asyncio.to_thread(certificate_end, settings.server)

        async def apply() -> None:
            if context is not None and server.scheme == "https":
                server.use_tls(context)
                metrics.certificate_in_use(end)
                log.info("TLS certificates read again, for new connections")

        return apply

    return prepare


def following_access_list(opened: Opened) -> Prepare:
    """The access list file, which is the last to be taken up, because the database may be away."""

    async def prepare(settings: Settings) -> Apply:
        await asyncio.to_thread(check_acl_file, settings)

        async def apply() -> None:
            name, database = settings.authorization.acl_file, opened.database
            await apply_acl_file(name, database.access_list, database.ledger, opened.keyring)

        return apply

    return prepare


def changes(before: Settings, after: Settings) -> list[str]:
    """The keys whose values differ, with dots, in the order of the settings. No value is shown."""
    return _differences("", msgspec.to_builtins(before), msgspec.to_builtins(after))


def _differences(prefix: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for key, old in before.items():
        new = after[key]
        if isinstance(old, dict):
            found += _differences(f"{prefix}{key}.", old, new)
        elif old != new:
            found.append(prefix + key)
    return found
