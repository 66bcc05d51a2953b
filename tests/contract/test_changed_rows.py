"""Rows that somebody with access to the database changed: what was sealed there sends no token elsewhere, and turns no
refusal into an ``allowed``."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from outside import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Asked, Reply, Service, Site

STATION, OTHER = "0a1b2c3d-0000-4000-8000-00000000000a", "0a1b2c3d-0000-4000-8000-00000000000b"


def rows(service: Service, statement: str, *values: Any) -> list[Any]:
    """Run a statement on the service's database, as any program on the machine could."""
    with contextlib.closing(sqlite3.connect(service.data / "chargegate.db", timeout=20)) as database, database:
        return database.execute(statement, values).fetchall()


def flip(body: bytes, place: int) -> bytes:
    changed = bytearray(body)
    changed[place] ^= 1
    return bytes(changed)


def waiting(
    service: Callable[..., Service], authorizer: Site, reply: type[Reply], url: str, eventually: Callable[..., Any]
) -> tuple[Service, Asked]:
    """A service that was killed while it held a request for a driver who may charge at ``OTHER``, and asks at
    ``STATION``."""
    caller = service(authorization__backend="http", authorization__url=authorizer.url("/decide"))
    token = caller.allow(denied_stations=[STATION])
    authorizer.plan(token, reply(how="held"))
    asked = caller.ask(url, station_id=STATION, driver_token=token)
    eventually(lambda: any(token.encode() in call.body for call in authorizer.calls))
    caller.kill()
    caller.configure(**{"authorization.backend": "acl"})
    return caller, asked


CHANGES = {
    "station_id": "UPDATE queue SET station_id = '" + OTHER + "'",
    "spelling of station_id": "UPDATE queue SET station_id = upper(station_id)",
    "accepted_at": "UPDATE queue SET accepted_at = accepted_at + 1",
    "request_id": "UPDATE queue SET request_id = '0198c0de-0000-7000-8000-000000000001'",
    "station and version": "UPDATE queue SET station_id = '"
    + OTHER
    + "', body = CAST(x'01' || substr(body, 2) AS BLOB)",
    "version": "UPDATE queue SET body = CAST(x'01' || substr(body, 2) AS BLOB)",
    "type of body": "UPDATE queue SET body = CAST(body AS TEXT) || 'x'",
    "text for a body": "UPDATE queue SET body = 'x'",
    "type of station_id": "UPDATE queue SET station_id = CAST(station_id AS BLOB) || x'ff'",
    "text that is not UTF-8": "UPDATE queue SET station_id = CAST(x'ff' AS TEXT)",
    "text for a time": "UPDATE queue SET accepted_at = 'soon'",
    "a time before all": "UPDATE queue SET accepted_at = -1",
    "length": "UPDATE queue SET body = substr(body, 1, length(body) - 1)",
    "nothing left": "UPDATE queue SET body = x''",
}


FLIPPED = (5, 16, 17, 40, -1)  # places in the body


class Changed(NamedTuple):
    """A request whose row was changed. ``request_id`` is the row's now."""

    asked: Asked
    request_id: str


@pytest.fixture(scope="module")
def changed(
    shared_service: Callable[..., Service], authorizer: Site, receiver: Site, reply: type[Reply]
) -> tuple[Service, dict[str | int, Changed]]:
    """A service that was killed while it held a request for each change, and was started again after the changes."""
    changes = [*CHANGES, *FLIPPED]
    caller = shared_service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        queue__consumer_concurrency=2 * len(changes),
    )
    token = caller.allow(denied_stations=[STATION])
    authorizer.plan(token, reply(how="held"))
    asked = {change: caller.ask(receiver.url(), station_id=STATION, driver_token=token) for change in changes}
    eventually(lambda: len(authorizer.calls_to(token)) == len(changes))
    caller.kill()
    caller.configure(**{"authorization.backend": "acl"})
    found = {}
    for change, each in asked.items():
        [(number, body)] = rows(caller, "SELECT seq, body FROM queue WHERE request_id = ?", each.request_id)
        if isinstance(change, str):
            rows(caller, f"{CHANGES[change]} WHERE seq = ?", number)
        else:
            rows(caller, "UPDATE queue SET body = ? WHERE seq = ?", flip(body, change), number)
        [(request_id,)] = rows(caller, "SELECT request_id FROM queue WHERE seq = ?", number)
        found[change] = Changed(each, request_id)
    return caller.start(), found


