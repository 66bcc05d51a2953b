"""`chargegate dead-letters` on callbacks that the real ledger holds as given up."""

import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chargegate.app.commands import Offline
from chargegate.ledger.records import Finished
from chargegate.model import ChargingRequest, Decision, RequestStatus, Status, to_iso
from chargegate.queues.envelope import seal_dead_letter
from outside import Reply, sites

Run = Callable[..., Any]
GiveUp = Callable[..., None]
Start = Callable[..., subprocess.Popen[str]]

STATION = "0a1b2c3d-0000-4000-8000-00000000000a"
START = 20_000 * 86_400_000


def request_id(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012x}"


@pytest.fixture
def give_up(in_store: Callable[..., Any], token: str) -> GiveUp:
    """Requests whose callbacks were given up, a second apart."""

    def give_up(*numbers: int, url: str = "https://client.example/callback") -> None:
        async def act(store: Offline) -> None:
            for number in numbers:
                at = START + number * 1000
                request = ChargingRequest(request_id(number), STATION, token, url, at)
                decision = Decision(request.request_id, STATION, "0123456789abcdef", Status.ALLOWED, "", 1, at)
                sealed = seal_dead_letter(store.keyring, request, decision)
                await store.ledger.record(decision, at)
                await store.ledger.finish(
                    Finished(request.request_id, RequestStatus.FAILED, 3, 503, "HTTP 503", at + 1, sealed)
                )

        in_store(act)

    return give_up


def listed(run: Run, *arguments: str) -> list[Any]:
    result = run("dead-letters", "list", "--json", *arguments)
    assert (result.code, result.err) == (0, "")
    return list(result.lines())


def test_a_dead_letter_without_what_is_secret(run: Run, give_up: GiveUp, token: str) -> None:
    give_up(1)
    result = run("dead-letters", "list", "--json")
    assert result.json() == {
        "failed_at": to_iso(START + 1001),
        "request_id": request_id(1),
        "station_id": STATION,
        "driver_token_hash": "0123456789abcdef",
        "status": "allowed",
        "reason": "",
        "created_at": to_iso(START + 1000),
        "attempts": 3,
        "last_status_code": 503,
        "last_error": "HTTP 503",
        "client": "",
    }
    for written in (result.out, run("dead-letters", "list").out):
        assert token not in written
        assert "client.example" not in written


def test_a_range_and_a_limit(run: Run, give_up: GiveUp) -> None:
    give_up(*range(1, 6))

    def found(*arguments: str) -> list[int]:
        return [int(letter["request_id"][-2:], 16) for letter in listed(run, *arguments)]

    assert found() == [5, 4, 3, 2, 1]
    assert found("--limit", "2") == [5, 4]
    assert found("--from", to_iso(START + 2001), "--to", to_iso(START + 4001)) == [3, 2]


def test_the_next_service_sends_the_decisions_again(
    run: Run, give_up: GiveUp, start: Start, folder: Path, token: str
) -> None:
    with sites() as make:
        receiver = make(lambda _call: Reply(204))
        give_up(1, 2, 3, url=receiver.url())
        one = run("dead-letters", "replay", request_id(1).upper(), "--json")
        assert (one.code, one.json(), one.err) == (0, {"replayed": 1}, "")
        assert run("dead-letters", "replay", "--from", to_iso(START + 3000)).out == "replayed 1 dead letter\n"
        (folder / "chargegate.toml").write_text(
            'server.port = 0\ncallback.allowed_networks = ["127.0.0.0/8"]\n'
            "callback.dead_letter_retention_ms = 3_000_000_000_000\n"  # these dead letters are of the past
        )
        service = start("serve", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = time.monotonic() + 60
        while len(receiver.calls) < 2 and time.monotonic() < limit:
            assert service.poll() is None
            beside = start("dead-letters", "list", "--json").communicate(timeout=60)
            assert request_id(2) in beside[0]
        service.terminate()
        assert service.wait(timeout=60) == 0
    assert [int(letter["request_id"][-2:], 16) for letter in listed(run)] == [2]
    assert [call.json for call in receiver.calls] == [
        {"station_id": STATION, "driver_token": token, "status": "allowed"}
    ] * 2


def test_replay_of_what_is_no_dead_letter(run: Run, give_up: GiveUp) -> None:
    give_up(1)
    result = run("dead-letters", "replay", request_id(9))
    assert (result.code, result.out) == (1, "")
    assert result.err == "chargegate: no dead letter has this request id\n"


@pytest.mark.parametrize("command", ["replay", "discard"])
def test_one_request_or_a_range_but_not_both(run: Run, command: str) -> None:
    assert run("dead-letters", command, request_id(1), "--from", "2026-01-31").code == 2
    assert run("dead-letters", command).code == 2


def test_what_is_discarded_is_gone_but_for_its_record(run: Run, give_up: GiveUp, in_store: Callable[..., Any]) -> None:
    give_up(*range(1, 6))
    one = run("dead-letters", "discard", request_id(5).upper(), "--json")
    assert (one.code, one.json(), one.err) == (0, {"discarded": 1}, "")
    several = run("dead-letters", "discard", "--from", to_iso(START + 2001), "--to", to_iso(START + 4001))
    assert (several.code, several.out) == (0, "discarded 2 dead letters\n")
    assert [int(letter["request_id"][-2:], 16) for letter in listed(run)] == [4, 1]
    for command in ("discard", "replay"):
        again = run("dead-letters", command, request_id(5))
        assert (again.code, again.err) == (1, "chargegate: no dead letter has this request id\n")

    async def look(store: Offline) -> None:
        found = await store.ledger.find(request_id(5))
        assert found is not None
        assert (found.status, found.callback.last_error) == (RequestStatus.FAILED, "HTTP 503")
        assert await store.ledger.count_dead_letters() == 2

    in_store(look)
    with closing(sqlite3.connect("data/chargegate.db")) as connection:
        assert connection.execute("SELECT count(*) FROM charging_requests WHERE sealed NOTNULL").fetchone() == (2,)


def test_a_queue_in_another_process_cannot_be_reached(
    run: Run, give_up: GiveUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(1)
    monkeypatch.setenv("CHARGEGATE_QUEUE__URL", "memory://")
    result = run("dead-letters", "replay", request_id(1))
    assert (result.code, result.out) == (1, "")
    assert "memory://" in result.err
