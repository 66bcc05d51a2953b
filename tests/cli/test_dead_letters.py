"""`chargegate dead-letters` on callbacks that the real ledger holds as given up."""

from collections.abc import Callable
from typing import Any

import pytest

from chargegate.app import Offline
from chargegate.ledger.base import Finished
from chargegate.model import ChargingRequest, Decision, RequestStatus, Status, to_iso
from chargegate.queues.envelope import wrap

Run = Callable[..., Any]
GiveUp = Callable[..., None]

STATION = "0a1b2c3d-0000-4000-8000-00000000000a"
START = 20_000 * 86_400_000


def request_id(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012x}"


@pytest.fixture
def give_up(in_store: Callable[..., Any], token: str) -> GiveUp:
    """Requests whose callbacks were given up, a second apart."""

    def give_up(*numbers: int) -> None:
        async def act(store: Offline) -> None:
            for number in numbers:
                at = START + number * 1000
                request = ChargingRequest(request_id(number), STATION, token, "https://client.example/callback", at)
                sealed = wrap(store.keyring, request).body
                decision = Decision(request.request_id, STATION, "0123456789abcdef", Status.ALLOWED, "", 1, at)
                await store.ledger.record(decision, at)
                await store.ledger.finish(
                    Finished(request.request_id, RequestStatus.FAILED, 3, 503, "HTTP 503", at + 1, sealed)
                )

        in_store(act)

    return give_up


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
    }
    for written in (result.out, run("dead-letters", "list").out):
        assert token not in written
        assert "client.example" not in written


def test_a_range_and_a_limit(run: Run, give_up: GiveUp) -> None:
    give_up(*range(1, 6))

    def found(*arguments: str) -> list[int]:
        return [int(line["request_id"][-2:], 16) for line in run("dead-letters", "list", "--json", *arguments).lines()]

    assert found() == [5, 4, 3, 2, 1]
    assert found("--limit", "2") == [5, 4]
    assert found("--from", to_iso(START + 2001), "--to", to_iso(START + 4001)) == [3, 2]


def test_replay_puts_it_into_the_queue(run: Run, give_up: GiveUp) -> None:
    give_up(1, 2)
    result = run("dead-letters", "replay", request_id(1), "--json")
    assert (result.code, result.json(), result.err) == (0, {"replayed": 1}, "")
    assert "1 dead letter" in run("dead-letters", "replay", "--from", to_iso(START + 2000)).out


def test_replay_of_what_is_no_dead_letter(run: Run, give_up: GiveUp) -> None:
    give_up(1)
    result = run("dead-letters", "replay", request_id(9))
    assert (result.code, result.out) == (1, "")
    assert result.err == "chargegate: no dead letter has this request id\n"


def test_one_request_or_a_range_but_not_both(run: Run) -> None:
    assert run("dead-letters", "replay", request_id(1), "--from", "2026-01-31").code == 2


def test_a_queue_in_another_process_cannot_be_reached(
    run: Run, give_up: GiveUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(1)
    monkeypatch.setenv("CHARGEGATE_QUEUE__URL", "memory://")
    result = run("dead-letters", "replay", request_id(1))
    assert (result.code, result.out) == (1, "")
    assert "memory://" in result.err
