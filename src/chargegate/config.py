"""Settings: every key, default, unit and range in one place. Durations are in milliseconds unless named otherwise."""

import base64
import binascii
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from chargegate.keys import AccessKeys
from chargegate.model import one_line, parse_callback_url

PREFIX = "CHARGEGATE_"
FILE_VARIABLE = PREFIX + "CONFIG"
TEST_PREFIX = PREFIX + "TEST_"  # where the tests' servers are
MOVE_FROM, MOVE_TO = PREFIX + "MOVE_FROM", PREFIX + "MOVE_TO"
_NO_KEYS = frozenset({FILE_VARIABLE, MOVE_FROM, MOVE_TO})
DEFAULT_FILE = Path("chargegate.toml")

Ms = Annotated[int, Meta(ge=0, le=7 * 24 * 3600 * 1000)]
PositiveMs = Annotated[int, Meta(ge=1, le=7 * 24 * 3600 * 1000)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]


class ConfigError(Exception):
    """A setting is wrong. The message is one line and names the key and the rule."""


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


class Queue(_Section, frozen=True):
    url: str = "sqlite"
    max_size: Count = 10000
    consumer_concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 256
    max_age_ms: PositiveMs = 300000
    lease_ms: Annotated[int, Meta(ge=1000, le=1_800_000)] = 30000


class Worker(_Section, frozen=True):
    """Where ``chargegate worker`` answers probes; deciding has no door of its own."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8081


class Database(_Section, frozen=True):
    url: str = "sqlite"


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
    signing_secrets: list[str] = []
    circuit: DestinationCircuit = DestinationCircuit()


class Audit(_Section, frozen=True):
    csv_path: str = "authorization_audit.log"


class Security(_Section, frozen=True):
    api_keys: list[str] = []
    allow_anonymous: bool = False
    encryption_keys: list[str] = []
    token_hash_key: str = ""


class Metrics(_Section, frozen=True):
    enabled: bool = True


class HealthCheck(_Section, frozen=True):
    enabled: bool = True


class Monitoring(_Section, frozen=True):
    metrics: Metrics = Metrics()
    health_check: HealthCheck = HealthCheck()


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
    security: Security = Security()
    monitoring: Monitoring = Monitoring()
    logging: Logging = Logging()

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir)


SECRET_KEYS = frozenset(
    {"callback.signing_secrets", "security.api_keys", "security.encryption_keys", "security.token_hash_key"}
)
_REDIS = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_POSTGRES = ("postgresql", "postgres")
SCHEMES = {
    "queue.url": ("sqlite", "memory", *_POSTGRES, *_REDIS, "kafka", "amqp", "amqps"),
    "database.url": ("sqlite", *_POSTGRES),
    "cache.url": ("memory", *_REDIS),
}
KAFKA_SHORTEST_LEASE_MS = 10000  # six tenths are the session, and brokers refuse one of less than 6 s
URL_KEYS = frozenset({"queue.url", "database.url", "cache.url", "authorization.url"})


def load(file: str | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the file (default: ``./chargegate.toml`` if there is one), then ``CHARGEGATE_SECTION__KEY`` over it.

    Raises ``ConfigError`` for a file that cannot be read, an unknown key, a wrong type or a value out of range.
    """
    values = _read(file)
    for name, text in sorted(environ.items()):
        if name.startswith(PREFIX) and name not in _NO_KEYS and not name.startswith(TEST_PREFIX):
            _set_from_environment(values, name, text)
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(_in_words(str(error))) from None
    _check(settings)
    return settings


def _read(file: str | None) -> dict[str, Any]:
    path = Path(file) if file else DEFAULT_FILE
    if file is None and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _set_from_environment(values: dict[str, Any], name: str, text: str) -> None:
    keys = name.removeprefix(PREFIX).lower().split("__")
    kind: Any = Settings
    for position, key in enumerate(keys):
        fields = {f.name: f.type for f in msgspec.structs.fields(kind)} if _is_section(kind) else {}
        if key not in fields:
            raise ConfigError(f"{name}: unknown key {'.'.join(keys[: position + 1])!r}")
        kind = fields[key]
    if _is_section(kind):
        raise ConfigError(f"{name}: {'.'.join(keys)!r} is a section, not a key")
    section = values
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{'.'.join(keys[:-1])}: expected a section")
    section[keys[-1]] = _typed(name, kind, text)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, _Section)


