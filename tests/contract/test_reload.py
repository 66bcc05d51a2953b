"""SIGHUP: what is read again, what needs a restart, and that it never ends the process."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from certificates import Authority, Files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Service, Site

SECRETS = ["whsec_" + base64.b64encode(bytes([number]) * 24).decode() for number in range(2)]


def access_key() -> tuple[str, str]:
    """An administrator's key, and its line for the settings."""
    key = secrets.token_urlsafe(32)
    return key, f"admin:sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def events(service: Service, *names: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]
    return [event for event in found if event["event"].startswith(names)]


def reload(service: Service, eventually: Callable[..., Any]) -> dict[str, Any]:
    """Send SIGHUP, and wait for what the log says of it."""
    ends = ("reloaded", "not reloaded")
    before = len(events(service, *ends))
    assert service.process is not None
    service.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(events(service, *ends)) > before, 20, lambda: service.log)
    assert service.process.poll() is None, service.log
    return events(service, *ends)[before]


def status(service: Service, key: str) -> int:
    service.sign_in(key)
    return service.client.get("/api/v1/decisions").status_code


def test_access_keys(service: Callable[..., Service], eventually: Callable[..., Any]) -> None:
    (old, old_line), (new, new_line) = access_key(), access_key()
    running = service(security__api_keys=[old_line])
    assert (status(running, old), status(running, new)) == (200, 401)
    running.configure(**{"security.api_keys": [old_line, new_line]})
    assert reload(running, eventually)["changed"] == ["security.api_keys"]
    assert (status(running, old), status(running, new)) == (200, 200)
    running.configure(**{"security.api_keys": [new_line]})
    reload(running, eventually)
    assert (status(running, old), status(running, new)) == (401, 200)
    assert old_line.rpartition(":")[2] not in running.log


def test_the_last_access_key_is_not_taken_away(service: Callable[..., Service], eventually: Callable[..., Any]) -> None:
    """Without any, everybody would be an administrator."""
    key, line = access_key()
    running = service(security__api_keys=[line])
    running.configure()
    assert "security.api_keys" in reload(running, eventually)["why"]
    assert (status(running, key), status(running, "")) == (200, 401)


def signed_with(service: Service, receiver: Site, eventually: Callable[..., Any]) -> list[int]:
    """The numbers of the secrets that signed a callback."""
    url = receiver.url()
    service.ask(url)
    (call,) = eventually(lambda: receiver.calls_to(url), 20, lambda: service.log)
    signed = f"{call.headers['webhook-id']}.{call.headers['webhook-timestamp']}.".encode() + call.body
    given = call.headers.get("webhook-signature", "").split()
    return [
        number
        for number, secret in enumerate(SECRETS)
        for digest in [hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, "sha256")]
        if f"v1,{base64.b64encode(digest).decode()}" in given
    ]


def test_signing_secrets(service: Callable[..., Service], receiver: Site, eventually: Callable[..., Any]) -> None:
    running = service(callback__signing_secrets=SECRETS[:1])
    assert signed_with(running, receiver, eventually) == [0]
    running.configure(**{"callback.signing_secrets": SECRETS})
    reload(running, eventually)
    assert signed_with(running, receiver, eventually) == [0, 1]
    running.configure(**{"callback.signing_secrets": SECRETS[1:]})
    reload(running, eventually)
    assert signed_with(running, receiver, eventually) == [1]
    assert not any(secret in running.log for secret in SECRETS)


def decided(service: Service, receiver: Site, token: str) -> str:
    asked = service.ask(receiver.url(), driver_token=token)
    return str(service.finished(asked)["decision"]["status"])


