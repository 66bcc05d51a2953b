"""What keeps the service from starting is one line that says what to change, and exit 1."""

from __future__ import annotations

import json
import socket
import sqlite3
import stat
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from trying import first_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

TOKEN = "driver-token.0123456789"


def refused(service: Service, *words: str) -> None:
    """It does not start, and the only line that is no log event holds these words."""
    service.spawn()
    assert service.ended() == 1, service.log
    (line,) = [line for line in service.log.splitlines() if not is_event(line)]
    for word in words:
        assert word in line
    assert "Traceback" not in service.log
    assert TOKEN not in service.log


def is_event(line: str) -> bool:
    try:
        return "event" in json.loads(line)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("key", "value", "said"),
    first_of(
        9,
        [
            ("server.host", "0.0.0.0", "security.api_keys"),
            ("server.host", "no-such-host.invalid", "server.host"),
            ("data_dir", "/proc/no-such-place", "data_dir"),
            ("audit.csv_path", "no/such/folder/audit.log", "audit.csv_path"),
            ("authorization.acl_file", "no-such-file.csv", "authorization.acl_file"),
            ("server.prot", 1, "server.prot"),
            ("sever.port", 1, "sever"),
            ("queue.max_size", 0, "queue.max_size"),
            ("queue.max_size", "many", "queue.max_size"),
            ("queue.url", "carrier-pigeon://", "queue.url"),
            ("database.url", "oracle://", "database.url"),
            ("cache.url", "x", "cache.url"),
            ("server.port", 65536, "server.port"),
            ("authorization.backend", "oracle", "authorization.backend"),
            ("authorization.backend", "http", "authorization.url"),
            ("authorization.circuit_breaker.failure_rate", 1.5, "authorization.circuit_breaker.failure_rate"),
            ("authorization.simulated_latency_ms", [200, 50], "authorization.simulated_latency_ms"),
            ("callback.max_attempts", 0, "callback.max_attempts"),
            ("callback.timeout_ms", 1.5, "callback.timeout_ms"),
            ("callback.allowed_networks", ["loopback"], "callback.allowed_networks"),
            ("callback.signing_secrets", ["secret"], "callback.signing_secrets"),
            ("security.api_keys", ["secret"], "security.api_keys"),
            ("security.encryption_keys", ["c2hvcnQ="], "security.encryption_keys"),
            ("server.host", "::", "security.api_keys"),
            ("data_dir", "chargegate.toml", "data_dir"),
        ],
    ),
)
def test_a_wrong_setting(service: Callable[..., Service], key: str, value: Any, said: str) -> None:
    wrong = service(started=False)
    wrong.configure(**{key: value})
    refused(wrong, said)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CHARGEGATE_QUEUE__MAXSIZE", "5", "CHARGEGATE_QUEUE__MAXSIZE"),
        ("CHARGEGATE_NOTHING__AT_ALL", "5", "CHARGEGATE_NOTHING__AT_ALL"),
        ("CHARGEGATE_QUEUE__", "5", "CHARGEGATE_QUEUE__"),
        ("CHARGEGATE_QUEUE__MAX_SIZE", "many", "QUEUE__MAX_SIZE"),
        ("CHARGEGATE_QUEUE__MAX_SIZE", "-1", "queue.max_size"),
    ],
)
def test_a_wrong_variable(service: Callable[..., Service], name: str, value: str, said: str) -> None:
    refused(service(started=False, environ={name: value}), said)


@pytest.mark.parametrize("content", ["server.port = ", "[server\n", "server = 5\n", "\ufeff\x00"])
def test_a_file_that_is_no_configuration(service: Callable[..., Service], content: str) -> None:
    wrong = service(started=False)
    (wrong.folder / "chargegate.toml").write_text(content)
    refused(wrong)


def test_no_file(service: Callable[..., Service]) -> None:
    wrong = service(started=False)
    (wrong.folder / "chargegate.toml").unlink()
    refused(wrong, "chargegate.toml")


def test_a_port_that_is_taken(service: Callable[..., Service], receiver: Site) -> None:
    wrong = service(started=False)
    wrong.configure(**{"server.port": receiver.port})
    refused(wrong, "server.port", str(receiver.port))


def test_a_second_process_on_the_same_database(service: Callable[..., Service], receiver: Site) -> None:
    first = service()
    second = service(started=False, data_dir=str(first.data))
    assert first.process is not None
    refused(second, str(first.process.pid))
    assert first.finished(first.ask(receiver.url()))["status"] == "COMPLETED"
    first.kill()
    second.log_file.unlink()
    assert second.start().ready() == 200


@pytest.mark.parametrize(
    ("lines", "number", "said"),
    first_of(
        3,
        [
            (["driver_token", TOKEN, "short"], 3, "driver_token"),
            (["driver_token,blocked", f"{TOKEN},perhaps"], 2, "blocked"),
            (["driver_token,valid_until", "", f"{TOKEN},tomorrow"], 3, "valid_until"),
            (["driver_token,allowed_stations", f"{TOKEN},here"], 2, "allowed_stations"),
            (["driver_token", f"{TOKEN},more"], 2, "fields"),
            (["driver_token,colour", TOKEN], 1, "colour"),
            ([TOKEN], 1, "driver_token"),
            (["driver_token", f'"{TOKEN}'], 2, "CSV"),
        ],
    ),
)
def test_a_malformed_line_of_the_access_list(
    service: Callable[..., Service], lines: list[str], number: int, said: str
) -> None:
    wrong = service(started=False, authorization__acl_file="list.csv")
    (wrong.folder / "list.csv").write_text("\n".join(lines))
    refused(wrong, "list.csv", f"line {number}", said)


