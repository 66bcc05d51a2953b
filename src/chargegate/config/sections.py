"""Settings: every key, default, unit and range in one place. Durations are in milliseconds unless named otherwise."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

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
        "tracing.otlp_endpoint",
    }
)
