import base64
import json
import os
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from chargegate.config import SECRET_KEYS, URL_KEYS, ConfigError, Settings, load, shown
from chargegate.keys import new_access_key
from trying import few_or_many, try_many

KEY = base64.b64encode(bytes(range(32))).decode()
ACCESS = new_access_key("admin")[1]
WEBHOOK = "whsec_" + KEY

# Every key with a value that is not its default, where it has another.
DAY = 86_400_000
KEYS: dict[str, Any] = {
    "data_dir": "elsewhere",
    "server.host": "::1",
    "server.port": 9000,
    "server.max_body_bytes": 1024,
    "server.shutdown_grace_ms": 5,
    "server.request_timeout_ms": 5,
    "server.rate_limit_per_second": 1.5,
    "server.rate_limit_burst": 5,
    "server.max_connections_per_address": 7,
    "server.allowed_hosts": ["gate.example", "192.0.2.1:8080", "[2001:db8::1]"],
    "server.allowed_origins": ["https://desk.example", "http://desk.example:3000"],
    "server.tls_certificate": "server.pem",
    "server.tls_key": "server.key",
    "server.tls_client_ca": "clients.pem",
    "queue.url": "memory://",
    "queue.max_size": 5,
    "queue.consumer_concurrency": 1,
    "queue.max_age_ms": 5,
    "queue.max_share_per_client": 0.25,
    "queue.lease_ms": 5000,
    "worker.host": "::1",
    "worker.port": 9001,
    "database.url": "sqlite",
    "database.retention_ms": 0,
    "cache.url": "memory://",
    "authorization.backend": "simulated",
    "authorization.acl_file": "drivers.csv",
    "authorization.url": "http://127.0.0.1:9/decide",
    "authorization.timeout_ms": 5,
    "authorization.max_retries": 0,
    "authorization.cache_ttl_ms": 0,
    "authorization.simulated_latency_ms": [1, 2],
    "authorization.simulated_error_share": 0.25,
    "authorization.simulated_hang_share": 0.25,
    "authorization.circuit_breaker.enabled": False,
    "authorization.circuit_breaker.failure_threshold": 7,
    "authorization.circuit_breaker.failure_rate": 1.0,
    "authorization.circuit_breaker.min_calls": 7,
    "authorization.circuit_breaker.sampling_window_ms": 7,
    "authorization.circuit_breaker.recovery_timeout_ms": 7,
    "authorization.circuit_breaker.half_open_max_calls": 7,
    "callback.timeout_ms": 5,
    "callback.max_attempts": 5,
    "callback.retry_delay_ms": 0,
    "callback.max_retry_after_ms": 0,
    "callback.deadline_ms": 5,
    "callback.max_connections": 5,
    "callback.max_connections_per_destination": 5,
    "callback.max_parked": 5,
    "callback.dead_letter_retention_ms": 5,
    "callback.max_dead_letters": 5,
    "callback.circuit.forget_after_ms": 9,
    "callback.require_https": True,
    "callback.allowed_networks": ["127.0.0.0/8", "fd00::/8"],
    "callback.blocked_networks": ["192.0.2.0/24", "2001:db8:64::/96"],
    "callback.name_servers": ["192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]", "[2001:db8::53]:5353"],
    "callback.signing_secrets": [WEBHOOK, WEBHOOK],
    "callback.circuit.failure_threshold": 7,
    "callback.circuit.probe_interval_ms": 7,
    "audit.csv_path": "",
    "audit.csv_shards": 10,
    "audit.influx_url": "http://127.0.0.1:8086",
    "audit.influx_database": "charging",
    "audit.influx_user": "gate",
    "audit.influx_password": "let-me-in",
    "audit.influx_org": "example",
    "audit.influx_bucket": "audit",
    "audit.influx_token": "a-token-of-influx",
    "analysis.interval_ms": 500,
    "analysis.timeouts_per_hour": 7,
    "analysis.station_error_rate": 0.25,
    "analysis.station_min_decisions": 7,
    "analysis.silence_hours": 7,
    "analysis.silence_min_usual": 7,
    "analysis.token_stations": 7,
    "analysis.token_window_ms": 7000,
    "analysis.callback_failure_rate": 0.25,
    "analysis.callback_min_ended": 7,
    "analysis.webhook_url": "https://ops.example/anomalies",
    "audit.chain": True,
    "audit.export_dir": "exports",
    "audit.export_after_ms": 7,
    "audit.rotate_after_ms": 7,
    "audit.rotate_bytes": 7,
    "audit.compress_after_ms": 7,
    "audit.archive_url": "s3://bucket/folder",
    "audit.archive_after_ms": 7,
    "audit.retention_ms": 7,
    "security.api_keys": [ACCESS],
    "security.allow_anonymous": True,
    "security.encryption_keys": [KEY],
    "security.token_hash_key": KEY,
    "monitoring.metrics.enabled": False,
    "monitoring.health_check.enabled": False,
    "logging.level": "error",
    "logging.format": "json",
    "dashboard.enabled": False,
    "dashboard.session_idle_ms": 7000,
    "dashboard.session_max_ms": 70_000,
    "tracing.otlp_endpoint": "https://collector.example:4318/base",
    "tracing.protocol": "grpc",
    "tracing.sample_ratio": 0.5,
    "tracing.max_requested_per_second": 0,
    "tracing.station_ids": True,
}

