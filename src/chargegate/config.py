"""Settings: every key, default, unit and range in one place. Durations are in milliseconds unless named otherwise."""

import base64
import binascii
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from chargegate.audit.life.address import parse_address
from chargegate.config_text import ConfigError as ConfigError  # noqa: PLC0414 - others find it here
from chargegate.config_text import apply_environment, converted, read_file, without_secrets
from chargegate.engines import ENGINES, Engine, engine_of
from chargegate.keys import AccessKeys
from chargegate.model import one_line, parse_callback_url

PREFIX = "CHARGEGATE_"
FILE_VARIABLE = PREFIX + "CONFIG"
MOVE_FROM, MOVE_TO = PREFIX + "MOVE_FROM", PREFIX + "MOVE_TO"
DEFAULT_FILE = Path("chargegate.toml")
_NAME_SERVER = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([1-9][0-9]{0,4}))?").fullmatch

_NAME = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_INFLUX_NEEDS = {
    "influx_user": "influx_database",
    "influx_password": "influx_user",
    "influx_org": "influx_bucket",
    "influx_token": "influx_bucket",
}
_HOST = re.compile(rf"{_NAME}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*").fullmatch
_ORIGIN = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://{_NAME}/?").fullmatch

Ms = Annotated[int, Meta(ge=0, le=7 * 24 * 3600 * 1000)]
PositiveMs = Annotated[int, Meta(ge=1, le=7 * 24 * 3600 * 1000)]
LongMs = Annotated[int, Meta(ge=0, le=100 * 366 * 24 * 3600 * 1000)]
PositiveLongMs = Annotated[int, Meta(ge=1, le=100 * 366 * 24 * 3600 * 1000)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every section refuses unknown keys."""


class Server(_Section, frozen=True):
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    max_body_bytes: Annotated[int, Meta(ge=256, le=1_048_576)] = 16384
    shutdown_grace_ms: Ms = 30000
    request_timeout_ms: PositiveMs = 15000
    rate_limit_per_second: Annotated[float, Meta(ge=0, le=1_000_000)] = 0
    rate_limit_burst: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    max_connections_per_address: Count = 1000
    allowed_hosts: list[str] = []
    allowed_origins: list[str] = []
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""


class Queue(_Section, frozen=True):
    url: str = "sqlite"
    max_size: Count = 10000
    consumer_concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 256
    max_age_ms: PositiveMs = 300000
    max_share_per_client: Annotated[float, Meta(gt=0, le=1)] = 0.5
    lease_ms: Annotated[int, Meta(ge=1000, le=1_800_000)] = 30000


class Worker(_Section, frozen=True):
    """Where ``chargegate worker`` answers probes; it takes no requests."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8081


class Database(_Section, frozen=True):
    url: str = "sqlite"
    retention_ms: LongMs = 63_072_000_000


class Cache(_Section, frozen=True):
    url: str = "memory://"


class CircuitBreaker(_Section, frozen=True):
    enabled: bool = True
    failure_threshold: Count = 5
    failure_rate: Annotated[float, Meta(gt=0, le=1)] = 0.5
    min_calls: Count = 20
    sampling_window_ms: PositiveMs = 60000
    recovery_timeout_ms: PositiveMs = 30000
    half_open_max_calls: Count = 1


class Authorization(_Section, frozen=True):
    backend: Literal["acl", "http", "simulated"] = "acl"
    acl_file: str = ""
    url: str = ""
    timeout_ms: PositiveMs = 30000
    max_retries: Annotated[int, Meta(ge=0, le=20)] = 3
    cache_ttl_ms: Ms = 300000
    simulated_latency_ms: Annotated[list[Ms], Meta(min_length=2, max_length=2)] = msgspec.field(
        default_factory=lambda: [50, 200]
    )
    simulated_error_share: Share = 0.0
    simulated_hang_share: Share = 0.0
    circuit_breaker: CircuitBreaker = CircuitBreaker()


class DestinationCircuit(_Section, frozen=True):
    failure_threshold: Count = 5
    probe_interval_ms: PositiveMs = 5000
    forget_after_ms: PositiveMs = 30000


class Callback(_Section, frozen=True):
    timeout_ms: PositiveMs = 10000
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    retry_delay_ms: Ms = 1000
    max_retry_after_ms: Ms = 30000
    deadline_ms: PositiveMs = 60000
    max_connections: Count = 100
    max_connections_per_destination: Count = 20
    max_parked: Count = 50000
    require_https: bool = False
    allowed_networks: list[str] = []
    blocked_networks: list[str] = []
    name_servers: list[str] = []
    signing_secrets: list[str] = []
    dead_letter_retention_ms: PositiveLongMs = 2_592_000_000
    max_dead_letters: Count = 100_000
    circuit: DestinationCircuit = DestinationCircuit()


class Audit(_Section, frozen=True):
    csv_path: str = "authorization_audit.log"
    csv_shards: Annotated[int, Meta(ge=1, le=256)] = 1
    chain: bool = False
    export_dir: str = ""
    export_after_ms: LongMs = 3_600_000
    rotate_after_ms: LongMs = 86_400_000
    rotate_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] = 0
    compress_after_ms: LongMs = 604_800_000
    archive_url: str = ""
    archive_after_ms: LongMs = 2_592_000_000
    retention_ms: LongMs = 63_072_000_000
    influx_url: str = ""
    influx_database: str = ""
    influx_user: str = ""
    influx_password: str = ""
    influx_org: str = ""
    influx_bucket: str = ""
    influx_token: str = ""