@pytest.mark.parametrize("change", [*CHANGES, *FLIPPED])
def test_a_changed_row_of_the_queue_is_invalid(
    changed: tuple[Service, dict[str | int, Changed]], receiver: Site, change: str | int
) -> None:
    caller, (asked, request_id) = changed[0], changed[1][change]
    ended = caller.finished(asked._replace(request_id=request_id))
    assert (ended["status"], ended["decision"]["status"]) == ("FAILED", "invalid")
    assert ended["decision"]["reason"] == "malformed_request"
    audited = [(status, reason) for audited_id, status, reason in caller.audit_rows() if audited_id == request_id]
    assert audited == [("invalid", "malformed_request")]
    assert not receiver.calls_to(asked.callback_url)
    eventually(lambda: request_id in caller.log)
    assert asked.driver_token not in caller.log
    assert caller.client.get("/api/v1/dead-letters").json()["items"] == []


@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_form_or_a_key_that_is_not_known_stops_the_start(
    service: Callable[..., Service],
    authorizer: Site,
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
    place: int,
) -> None:
    """It may be of another release, or its key may be missing. Nothing is decided until that is clear."""
    url = receiver.url()
    caller, asked = waiting(service, authorizer, reply, url, eventually)
    [(body,)] = rows(caller, "SELECT body FROM queue")
    before = caller.log
    rows(caller, "UPDATE queue SET body = ?", flip(body, place) if place else b"\x07" + body[1:])
    caller.spawn()
    assert caller.ended() == 1
    said = caller.log.removeprefix(before).splitlines()[-1]
    assert said.startswith("chargegate: ")
    assert "waiting requests" in said
    rows(caller, "UPDATE queue SET body = ?", body)
    caller.start()
    assert caller.finished(asked)["decision"]["status"] == "not_allowed"


