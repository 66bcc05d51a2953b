"""SIGHUP: what is read again, what needs a restart, and that it never ends the process."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

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