BESIDE = {  # the keys that a key is not set without
    "server.tls_certificate": ["server.tls_key"],
    "server.tls_key": ["server.tls_certificate"],
    "server.tls_client_ca": ["server.tls_certificate", "server.tls_key"],
    "audit.influx_url": ["audit.influx_database"],
}
OF_A_DATABASE = {"audit.influx_database", "audit.influx_user", "audit.influx_password"}
OF_A_BUCKET = {"audit.influx_bucket", "audit.influx_org", "audit.influx_token"}


def variable(key: str) -> str:
    return "CHARGEGATE_" + key.upper().replace(".", "__")


def value_of(settings_: Any, key: str) -> Any:
    for part in key.split("."):
        settings_ = getattr(settings_, part)
    return settings_


def toml(key: str, literal: str) -> str:
    section, _, name = key.rpartition(".")
    return f"[{section}]\n{name} = {literal}\n" if section else f"{name} = {literal}\n"


def every_key(kind: Any, prefix: str = "") -> set[str]:
    found = set()
    for field in msgspec.structs.fields(kind):
        nested = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        found |= every_key(field.type, f"{prefix}{field.name}.") if nested else {prefix + field.name}
    return found


def fault(file: Path | None, environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(str(file) if file else None, environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_table_here_has_every_key() -> None:
    assert set(KEYS) == every_key(Settings)


@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_set_by_file_and_by_environment(key: str, tmp_path: Path) -> None:
    value = KEYS[key]
    beside = {variable(other): KEYS[other] for other in BESIDE.get(key, ())}
    file = tmp_path / "c.toml"
    file.write_text(toml(key, json.dumps(value)))
    assert value_of(load(str(file), beside), key) == value
    text = value if isinstance(value, str) else json.dumps(value)
    assert value_of(load(None, {variable(key): text, **beside}), key) == value
    if isinstance(value, list):
        assert value_of(load(None, {variable(key): " , ".join(map(str, value))}), key) == value
    if key not in ("database.url", "cache.url"):
        assert value_of(load(None, {}), key) != value


def test_the_contracts_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    expected = {
        "data_dir": "data", "server.host": "127.0.0.1", "server.port": 8080, "server.max_body_bytes": 16384,
        "server.shutdown_grace_ms": 30000, "queue.url": "sqlite", "queue.max_size": 10000,
        "queue.consumer_concurrency": 256, "queue.max_age_ms": 300000, "database.url": "sqlite",
        "cache.url": "memory://", "authorization.backend": "acl", "authorization.acl_file": "",
        "authorization.timeout_ms": 30000, "authorization.max_retries": 3, "authorization.cache_ttl_ms": 300000,
        "authorization.simulated_latency_ms": [50, 200], "authorization.circuit_breaker.enabled": True,
        "authorization.circuit_breaker.failure_threshold": 5, "authorization.circuit_breaker.failure_rate": 0.5,
        "authorization.circuit_breaker.min_calls": 20, "authorization.circuit_breaker.sampling_window_ms": 60000,
        "authorization.circuit_breaker.recovery_timeout_ms": 30000,
        "authorization.circuit_breaker.half_open_max_calls": 1, "callback.timeout_ms": 10000,
        "callback.max_attempts": 3, "callback.retry_delay_ms": 1000, "callback.deadline_ms": 60000,
        "callback.max_connections": 100, "callback.max_connections_per_destination": 20,
        "callback.require_https": False, "callback.allowed_networks": [], "callback.signing_secrets": [],
        "callback.blocked_networks": [],
        "callback.circuit.probe_interval_ms": 5000, "audit.csv_path": "authorization_audit.log",
        "analysis.timeouts_per_hour": 100, "analysis.station_error_rate": 0.5, "analysis.webhook_url": "",
        "audit.chain": False, "audit.rotate_after_ms": DAY, "audit.rotate_bytes": 0, "audit.compress_after_ms": 7 * DAY,
        "audit.archive_url": "", "audit.archive_after_ms": 30 * DAY, "audit.retention_ms": 730 * DAY,
        "callback.dead_letter_retention_ms": 30 * 86_400_000, "callback.max_dead_letters": 100000,
        "database.retention_ms": 2 * 365 * 86_400_000,
        "security.api_keys": [], "security.allow_anonymous": False, "security.encryption_keys": [],
        "monitoring.metrics.enabled": True, "monitoring.health_check.enabled": True,
    }  # fmt: skip
    settings_ = load(None, {})
    assert {key: value_of(settings_, key) for key in expected} == expected


@pytest.mark.parametrize("retention", [0, 390_000])
def test_requests_may_be_kept_for_ever_or_just_long_enough(retention: int) -> None:
    assert load(None, {"CHARGEGATE_DATABASE__RETENTION_MS": str(retention)}).database.retention_ms == retention


def test_the_environment_stands_above_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[server]\nport = 1\nhost = '::1'\n")
    settings_ = load(str(file), {"CHARGEGATE_SERVER__PORT": "2"})
    assert (settings_.server.port, settings_.server.host) == (2, "::1")


def test_the_file_in_the_working_directory_is_read_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None, {}).server.port == 8080
    (tmp_path / "chargegate.toml").write_text("[server]\nport = 7\n")
    assert load(None, {}).server.port == 7


def test_other_variables_are_left_alone() -> None:
    others = (
        "CHARGEGATE", "CHARGEGATED__X", "PATH", "CHARGEGATE_CONFIG", "CHARGEGATE_TEST_POSTGRES", "CHARGEGATE_",
        "CHARGEGATE_COLOUR", "CHARGEGATE_SERVER", "CHARGEGATE_CONFIGURATION", "CHARGEGATE_TEST", "CHARGEGATE_PORT",
        "CHARGEGATE_SERVICE_HOST", "CHARGEGATE_PORT_8080_TCP_ADDR", "CHARGEGATE_DATA_DIR_SERVICE_HOST",
    )  # fmt: skip
    assert load(None, dict.fromkeys(others, "x")) == load(None, {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gate.example", ""])
def test_an_open_door_needs_keys_or_intent(host: str) -> None:
    open_door = {"CHARGEGATE_SERVER__HOST": host}
    assert "server.host" in fault(None, open_door)
    for name, value in {
        "CHARGEGATE_SECURITY__API_KEYS": ACCESS,
        "CHARGEGATE_SECURITY__ALLOW_ANONYMOUS": "true",
    }.items():
        assert load(None, {**open_door, name: value}).server.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert load(None, {"CHARGEGATE_SERVER__HOST": host}).server.host == host


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("colour = 1", "colour"),
        ("[colour]", "colour"),
        ("[server]\ncolour = 1", "server.colour"),
        ("[authorization.circuit_breaker]\ncolour = 1", "authorization.circuit_breaker.colour"),
        ("[server.port]", "server.port"),
        ("server = 1", "server"),
        ('"two\\nlines" = 1', "two"),
        ("[server]\nport = 65536", "server.port"),
        ("[server]\nport = -1", "server.port"),
        ("[server]\nport = '80'", "server.port"),
        ("[server]\nport = 80.5", "server.port"),
        ("[server]\nport = true", "server.port"),
        ("[server]\nhost = 1", "server.host"),
        ("[server]\nhost = '0.0.0.0'", "security.api_keys"),
        ("[server]\nhost = 'gate.example'", "security.api_keys"),
        ("[queue]\nmax_size = 0", "queue.max_size"),
        ("[queue]\nconsumer_concurrency = 0", "queue.consumer_concurrency"),
        ("[queue]\nmax_age_ms = 2026-01-01", "queue.max_age_ms"),
        ("[queue]\nurl = 'sqllite'", "queue.url"),
        ("[database]\nurl = 'mysql://root:hidden@x'", "database.url"),
        ("[cache]\nurl = ''", "cache.url"),
        ("[authorization]\nbackend = 'none'", "authorization.backend"),
        ("[authorization]\nbackend = 'http'", "authorization.url"),
        ("[analysis]\nwebhook_url = 'ftp://x'", "analysis.webhook_url"),
        ("[analysis]\nstation_error_rate = 0", "analysis.station_error_rate"),
        ("[analysis]\ntimeouts_per_hour = 0", "analysis.timeouts_per_hour"),
        ("[analysis]\nsilence_hours = 25", "analysis.silence_hours"),
        ("[authorization]\nbackend = 'http'\nurl = 'http://['", "authorization.url"),
        ("[authorization]\nbackend = 'http'\nurl = 'ftp://x'", "authorization.url"),
        ("[authorization]\nsimulated_latency_ms = [1]", "authorization.simulated_latency_ms"),
        ("[authorization]\nsimulated_latency_ms = [2, 1]", "authorization.simulated_latency_ms"),
        ("[authorization]\nsimulated_latency_ms = [1, -2]", "authorization.simulated_latency_ms"),
        ("[authorization]\nsimulated_error_share = 1.1", "authorization.simulated_error_share"),
        ("[authorization]\nsimulated_error_share = nan", "authorization.simulated_error_share"),
        ("[authorization]\nsimulated_error_share = 0.6\nsimulated_hang_share = 0.6", "authorization.simulated_"),
        ("[authorization.circuit_breaker]\nfailure_rate = 0", "authorization.circuit_breaker.failure_rate"),
        ("[authorization.circuit_breaker]\nenabled = 'yes'", "authorization.circuit_breaker.enabled"),
        ("[callback]\nmax_attempts = 0", "callback.max_attempts"),
        ("[callback]\nmax_dead_letters = 0", "callback.max_dead_letters"),
        ("[callback]\ndead_letter_retention_ms = 0", "callback.dead_letter_retention_ms"),
        ("[database]\nretention_ms = -1", "database.retention_ms"),
        ("[database]\nretention_ms = 389_999", "database.retention_ms: must be 0 (never), or at least 390000, the sum"),
        ("[queue]\nurl = 'redis://h'\n[database]\nretention_ms = 419_999", "callback.deadline_ms and queue.lease_ms"),
        ("[database]\nretention_ms = 390_000\n[queue]\nmax_age_ms = 300_001", "queue.max_age_ms"),
        ("[callback]\nallowed_networks = ['10.0.0.1/8']", "callback.allowed_networks"),
        ("[callback]\nallowed_networks = '10.0.0.0/8'", "callback.allowed_networks"),
        ("[callback]\nblocked_networks = ['10.0.0.1/8']", "callback.blocked_networks"),
        ("[callback]\nblocked_networks = ['one\\u001bline']", "callback.blocked_networks"),
        ("[callback]\nname_servers = ['ns.example']", "callback.name_servers"),
        ("[callback]\nname_servers = ['192.0.2.53:']", "callback.name_servers"),
        ("[callback]\nname_servers = ['192.0.2.53:0']", "callback.name_servers"),
        ("[callback]\nname_servers = ['192.0.2.53:65536']", "callback.name_servers"),
        ("[callback]\nname_servers = ['[192.0.2.53]:53']", "callback.name_servers"),
        ("[callback]\nname_servers = ['[2001:db8::53']", "callback.name_servers"),
        ("[callback]\nname_servers = ['[2001:db8::53]5353']", "callback.name_servers"),
        ("[callback]\nname_servers = ['fe80::1%eth0']", "callback.name_servers"),
        ("[callback]\nname_servers = ['']", "callback.name_servers"),
        ("[callback]\nsigning_secrets = ['hidden']", "callback.signing_secrets"),
        ("[callback]\nsigning_secrets = ['whsec_hidden!']", "callback.signing_secrets"),
        ("[callback]\nsigning_secrets = ['whsec_aGlkZGVu']", "callback.signing_secrets"),
        ("[security]\napi_keys = ['hidden']", "security.api_keys"),
        ("[security]\nencryption_keys = ['aGlkZGVu']", "security.encryption_keys"),
        ("[security]\ntoken_hash_key = 'hidden'", "security.token_hash_key"),
        ("[logging]\nlevel = 'loud'", "logging.level"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_in_one_line(content: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(content)
    message = fault(file, {})
    assert named in message
    assert "hidden" not in message
    assert "aGlkZGVu" not in message


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("CHARGEGATE_SERVER__COLOUR", "1", "server.colour"),
        ("CHARGEGATE_SERVER__", "1", "SERVER__"),
        ("CHARGEGATE_CONFIG__FILE", "1", "config"),
        ("CHARGEGATE_TESTS__X", "1", "tests"),
        ("CHARGEGATE_TEST__X", "1", "test"),
        ("CHARGEGATE___PORT", "1", "CHARGEGATE___PORT"),
        ("CHARGEGATE_SERVER__PORT_FILE", "1", "server.port_file"),
        ("CHARGEGATE_DATA_DIR__X", "1", "data_dir.x"),
        ("CHARGEGATE_DATA_DIR", "a\udcffb", "CHARGEGATE_DATA_DIR"),
        ("CHARGEGATE_QUEUE__URL", "redis://\x1b[31m", "CHARGEGATE_QUEUE__URL"),
        ("CHARGEGATE_SECURITY__API_KEYS", "[" * 100_000, "SECURITY__API_KEYS"),
        ("CHARGEGATE_SERVER__PORT__X", "1", "server.port.x"),
        ("CHARGEGATE_SERVER__PORT", "eighty", "SERVER__PORT"),
        ("CHARGEGATE_SERVER__PORT", "", "SERVER__PORT"),
        ("CHARGEGATE_SERVER__PORT", "65536", "server.port"),
        ("CHARGEGATE_SERVER__PORT", "9" * 40, "server.port"),
        ("CHARGEGATE_CALLBACK__REQUIRE_HTTPS", "perhaps", "CALLBACK__REQUIRE_HTTPS"),
        ("CHARGEGATE_CALLBACK__SIGNING_SECRETS", "[hidden", "CALLBACK__SIGNING_SECRETS"),
        ("CHARGEGATE_CALLBACK__SIGNING_SECRETS", "hidden", "callback.signing_secrets"),
        ("CHARGEGATE_SECURITY__TOKEN_HASH_KEY", "hidden", "security.token_hash_key"),
        ("CHARGEGATE_LOGGING__LEVEL", "loud\nand clear", "logging.level"),
        ("CHARGEGATE_AUTHORIZATION__SIMULATED_LATENCY_MS", "1,x", "SIMULATED_LATENCY_MS"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named_in_one_line(name: str, text: str, named: str) -> None:
    message = fault(None, {name: text})
    assert named in message
    assert "hidden" not in message


def test_what_is_no_file_or_no_toml_is_named(tmp_path: Path) -> None:
    assert "missing.toml" in fault(tmp_path / "missing.toml", {})
    assert str(tmp_path) in fault(tmp_path, {})
    bad = tmp_path / "bad.toml"
    for content in (
        b"a = " + b"[" * 5000,
        b"a = " + b"9" * 5000,
        b"[server",
        b"a = ",
        b"\xff\xfe",
        b"a = 1\na = 2",
        b'a = "two\nlines"',
    ):
        bad.write_bytes(content)
        assert "bad.toml" in fault(bad, {})


MARGINS = ("\n", " ", "\t \r\n", "\u00a0", "\n\n")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("margin", MARGINS)
def test_white_space_around_a_value_is_dropped(key: str, margin: str, tmp_path: Path) -> None:
    def padded(value: Any) -> Any:
        return [padded(each) for each in value] if isinstance(value, list) else margin + value + margin

    value = KEYS[key]
    text = value if isinstance(value, str) else json.dumps(value)
    beside = {variable(other): KEYS[other] for other in BESIDE.get(key, ())}
    assert value_of(load(None, beside | {variable(key): margin + text + margin}), key) == value
    if isinstance(value, str) or (isinstance(value, list) and isinstance(value[0], str)):
        file = tmp_path / "c.toml"
        file.write_text(toml(key, json.dumps(padded(value))))
        assert value_of(load(f"{file}{margin}", beside), key) == value
    if isinstance(value, list) and isinstance(value[0], str):
        for written in (json.dumps(padded(value)), "\n".join(padded(value))):
            assert value_of(load(None, {variable(key): written}), key) == value


def test_every_url_and_every_secret_among_the_settings_is_known_as_one() -> None:
    """So that it is not shown, may be in a file, and is refused in the clear by the Helm chart."""
    assert {key for key in KEYS if key.endswith(("url", "endpoint", "uri", "dsn"))} == URL_KEYS
    secret = ("password", "token", "secret", "secrets", "encryption_keys", "api_keys", "hash_key")
    assert {key for key in KEYS if key.endswith(secret)} == SECRET_KEYS


@pytest.mark.parametrize("key", sorted(SECRET_KEYS | URL_KEYS))
def test_a_secret_may_be_in_a_file(key: str, tmp_path: Path) -> None:
    value, beside = KEYS[key], {variable(other): KEYS[other] for other in BESIDE.get(key, ())}
    file = tmp_path / "secret"
    text = value if isinstance(value, str) else "\n".join(value)
    link = tmp_path / "link"
    link.symlink_to(file)
    for content in (text, text + "\n", "\ufeff \r\n" + text + "\r\n"):
        file.write_text(content)
        for path in (f"{file}", f"{link}\n"):
            assert value_of(load(None, beside | {variable(key) + "_FILE": path}), key) == value
    message = fault(None, {variable(key) + "_FILE": str(file), variable(key): text})
    assert variable(key) + "_FILE" in message
    assert text not in message
    settings_file = tmp_path / "c.toml"
    settings_file.write_text(toml(key, json.dumps("" if isinstance(value, str) else [])))
    assert value_of(load(str(settings_file), beside | {variable(key) + "_FILE": str(file)}), key) == value


def test_a_secret_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "latin").write_bytes(b"\xff\xe9\xff")
    (tmp_path / "large").write_bytes(b"x" * 2_000_000)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to(tmp_path / "pipe")
    for name in ("missing", "empty", "latin", "large", "pipe", "to-pipe", ".", "/dev/zero", "/dev/tty", "a/b\tc"):
        message = fault(None, {"CHARGEGATE_SECURITY__TOKEN_HASH_KEY_FILE": str(tmp_path / name)})
        assert message.startswith("CHARGEGATE_SECURITY__TOKEN_HASH_KEY_FILE: ")
    assert "names no file" in fault(None, {"CHARGEGATE_SECURITY__TOKEN_HASH_KEY_FILE": " "})


@few_or_many(100, 20_000)
def test_any_text_is_a_value_or_one_line(examples: int) -> None:
    texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))

    def check(given_text: tuple[str, str]) -> None:
        key, text = given_text
        try:
            load(None, {variable(key): text})
        except ConfigError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right

    try_many(examples, st.tuples(st.sampled_from(sorted(KEYS)), texts), check)


toml_values = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["whsec_", "sqlite", "\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@few_or_many(200, 20_000)
def test_any_file_is_settings_or_one_line(tmp_path: Path, examples: int) -> None:
    file = tmp_path / "c.toml"
    keys = st.sampled_from(sorted(KEYS)) | st.text(max_size=9)

    def check(written: tuple[dict[str, Any], bytes]) -> None:
        values, garbage = written
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for content in (lines.encode(), lines.encode() + garbage, garbage):
            file.write_bytes(content)
            try:
                load(str(file), {})
            except ConfigError as error:
                assert "\n" not in str(error)  # noqa: PT017 - either outcome is right

    try_many(examples, st.tuples(st.dictionaries(keys, toml_values, max_size=4), st.binary()), check)


@pytest.mark.parametrize("left_out", [OF_A_DATABASE, OF_A_BUCKET])
def test_secrets_are_hidden_and_the_rest_is_shown(left_out: set[str]) -> None:
    """InfluxDB's URL goes with either of these."""
    kept = {key: value for key, value in KEYS.items() if key not in left_out}
    environ = {variable(key): value if isinstance(value, str) else json.dumps(value) for key, value in kept.items()}
    values = shown(load(None, environ))
    text = json.dumps(values)
    of_influx = {KEYS["audit.influx_password"], KEYS["audit.influx_token"]}
    for secret in {KEY, ACCESS, ACCESS.rpartition(":")[2], WEBHOOK} | of_influx:
        assert secret not in text
    assert values["callback"]["signing_secrets"] == ["***", "***"]
    assert values["security"]["token_hash_key"] == "***"
    assert values["server"] == {key: KEYS[f"server.{key}"] for key in values["server"]}
    unset = shown(load(None, {}))
    assert unset["security"] == {
        "api_keys": [],
        "allow_anonymous": False,
        "encryption_keys": [],
        "token_hash_key": "",
    }


INFLUX = {"CHARGEGATE_AUDIT__INFLUX_URL": "http://127.0.0.1:8086"}


@pytest.mark.parametrize(
    ("given_values", "named"),
    [
        ({}, "audit.influx_database"),
        ({"influx_database": "a", "influx_bucket": "b"}, "audit.influx_database"),
        ({"influx_database": "a", "influx_token": "t"}, "audit.influx_bucket"),
        ({"influx_database": "a", "influx_org": "o"}, "audit.influx_bucket"),
        ({"influx_bucket": "b", "influx_user": "u"}, "audit.influx_database"),
        ({"influx_database": "a", "influx_password": "p"}, "audit.influx_user"),
        ({"influx_bucket": "b", "influx_token": "a\nb"}, "audit.influx_token"),
        ({"influx_bucket": "b", "influx_token": "\u00fc"}, "audit.influx_token"),
        ({"influx_bucket": "b", "influx_url": "http://u:p@h"}, "audit.influx_url"),
        ({"influx_bucket": "b", "influx_url": "http://h?db=x"}, "audit.influx_url"),
        ({"influx_bucket": "b", "influx_url": "influx"}, "audit.influx_url"),
        ({"csv_shards": "0"}, "audit.csv_shards"),
    ],
)
def test_what_names_no_place_in_influxdb_is_refused(given_values: dict[str, str], named: str) -> None:
    environ = INFLUX | {variable(f"audit.{name}"): value for name, value in given_values.items()}
    assert named in fault(None, environ)


def test_credentials_in_a_url_are_hidden() -> None:
    settings_ = load(None, {"CHARGEGATE_AUTHORIZATION__URL": "http://user:hidden@authorizer.example:81/x?y"})
    assert shown(settings_)["authorization"]["url"] == "http://***@authorizer.example:81/x?y"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://u:hidden@h:1/0", "redis://***@h:1/0"),
        ("postgresql://u:hidden@h/d?listen_url=postgresql://u:hidden@h/d", "postgresql://***@h/d?listen_url=***"),
        (
            "kafka://h/t?sasl_password=hidden&ssl_key_pem=hidden&group=g",
            "kafka://h/t?sasl_password=***&ssl_key_pem=***&group=g",
        ),
        (
            "kafka://h/t?sasl.oauthbearer.config=hidden&ssl.key.passphrase=hidden",
            "kafka://h/t?sasl.oauthbearer.config=***&ssl.key.passphrase=***",
        ),
    ],
)
def test_credentials_of_a_queue_are_hidden(url: str, said: str) -> None:
    assert shown(load(None, {"CHARGEGATE_QUEUE__URL": url}))["queue"]["url"] == said


@pytest.mark.parametrize(
    "rest", ["u:hidden/hidden@h", "u:hidden#hidden@h", "u:hidden@h:hidden", "u:hidden\u2100@h", "[h"]
)
def test_a_url_that_is_malformed_is_told_without_it(rest: str) -> None:
    with pytest.raises(ConfigError, match=r"queue\.url: .*percent-encoded") as raised:
        load(None, {"CHARGEGATE_QUEUE__URL": f"redis://{rest}"})
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://user:hidden/hidden@x", "http://user:hidden@[x", "not a url", "//@"]
)
def test_showing_never_fails_and_never_tells(url: str) -> None:
    values = shown(load(None, {"CHARGEGATE_AUTHORIZATION__URL": url}))
    assert "hidden" not in json.dumps(values)


def test_settings_cannot_be_changed() -> None:
    settings_ = load(None, {})
    for section in (settings_, settings_.server, settings_.authorization.circuit_breaker):
        name = msgspec.structs.fields(typing.cast("Any", section))[0].name
        with pytest.raises(AttributeError):
            setattr(section, name, None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"allowed_hosts": "http://gate.example"}, "server.allowed_hosts: 'http://gate.example' is not a host name"),
        ({"allowed_hosts": "*"}, "server.allowed_hosts: "),
        ({"allowed_origins": "gate.example"}, "server.allowed_origins: 'gate.example' is not an origin"),
        ({"allowed_origins": "https://gate.example/path"}, "server.allowed_origins: "),
        ({"tls_certificate": "a.pem"}, "server.tls_key: is required, because server.tls_certificate is set"),
        ({"tls_key": "a.key"}, "server.tls_certificate: is required, because server.tls_key is set"),
        ({"tls_client_ca": "ca.pem"}, "server.tls_certificate: is required, because server.tls_client_ca is set"),
    ],
)
def test_the_rules_of_the_server_section(values: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {variable(f"server.{key}"): value for key, value in values.items()})
    assert str(caught.value).startswith(said)