class Analysis(_Section, frozen=True):
    interval_ms: PositiveMs = 60000
    timeouts_per_hour: Count = 100
    station_error_rate: Annotated[float, Meta(gt=0, le=1)] = 0.5
    station_min_decisions: Count = 20
    silence_hours: Annotated[int, Meta(ge=1, le=24)] = 3
    silence_min_usual: Count = 10
    token_stations: Annotated[int, Meta(ge=2, le=1_000_000)] = 5
    token_window_ms: Annotated[int, Meta(ge=1, le=3_600_000)] = 600_000
    callback_failure_rate: Annotated[float, Meta(gt=0, le=1)] = 0.5
    callback_min_ended: Count = 20
    webhook_url: str = ""


class Security(_Section, frozen=True):
    api_keys: list[str] = []
    allow_anonymous: bool = False
    encryption_keys: list[str] = []
    token_hash_key: str = ""


class Dashboard(_Section, frozen=True):
    enabled: bool = True
    session_idle_ms: PositiveMs = 1_800_000
    session_max_ms: PositiveMs = 43_200_000


class Metrics(_Section, frozen=True):
    enabled: bool = True


class HealthCheck(_Section, frozen=True):
    enabled: bool = True


class Monitoring(_Section, frozen=True):
    metrics: Metrics = Metrics()
    health_check: HealthCheck = HealthCheck()


class Tracing(_Section, frozen=True):
    """Traces go to a collector. Without an endpoint there are none."""

    otlp_endpoint: str = ""
    protocol: Literal["http/protobuf", "grpc"] = "http/protobuf"
    sample_ratio: Share = 0.1
    max_requested_per_second: Annotated[int, Meta(ge=0, le=1_000_000)] = 50
    station_ids: bool = False


class Logging(_Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Settings(_Section, frozen=True):
    """The whole configuration, frozen. Read it with ``load``; only the command line and the assembly see it."""

    data_dir: str = "data"
    server: Server = Server()
    queue: Queue = Queue()
    worker: Worker = Worker()
    database: Database = Database()
    cache: Cache = Cache()
    authorization: Authorization = Authorization()
    callback: Callback = Callback()
    audit: Audit = Audit()
    analysis: Analysis = Analysis()
    security: Security = Security()
    dashboard: Dashboard = Dashboard()
    monitoring: Monitoring = Monitoring()
    logging: Logging = Logging()
    tracing: Tracing = Tracing()

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir)


SECRET_KEYS = frozenset(
    {
        "audit.influx_password",
        "audit.influx_token",
        "callback.signing_secrets",
        "security.api_keys",
        "security.encryption_keys",
        "security.token_hash_key",
    }
)
URL_KEYS = frozenset(
    {
        "queue.url",
        "database.url",
        "cache.url",
        "authorization.url",
        "audit.influx_url",
        "audit.archive_url",
        "analysis.webhook_url",
    }
)


def load(file: str | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the file (default: ``./chargegate.toml`` if there is one), then ``CHARGEGATE_SECTION__KEY`` over it, or
    ``CHARGEGATE_SECTION__KEY_FILE`` for a secret.

    Raises ``ConfigError`` for a file that cannot be read, an unknown key, a wrong type or a value out of range.
    """
    file = file.strip() if file is not None else None
    values = {} if file is None and not DEFAULT_FILE.exists() else read_file(Path(file) if file else DEFAULT_FILE)
    apply_environment(values, Settings, environ, PREFIX, SECRET_KEYS | URL_KEYS)
    settings = converted(values, Settings)
    _check(settings)
    return settings


def shown(settings: Settings) -> dict[str, Any]:
    """The settings as plain data with every secret replaced by ``"***"``, for people to read."""
    return without_secrets(msgspec.to_builtins(settings), SECRET_KEYS, URL_KEYS)


def _check(settings: Settings) -> None:
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
            _ = urlsplit(f"//{host}").port
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