def test_the_access_list_file(service: Callable[..., Service], receiver: Site, eventually: Callable[..., Any]) -> None:
    running = service(started=False, authorization__acl_file="acl.csv")
    file = running.folder / "acl.csv"
    first, second = "first-driver.0123456789", "second-driver.0123456789"
    file.write_text(f"driver_token,blocked\n{first},false\n")
    running.start()
    assert [decided(running, receiver, token) for token in (first, second)] == ["allowed", "not_allowed"]
    file.write_text(f"driver_token,blocked\n{first},true\n{second},false\n")
    reload(running, eventually)
    # A running service follows a change within a second.
    eventually(lambda: decided(running, receiver, first) == "not_allowed")
    eventually(lambda: decided(running, receiver, second) == "allowed")
    assert first not in running.log


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("chargegate.toml", "[server\n", "chargegate.toml"),
        ("chargegate.toml", None, "chargegate.toml"),
        ("chargegate.toml", "\xff\xfe\x00", "chargegate.toml"),
        ("chargegate.toml", "security.api_keys = ['nonsense']\n", "security.api_keys"),
        ("chargegate.toml", "callback.signing_secrets = ['nonsense']\n", "callback.signing_secrets"),
        ("chargegate.toml", "server.prot = 1\n", "server.prot"),
        ("acl.csv", "driver_token,blocked\nshort,maybe\n", "authorization.acl_file"),
        ("acl.csv", None, "authorization.acl_file"),
    ],
)
def test_what_cannot_be_read_leaves_all_as_it_was(
    service: Callable[..., Service],
    receiver: Site,
    eventually: Callable[..., Any],
    name: str,
    content: str | None,
    said: str,
) -> None:
    token = "known-driver.0123456789"
    (old, old_line), (_, new_line) = access_key(), access_key()
    running = service(started=False)
    acl = running.folder / "acl.csv"
    acl.write_text(f"driver_token\n{token}\n")
    given = {"authorization.acl_file": "acl.csv", "callback.signing_secrets": SECRETS[:1]}
    running.configure(**given, **{"security.api_keys": [old_line]})
    running.sign_in(old)
    running.start()
    running.configure(**given, **{"security.api_keys": [new_line]})  # which is right, but must not be taken up alone
    file = running.folder / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content.encode("latin-1"))
    event = reload(running, eventually)
    assert event["event"].startswith("not reloaded")
    assert event["level"] == "error"
    assert said in event["why"]
    assert "\n" not in event["why"]
    assert "Traceback" not in running.log
    assert status(running, old) == 200
    assert signed_with(running, receiver, eventually) == [0]
    assert decided(running, receiver, token) == "allowed"


def test_other_changes_need_a_restart(service: Callable[..., Service], eventually: Callable[..., Any]) -> None:
    running = service()
    running.configure(**{"queue.max_size": 5, "callback.circuit.failure_threshold": 9, "logging.level": "error"})
    reload(running, eventually)
    (told,) = eventually(lambda: events(running, "these changes need a restart"))
    assert set(told["keys"]) == {"queue.max_size", "callback.circuit.failure_threshold", "logging.level"}
    assert reload(running, eventually)["changed"] == []
    eventually(lambda: len(events(running, "these changes need a restart")) == 2)  # they are still to come


def test_many_at_once_while_requests_come_in(
    service: Callable[..., Service], receiver: Site, eventually: Callable[..., Any]
) -> None:
    running = service()
    assert running.process is not None
    asked = []
    for number in range(100):
        running.process.send_signal(signal.SIGHUP)
        if number % 4 == 0:
            asked.append(running.ask(receiver.url()))
    assert {running.finished(each)["status"] for each in asked} == {"COMPLETED"}
    eventually(lambda: events(running, "reloaded"))
    assert running.stop() == 0


def test_it_does_not_end_a_process_that_starts_or_drains(
    service: Callable[..., Service], site: Callable[..., Site], reply: Any, eventually: Callable[..., Any]
) -> None:
    running = service(started=False, authorization__cache_ttl_ms=0)
    process = running.spawn()

    def ready() -> bool:
        assert process.poll() is None, running.log
        if "event" in running.log:  # from the first sign of life on
            process.send_signal(signal.SIGHUP)
        return running.ready() == 200

    eventually(ready, 30)
    slow = site(lambda _call: reply(how="held"))
    asked = running.ask(slow.url("/held"))
    eventually(lambda: slow.calls)
    running.terminate()
    eventually(lambda: events(running, "draining"))
    process.send_signal(signal.SIGHUP)
    slow.release("/held")
    assert running.ended() == 0, running.log
    assert asked.request_id


