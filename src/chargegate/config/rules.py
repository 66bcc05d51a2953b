"""The rules of the settings that a type cannot say: what joins several keys, and the forms of texts."""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from chargegate.audit.life.address import parse_address
from chargegate.config.sections import Audit, Authorization, Server, Settings
from chargegate.config.text import ConfigError
from chargegate.engines import ENGINES, Engine, engine_of
from chargegate.keys import AccessKeys
from chargegate.model import one_line, parse_callback_url

_NAME_SERVER: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([1-9][0-9]{0,4}))?").fullmatch

_NAME: Final = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_INFLUX_NEEDS: Final = {
    "influx_user": "influx_database",
    "influx_password": "influx_user",
    "influx_org": "influx_bucket",
    "influx_token": "influx_bucket",
}
_HOST: Final = re.compile(rf"{_NAME}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*").fullmatch
_ORIGIN: Final = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://{_NAME}/?").fullmatch


def check(settings: Settings) -> None:
    """The rules that join several keys, and the formats that a type cannot say."""
    check_url("queue.url", settings.queue.url)
    check_url("database.url", settings.database.url)
    check_url("cache.url", settings.cache.url)
    check_lease(settings.queue.url, settings.queue.lease_ms)
    _check_retention(settings)
    _check_door(settings)
    _check_server(settings.server)
    _check_authorization(settings.authorization)
    _check_networks("callback.allowed_networks", settings.callback.allowed_networks)
    _check_networks("callback.blocked_networks", settings.callback.blocked_networks)
    _check_influx(settings.audit)
    if settings.analysis.webhook_url:
        _check_target("analysis.webhook_url", settings.analysis.webhook_url)
    for text in settings.callback.name_servers:
        if not _is_name_server(text):
            raise ConfigError(
                f"callback.name_servers: {text!r} is not an address with an optional port, such as '192.0.2.53',"
                " '192.0.2.53:5353' or '[2001:db8::53]:5353'"
            )
    _check_archive(settings.audit)
    _check_secrets(settings)
    if settings.tracing.otlp_endpoint:
        _check_target("tracing.otlp_endpoint", settings.tracing.otlp_endpoint, with_query=False)


def _check_archive(audit: Audit) -> None:
    if audit.archive_url:
        try:
            parse_address(audit.archive_url)
        except ValueError as error:
            raise ConfigError(f"audit.archive_url: {error}") from None
    if (
        audit.export_dir
        and audit.csv_path
        and Path(audit.export_dir).resolve() == Path(audit.csv_path).resolve().parent
    ):
        raise ConfigError("audit.export_dir: must be another folder than that of audit.csv_path")


def _check_networks(key: str, networks: list[str]) -> None:
    for text in networks:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ConfigError(f"{key}: {one_line(text)!r} is not a network such as '10.0.0.0/8'") from None


def _is_name_server(text: str) -> bool:
    """An IP address with an optional port. An IPv6 address stands in brackets where a port follows."""
    match = _NAME_SERVER(text)
    try:
        if match is None:
            return ipaddress.ip_address(text).version == 6 and "%" not in text
        ipaddress.IPv6Address(match[1]) if match[1] else ipaddress.IPv4Address(match[2])
    except ValueError:
        return False
    return int(match[3] or 53) <= 65535


def scheme(url: str) -> str:
    """What comes before ``://``, for people to read; the whole URL where there is no such thing, as in ``sqlite``."""
    return url.partition("://")[0]


def check_url(key: str, url: str, allowed: Callable[[Engine], bool] = lambda _: True) -> None:
    """Raises ``ConfigError`` unless the URL names an engine that can be what the key names, and that is allowed. The
    message does not repeat the URL."""
    part = key.partition(".")[0]
    engines = [engine for engine in ENGINES if part in engine.offers and allowed(engine)]
    if not any(engine.is_named_by(url) for engine in engines):
        known = ", ".join(repr(beginning) for engine in engines for beginning in engine.urls)
        raise ConfigError(f"{key}: must be, or begin with, one of {known}")
    try:
        for host in urlsplit(url).netloc.rpartition("@")[2].split(","):
            if urlsplit(f"//{host}").port == 0:
                raise ValueError("0 is no port to connect to")
    except ValueError:  # whose message may show the password
        raise ConfigError(
            f"{key}: a host or port is malformed, or a password holds characters that must be percent-encoded"
        ) from None


def check_lease(queue_url: str, lease_ms: int) -> None:
    """Raises ``ConfigError`` if the queue's engine cannot keep so short a lease."""
    shortest = engine_of(queue_url).shortest_lease_ms
    if lease_ms < shortest:
        raise ConfigError(f"queue.lease_ms: must be at least {shortest} with {scheme(queue_url)}://")