def test_a_row_that_was_not_changed_gets_its_decision(
    service: Callable[..., Service],
    authorizer: Site,
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    url = receiver.url()
    caller, asked = waiting(service, authorizer, reply, url, eventually)
    caller.start()
    assert caller.finished(asked)["decision"]["status"] == "not_allowed"
    assert [call.json["status"] for call in receiver.calls_to(url)] == ["not_allowed"]


def test_bodies_of_two_rows_do_not_change_places(
    service: Callable[..., Service],
    authorizer: Site,
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    url = receiver.url()
    caller, asked = waiting(service, authorizer, reply, url, eventually)
    [(number, body)] = rows(caller, "SELECT seq, body FROM queue")
    other = str(uuid.uuid4())
    rows(
        caller,
        "INSERT INTO queue (request_id, station_id, accepted_at, body) SELECT ?, ?, accepted_at, ? FROM queue",
        *(other, OTHER, body),
    )
    rows(caller, "DELETE FROM queue WHERE seq = ?", number)
    caller.start()
    assert caller.finished(asked._replace(request_id=other))["decision"]["status"] == "invalid"
    assert not receiver.calls_to(url)


def replay_by_hand(command: str, service: Service, asked: Asked) -> subprocess.CompletedProcess[str]:
    arguments = ("dead-letters", "replay", asked.request_id, "--config", "chargegate.toml")
    return subprocess.run([command, *arguments], cwd=service.folder, capture_output=True, text=True, check=False)


def letters(service: Service) -> set[str]:
    return {item["request_id"] for item in service.client.get("/api/v1/dead-letters").json()["items"]}


LETTER_CHANGES = {
    "station_id": "UPDATE charging_requests SET station_id = '" + OTHER + "' WHERE request_id = ?",
    "token": "UPDATE charging_requests SET driver_token_hash = '0123456789abcdef' WHERE request_id = ?",
    "client": "UPDATE charging_requests SET client = 'somebody' WHERE request_id = ?",
    "no client": "UPDATE charging_requests SET client = '' WHERE request_id = ?",
    "version": "UPDATE charging_requests SET sealed = CAST(x'01' || substr(sealed, 2) AS BLOB) WHERE request_id = ?",
    "length": "UPDATE charging_requests SET sealed = substr(sealed, 1, 40) WHERE request_id = ?",
    "a letter's URL": "UPDATE charging_requests SET sealed = (SELECT sealed FROM charging_requests o"
    " WHERE o.request_id != charging_requests.request_id AND o.sealed NOTNULL) WHERE request_id = ?",
    "status": "UPDATE authorization_audit SET status = 'allowed' WHERE request_id = ?",
    "type": "UPDATE charging_requests SET sealed = CAST(sealed AS TEXT) || 'x' WHERE request_id = ?",
    "reason": "UPDATE authorization_audit SET reason = '' WHERE request_id = ?",
}


UNCHANGED = ""


@pytest.fixture(scope="module", params=["running", "stopped"])
def letter_of(
    request: pytest.FixtureRequest, shared_service: Callable[..., Service], receiver: Site, reply: type[Reply]
) -> tuple[Service, dict[str, Asked]]:
    """A dead letter for each change, and one that is unchanged, of a service that ran or was stopped meanwhile."""
    caller = shared_service(callback__retry_delay_ms=1)
    urls = {change: receiver.planned(*[reply(500)] * 3, reply()) for change in (*LETTER_CHANGES, UNCHANGED)}
    asked = {change: caller.ask(url, station_id=STATION) for change, url in urls.items()}
    for each in asked.values():
        assert caller.finished(each)["status"] == "FAILED"
    assert letters(caller) == {each.request_id for each in asked.values()}
    if request.param == "stopped":
        assert caller.stop() == 0
    for change, statement in LETTER_CHANGES.items():
        rows(caller, statement, asked[change].request_id)
    if request.param == "stopped":
        caller.start()
    return caller, asked


@pytest.mark.parametrize("change", LETTER_CHANGES)
def test_a_changed_dead_letter_is_not_sent(
    letter_of: tuple[Service, dict[str, Asked]], receiver: Site, command: str, change: str
) -> None:
    caller, asked = letter_of[0], letter_of[1][change]
    one = caller.client.post(f"/api/v1/dead-letters/{asked.request_id}/replay")
    assert (one.status_code, one.json()["status"]) == (404, "not_found")
    by_hand = replay_by_hand(command, caller, asked)
    assert (by_hand.returncode, by_hand.stdout) == (1, "")
    assert by_hand.stderr.count("\n") == 1
    assert [call.json["status"] for call in receiver.calls_to(asked.callback_url)] == ["not_allowed"] * 3
    assert asked.request_id in letters(caller)
    assert not [text for text in (caller.log, one.text, by_hand.stderr) if asked.driver_token in text]


def test_of_all_dead_letters_the_changed_ones_are_not_sent(
    letter_of: tuple[Service, dict[str, Asked]], receiver: Site
) -> None:
    caller, asked = letter_of
    everything = caller.client.post("/api/v1/dead-letters/replay")
    assert (everything.status_code, everything.json()["replayed"]) == (202, 1)
    sent = asked[UNCHANGED]
    eventually(lambda: caller.session(sent.request_id)["status"] == "COMPLETED")
    for each in asked.values():
        told = [call.json["status"] for call in receiver.calls_to(each.callback_url)]
        assert told == ["not_allowed"] * (4 if each is sent else 3)
        assert each.driver_token not in caller.log
    assert letters(caller) == {each.request_id for each in asked.values()} - {sent.request_id}


def test_a_dead_letter_goes_out_once_the_change_is_undone(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    caller = service(callback__retry_delay_ms=1)
    url = receiver.planned(*[reply(500)] * 3, reply())
    asked = caller.ask(url, station_id=STATION)
    assert caller.finished(asked)["status"] == "FAILED"
    for station, status in ((OTHER, 404), (STATION, 202)):
        rows(caller, "UPDATE charging_requests SET station_id = ? WHERE request_id = ?", station, asked.request_id)
        assert caller.client.post(f"/api/v1/dead-letters/{asked.request_id}/replay").status_code == status
    eventually(lambda: caller.session(asked.request_id)["status"] == "COMPLETED")
    [*_, last] = receiver.calls_to(url)
    assert (last.json["station_id"], last.json["driver_token"]) == (STATION, asked.driver_token)


def test_a_changed_replay_leaves_the_dead_letter(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], command: str, eventually: Callable[..., Any]
) -> None:
    """The replay waits in the queue of a service that is stopped; the decision is still known, and sent to nobody."""
    caller = service(callback__retry_delay_ms=1)
    url = receiver.planned(*[reply(500)] * 3, reply())
    asked = caller.ask(url, station_id=STATION)
    assert caller.finished(asked)["status"] == "FAILED"
    assert caller.stop() == 0
    replayed = replay_by_hand(command, caller, asked)
    assert replayed.returncode == 0, replayed.stderr
    rows(caller, "UPDATE queue SET station_id = ?", OTHER)
    caller.start()
    eventually(lambda: "is not as it was accepted" in caller.log)
    assert caller.finished(asked)["status"] == "FAILED"
    assert letters(caller) == {asked.request_id}
    assert len(receiver.calls_to(url)) == 3
    assert caller.client.post(f"/api/v1/dead-letters/{asked.request_id}/replay").status_code == 202
    eventually(lambda: caller.session(asked.request_id)["status"] == "COMPLETED")