def test_the_first_access_keys(service: Callable[..., Service], eventually: Callable[..., Any]) -> None:
    """From then on the host says nothing, and the document tells of keys."""
    key, line = access_key()
    running = service()
    running.configure(**{"security.api_keys": [line]})
    reload(running, eventually)
    assert (status(running, ""), status(running, key)) == (401, 200)
    assert running.client.get("/api/v1/decisions", headers={"host": "gate.example"}).status_code == 200
    assert "securitySchemes" in running.client.get("/openapi.json").json()["components"]


LIVE = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Https:
    """A service with TLS, whose files are copies, so that others can be put in their place."""

    def __init__(self, service: Callable[..., Service], eventually: Callable[..., Any], folder: Path) -> None:
        self.authority, self.other = Authority(folder, "authority"), Authority(folder, "other")
        self.first, self.second = self.authority.sign("first"), self.authority.sign("second")
        self.service = service(started=False)
        self.names = {f"server.tls_{name}": f"{name}.pem" for name in ("certificate", "key")}
        self.put(self.first)
        self.service.configure(**self.names)
        process = self.service.spawn()
        eventually(lambda: process.poll() is not None or events(self.service, "ready"), 30, lambda: self.service.log)
        assert process.poll() is None, self.service.log

    def file(self, name: str) -> Path:
        return self.service.folder / f"{name}.pem"

    def put(self, files: Files) -> None:
        """Copy beside and rename, as who renews certificates does."""
        for name, content in zip(("certificate", "key"), files, strict=True):
            new = self.service.folder / "new"
            shutil.copy(content, new)
            new.replace(self.file(name))

    @contextlib.contextmanager
    def connected(self, own: Files | None = None) -> Iterator[ssl.SSLSocket]:
        with (
            socket.create_connection(("127.0.0.1", self.service.port), timeout=20) as plain,
            self.authority.context(own).wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            yield tls

    def shown(self) -> str:
        """Which certificate a new connection sees."""
        with self.connected() as connection:
            seen = connection.getpeercert(binary_form=True)
            assert answered(connection)
        assert seen is not None
        for name, files in (("first", self.first), ("second", self.second)):
            if ssl.PEM_cert_to_DER_cert(Path(files.certificate).read_text()) == seen:
                return name
        return "another"


def answered(connection: ssl.SSLSocket) -> bool:
    try:
        connection.sendall(LIVE)
        return connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


@pytest.fixture
def https(service: Callable[..., Service], eventually: Callable[..., Any], tmp_path: Path) -> Https:
    return Https(service, eventually, tmp_path)


def test_certificates(https: Https, eventually: Callable[..., Any]) -> None:
    assert https.shown() == "first"
    with https.connected() as before:
        assert answered(before)
        https.put(https.second)  # under the same names
        reload(https.service, eventually)
        assert https.shown() == "second"
        assert answered(before)  # a connection goes on as it began
        https.service.configure(
            **{"server.tls_certificate": https.first.certificate, "server.tls_key": https.first.key}
        )
        changed = reload(https.service, eventually)["changed"]
        assert set(changed) == {"server.tls_certificate", "server.tls_key"}
        assert https.shown() == "first"
        assert answered(before)
    assert not events(https.service, "these changes need a restart")


def test_the_metrics_tell_when_the_new_certificate_expires(https: Https, eventually: Callable[..., Any]) -> None:
    def days_left() -> float:
        with httpx.Client(verify=https.authority.context(), trust_env=False) as client:
            text = client.get(f"https://127.0.0.1:{https.service.port}/metrics").text
        (end,) = re.findall(r"^tls_certificate_expiration_timestamp_seconds (\S+)$", text, re.MULTILINE)
        return (float(end) - time.time()) / 86400

    assert 0.9 < days_left() <= 1
    https.put(https.authority.sign("later", days=9))
    reload(https.service, eventually)
    assert 8.9 < days_left() <= 9


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("certificate", "empty", "server.tls_certificate"),
        ("certificate", "missing", "server.tls_certificate"),
        ("certificate", "folder", "server.tls_certificate"),
        ("certificate", "fifo", "server.tls_certificate"),
        ("certificate", "cut off", "server.tls_certificate"),
        ("certificate", "another's", "server.tls_key"),
        ("key", "empty", "server.tls_key"),
        ("key", "missing", "server.tls_key"),
        ("key", "fifo", "server.tls_key"),
        ("key", "another's", "server.tls_key"),
        ("key", "with a password", "server.tls_key"),
        ("client_ca", "empty", "server.tls_client_ca"),
        ("client_ca", "missing", "server.tls_client_ca"),
        ("client_ca", "fifo", "server.tls_client_ca"),
    ],
)
def test_a_broken_certificate_leaves_the_old_one(
    https: Https, eventually: Callable[..., Any], name: str, kind: str, said: str
) -> None:
    gate, file = https.service, https.file(name)
    if name == "client_ca":
        gate.configure(**https.names, **{"server.tls_client_ca": file.name})
    else:
        file.unlink()
    if kind == "empty":
        file.touch()
    elif kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "cut off":
        file.write_bytes(Path(https.second.certificate).read_bytes()[:200])
    elif kind == "another's":
        shutil.copy(getattr(https.second, name), file)
    elif kind == "with a password":
        shutil.copy(https.authority.sign("secret", b"password").key, file)
    event = reload(gate, eventually)
    assert event["event"].startswith("not reloaded")
    assert event["why"].startswith(f"{said}: ")
    assert "\n" not in event["why"]
    assert https.shown() == "first"
    if file.is_dir():
        file.rmdir()
    else:
        file.unlink(missing_ok=True)
    https.put(https.second)
    gate.configure(**https.names)
    reload(gate, eventually)
    assert https.shown() == "second"
    assert "Traceback" not in gate.log