def _check_retention(settings: Settings) -> None:
    """A request that may still come back from the queue must be known, or it would be decided a second time."""
    parts = {
        "queue.max_age_ms": settings.queue.max_age_ms,
        "authorization.timeout_ms": settings.authorization.timeout_ms,
        "callback.deadline_ms": settings.callback.deadline_ms,
    }
    if engine_of(settings.queue.url).capabilities.shared:
        parts["queue.lease_ms"] = settings.queue.lease_ms
    least = sum(parts.values())
    if 0 < settings.database.retention_ms < least:
        *names, last = parts
        raise ConfigError(
            f"database.retention_ms: must be 0 (never), or at least {least}, the sum of {', '.join(names)} and {last}"
        )


def _check_door(settings: Settings) -> None:
    host = settings.server.host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not (loopback or settings.security.api_keys or settings.security.allow_anonymous):
        raise ConfigError(
            f"server.host: {one_line(host)} is reachable by others and security.api_keys is empty; make keys with"
            " `chargegate keys create`, or set security.allow_anonymous = true"
        )


def _check_server(server: Server) -> None:
    for host in server.allowed_hosts:
        if not _HOST(host):
            raise ConfigError(f"server.allowed_hosts: {one_line(host)!r} is not a host name or an address")
    for origin in server.allowed_origins:
        if not _ORIGIN(origin):
            raise ConfigError(
                f"server.allowed_origins: {one_line(origin)!r} is not an origin such as 'https://a.example'"
            )
    if bool(server.tls_certificate) != bool(server.tls_key):
        given, missing = ("tls_certificate", "tls_key") if server.tls_certificate else ("tls_key", "tls_certificate")
        raise ConfigError(f"server.{missing}: is required, because server.{given} is set")
    if server.tls_client_ca and not server.tls_certificate:
        raise ConfigError("server.tls_certificate: is required, because server.tls_client_ca is set")


def _check_authorization(authorization: Authorization) -> None:
    if authorization.backend == "http":
        _check_target("authorization.url", authorization.url, ", because authorization.backend is 'http'")
    low, high = authorization.simulated_latency_ms
    if low > high:
        raise ConfigError("authorization.simulated_latency_ms: the first value must not exceed the second")
    if authorization.simulated_error_share + authorization.simulated_hang_share > 1:
        raise ConfigError("authorization.simulated_error_share: with simulated_hang_share it must not exceed 1")


def _check_target(key: str, url: str, because: str = "", *, with_query: bool = True) -> None:
    """A URL that the service calls. The message does not repeat it, because it may hold a secret."""
    try:
        path = parse_callback_url(url).path
    except ValueError as error:
        raise ConfigError(f"{key}: {error}{because}") from None
    if "?" in path and not with_query:
        raise ConfigError(f"{key}: must have no query")


def _check_influx(audit: Audit) -> None:
    """A database (1.x) or a bucket (2.x and 3.x), with nothing beside it that belongs to the other."""
    if not (audit.influx_token.isprintable() and audit.influx_token.isascii()):  # it stands in a header as it is
        raise ConfigError("audit.influx_token: must be one line of printable ASCII characters")
    if not audit.influx_url:
        return
    _check_target("audit.influx_url", audit.influx_url, with_query=False)
    if bool(audit.influx_database) == bool(audit.influx_bucket):
        raise ConfigError(
            "audit.influx_database: either this (InfluxDB 1.x) or audit.influx_bucket (2.x, 3.x) must be set, because"
            " audit.influx_url is"
        )
    for name, needed in _INFLUX_NEEDS.items():
        if getattr(audit, name) and not getattr(audit, needed):
            raise ConfigError(f"audit.{needed}: is required, because audit.{name} is set")


def _check_secrets(settings: Settings) -> None:
    for secret in settings.callback.signing_secrets:
        if not secret.startswith("whsec_") or _length(secret.removeprefix("whsec_")) < 16:
            raise ConfigError("callback.signing_secrets: each must be 'whsec_' and the base64 of at least 16 bytes")
    try:
        AccessKeys(settings.security.api_keys)
    except ValueError as error:
        raise ConfigError(f"security.api_keys: {error}") from None
    if any(_length(key) != 32 for key in settings.security.encryption_keys):
        raise ConfigError("security.encryption_keys: each must be the base64 of 32 bytes")
    if settings.security.token_hash_key and _length(settings.security.token_hash_key) < 32:
        raise ConfigError("security.token_hash_key: must be the base64 of at least 32 bytes")


def _length(text: str) -> int:
    """How many bytes the base64 text stands for; 0 if it is none."""
    try:
        return len(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return 0