def test_an_access_list_is_read_at_the_start(service: Callable[..., Service], receiver: Site) -> None:
    station = "123e4567-e89b-12d3-a456-426614174000"
    running = service(started=False, authorization__acl_file="list.csv")
    (running.folder / "list.csv").write_text(
        "driver_token,blocked,valid_from,valid_until,allowed_stations,denied_stations,note\n"
        f"{TOKEN}-1,,,,,,\n{TOKEN}-2,true,,,,,a note\n{TOKEN}-3,,,,{station};{station.replace('1', '2')},,\n"
        f"{TOKEN}-4,,,2020-01-01T00:00:00Z,,,\n{TOKEN}-5,,,,,{station},\n"
    )
    running.start()
    reasons = [
        running.finished(running.ask(receiver.url(), station_id=station, driver_token=f"{TOKEN}-{number}"))["decision"]
        for number in range(1, 7)
    ]
    assert [decision["reason"] for decision in reasons] == [
        *("", "token_blocked", "", "token_expired", "not_at_this_location", "driver_not_in_acl")
    ]


def test_keys_that_anyone_may_read(service: Callable[..., Service]) -> None:
    running = service()
    (keys,) = [path for path in running.data.iterdir() if path.suffix == ".json"]
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert running.stop() == 0
    keys.chmod(0o644)
    running.log_file.unlink()
    refused(running, keys.name)


def test_keys_that_are_lost(service: Callable[..., Service], receiver: Site) -> None:
    """Without them no driver would be found, and nothing that waits could be opened."""
    running = service()
    running.finished(running.ask(receiver.url()))
    assert running.stop() == 0
    (keys,) = [path for path in running.data.iterdir() if path.suffix == ".json"]
    keys.unlink()
    running.log_file.unlink()
    refused(running, "key")


def test_an_open_door_on_purpose(service: Callable[..., Service]) -> None:
    assert service(server__host="0.0.0.0", security__allow_anonymous=True).ready() == 200


def test_a_damaged_page_of_the_queue(service: Callable[..., Service], receiver: Site) -> None:
    damaged = service()
    damaged.finished(damaged.ask(receiver.url()))
    assert damaged.stop() == 0
    file = damaged.data / "chargegate.db"
    with closing(sqlite3.connect(file)) as database:
        (size,) = database.execute("PRAGMA page_size").fetchone()
        pages = database.execute("SELECT rootpage FROM sqlite_master WHERE tbl_name = 'queue'").fetchall()
    with file.open("r+b") as content:
        for (page,) in pages:
            content.seek((page - 1) * size)
            content.write(b"\xff" * size)
    damaged.log_file.unlink()
    refused(damaged, "data_dir", "chargegate.db", "malformed")


def test_an_audit_log_that_cannot_be_read_back(service: Callable[..., Service], command: str) -> None:
    wrong = service(started=False, audit__csv_path="/dev/stderr")
    serve = [command, "serve"]
    ended = subprocess.run(serve, cwd=wrong.folder, capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in ended.stderr.splitlines() if not (is_event(line) or line.startswith("timestamp,"))]
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(lines) == 1
    assert "audit.csv_path: /dev/stderr" in lines[0]


def test_a_restart_undoes_no_change_of_the_access_list(service: Callable[..., Service], receiver: Site) -> None:
    running = service(started=False, authorization__acl_file="list.csv")
    file = running.folder / "list.csv"
    file.write_text(f"driver_token\n{TOKEN}-1\n{TOKEN}-2\n")

    def reason(number: int) -> str:
        asked = running.ask(receiver.url(), driver_token=f"{TOKEN}-{number}")
        return str(running.finished(asked)["decision"]["reason"])

    running.start()
    entry = {"driver_token": f"{TOKEN}-1", "blocked": True}
    assert running.client.put("/api/v1/acl", json=entry).status_code == 200
    running.restart()
    assert (reason(1), reason(2)) == ("token_blocked", "")
    assert running.log.count("access list file read") == 1
    assert running.log.count("access list file unchanged") == 1
    file.write_text(f"driver_token\n{TOKEN}-1\n{TOKEN}-3\n")
    running.restart()
    assert (reason(1), reason(2), reason(3)) == ("", "", "")
    assert running.log.count("access list file read") == 2
    assert TOKEN not in running.log


def test_an_address_in_brackets(service: Callable[..., Service], eventually: Callable[..., Any]) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    running = service(started=False, server__host="::1")
    process = running.spawn()
    eventually(lambda: process.poll() is not None or f"http://[::1]:{running.port}" in running.log)
    running.url = f"http://[::1]:{running.port}"
    eventually(lambda: running.ready() == 200)
    assert running.stop() == 0