def test_the_authority_of_clients(https: Https, eventually: Callable[..., Any]) -> None:
    ours, theirs = https.authority.sign("client"), https.other.sign("their-client")

    def taken() -> list[bool]:
        found = []
        for own in (None, ours, theirs):
            try:
                with https.connected(own) as connection:
                    found.append(answered(connection))
            except OSError:
                found.append(False)
        return found

    assert taken() == [True, True, True]  # nobody is asked for a certificate
    for authority, expected in ((https.authority, [False, True, False]), (https.other, [False, False, True])):
        https.service.configure(**https.names, **{"server.tls_client_ca": authority.file})
        assert reload(https.service, eventually)["changed"] == ["server.tls_client_ca"]
        assert taken() == expected
    https.service.configure(**https.names)
    reload(https.service, eventually)
    assert taken() == [True, True, True]


def test_certificates_are_renewed_under_load(https: Https, eventually: Callable[..., Any]) -> None:
    """Each new connection sees a whole certificate, an old or a new one."""
    assert https.service.process is not None
    for number in range(60):
        https.put((https.second, https.first)[number % 2])
        https.service.process.send_signal(signal.SIGHUP)
        assert https.shown() in {"first", "second"}
    https.put(https.second)
    reload(https.service, eventually)
    eventually(lambda: https.shown() == "second")
    assert https.service.stop() == 0, https.service.log
    assert "Traceback" not in https.service.log


def test_to_begin_or_to_end_https_needs_a_restart(
    https: Https, service: Callable[..., Service], eventually: Callable[..., Any]
) -> None:
    https.service.configure()
    reload(https.service, eventually)
    (told,) = eventually(lambda: events(https.service, "these changes need a restart"))
    assert set(told["keys"]) == {"server.tls_certificate", "server.tls_key"}
    assert https.shown() == "first"
    plain = service()
    plain.configure(**{"server.tls_certificate": https.first.certificate, "server.tls_key": https.first.key})
    reload(plain, eventually)
    (told,) = eventually(lambda: events(plain, "these changes need a restart"))
    assert set(told["keys"]) == {"server.tls_certificate", "server.tls_key"}
    assert plain.ready() == 200


def test_it_does_not_end_a_process_that_ends(service: Callable[..., Service]) -> None:
    """To the last moment: the exit code is the one of an ordered stop."""
    running = service()
    process = running.process
    assert process is not None
    running.terminate()
    end = time.monotonic() + 40
    while process.poll() is None:
        process.send_signal(signal.SIGHUP)
        assert time.monotonic() < end, running.log
    assert process.returncode == 0, running.log