def _typed(name: str, kind: Any, text: str) -> Any:
    """A variable's text as the type of its key: lists are JSON or separated by commas."""
    base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    try:
        if get_origin(base) is list:
            if text.lstrip().startswith("["):
                return msgspec.json.decode(text, type=base)
            return msgspec.convert([part.strip() for part in text.split(",") if part.strip()], base, strict=False)
        if base is str or get_origin(base) is Literal:
            return text
        return msgspec.convert(text.strip().lower(), base, strict=False)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ConfigError(f"{name}: {_in_words(str(error))}") from None


def _in_words(error: str) -> str:
    """msgspec's ``rule - at `$.section.key` `` as ``section.key: rule``."""
    rule, _, place = one_line(error).partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    unknown = rule.removeprefix("Object contains unknown field `")
    if unknown != rule:
        return f"unknown key '{place + '.' if place else ''}{unknown.rstrip('`')}'"
    return f"{place}: {rule[:1].lower()}{rule[1:]}" if place else rule


def _check(settings: Settings) -> None:
    """The rules that join several keys, and the formats that a type cannot say."""
    check_url("queue.url", settings.queue.url)
    check_url("database.url", settings.database.url)
    check_url("cache.url", settings.cache.url)
    if scheme(settings.queue.url) == "kafka" and settings.queue.lease_ms < KAFKA_SHORTEST_LEASE_MS:
        raise ConfigError(f"queue.lease_ms: must be at least {KAFKA_SHORTEST_LEASE_MS} with kafka://")
    _check_door(settings)
    _check_authorization(settings.authorization)
    for text in settings.callback.allowed_networks:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ConfigError(f"callback.allowed_networks: {text!r} is not a network such as '10.0.0.0/8'") from None
    _check_secrets(settings)


def scheme(url: str) -> str:
    """What comes before ``://``; the whole where there is no such thing, as in ``sqlite``."""
    return url.partition("://")[0]


def check_url(key: str, url: str) -> None:
    """Raises ``ConfigError`` unless the URL has a scheme that the key knows. The message does not repeat the URL."""
    name, separator, rest = url.partition("://")
    right = (not separator) if name == "sqlite" else (separator and bool(rest) != (name == "memory"))
    if name not in SCHEMES[key] or not right:
        known = ", ".join(repr(each if each == "sqlite" else each + "://") for each in SCHEMES[key])
        raise ConfigError(f"{key}: must be, or begin with, one of {known}")
    try:
        for host in urlsplit(url).netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{host}").port
    except ValueError:  # whose message may show the password
        raise ConfigError(
            f"{key}: a host or port is malformed, or a password holds characters that must be percent-encoded"
        ) from None


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


def _check_authorization(authorization: Authorization) -> None:
    if authorization.backend == "http":
        try:
            parse_callback_url(authorization.url)
        except ValueError as error:
            raise ConfigError(f"authorization.url: {error}, because authorization.backend is 'http'") from None
    low, high = authorization.simulated_latency_ms
    if low > high:
        raise ConfigError("authorization.simulated_latency_ms: the first value must not exceed the second")
    if authorization.simulated_error_share + authorization.simulated_hang_share > 1:
        raise ConfigError("authorization.simulated_error_share: with simulated_hang_share it must not exceed 1")


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


def shown(settings: Settings) -> dict[str, Any]:
    """The settings as plain data with every secret replaced by ``"***"``, for people to read."""
    values: dict[str, Any] = msgspec.to_builtins(settings)
    _hide(values, "")
    return values


_USER_INFORMATION = re.compile(r"(?<=://).*@")  # up to the last: a password that is not percent-encoded may hold any
_SECRET_OPTION = re.compile(
    r"(?i)(?<=[?&])([^=&#]*(?:password|passphrase|secret|token|pem|_url|oauthbearer.config)[^=&#]*)=[^&#]*"
)


def _hide(values: dict[str, Any], prefix: str) -> None:
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, dict):
            _hide(value, name + ".")
        elif name in SECRET_KEYS and value:
            values[key] = ["***"] * len(value) if isinstance(value, list) else "***"
        elif name in URL_KEYS:
            values[key] = _USER_INFORMATION.sub("***@", _SECRET_OPTION.sub(r"\1=***", value))
