"""The newest attempts at a callback, as its request shows them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from contract.conftest import Service
    from outside import Reply, Site

LETTERS = "/api/v1/dead-letters"


def told(history: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    assert all(set(attempt) == {"at", "status_code", "error", "duration_ms"} for attempt in history)
    assert all(type(attempt["duration_ms"]) is int and attempt["duration_ms"] >= 0 for attempt in history)
    times = [datetime.fromisoformat(attempt["at"]) for attempt in history]
    assert times == sorted(times)
    return [(attempt["status_code"], attempt["error"]) for attempt in history]


def test_every_attempt_is_told(service: Callable[..., Service], receiver: Site, reply: type[Reply]) -> None:
    caller = service(callback__retry_delay_ms=10)
    asked = caller.ask(receiver.planned(reply(500), reply(404), reply(204)))
    ended = caller.finished(asked)
    callback = ended["callback"]
    assert told(callback["history"]) == [(500, "http_500"), (404, "http_404"), (204, None)]
    assert callback["attempts"] == 3
    assert ended["created_at"] <= callback["history"][0]["at"]
    assert callback["history"][-1]["at"] <= callback["delivered_at"]


def test_a_pause_is_no_attempt(service: Callable[..., Service], receiver: Site, reply: type[Reply]) -> None:
    caller = service(callback__max_retry_after_ms=50)
    asked = caller.ask(receiver.planned(reply(429), reply(200)))
    assert told(caller.finished(asked)["callback"]["history"]) == [(200, None)]


def test_what_was_tried_before_a_replay_stays(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    caller = service(callback__max_attempts=1)
    asked = caller.ask(receiver.planned(reply(500), reply(200)))
    caller.finished(asked)
    assert caller.client.post(f"{LETTERS}/{asked.request_id}/replay").status_code == 202
    eventually(lambda: caller.session(asked.request_id)["status"] == "COMPLETED")
    callback = caller.session(asked.request_id)["callback"]
    assert told(callback["history"]) == [(500, "http_500"), (200, None)]
    assert callback["attempts"] == 1


def test_the_last_twenty_are_kept(service: Callable[..., Service], receiver: Site, reply: type[Reply]) -> None:
    caller = service(callback__retry_delay_ms=0, callback__max_attempts=23)
    asked = caller.ask(receiver.planned(*(reply(500 + number) for number in range(23))))
    callback = caller.finished(asked)["callback"]
    assert callback["attempts"] == 23
    assert [code for code, _ in told(callback["history"])] == list(range(503, 523))


def test_a_killed_process_forgets_no_attempt(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    caller = service(callback__retry_delay_ms=1_000)
    asked = caller.ask(receiver.planned(reply(500), reply(200)), driver_token=f"driver-{uuid.uuid4().hex}")
    eventually(lambda: (caller.session(asked.request_id)["callback"] or {}).get("attempts") == 1)
    caller.kill()
    caller.start()
    assert told(caller.finished(asked)["callback"]["history"]) == [(500, "http_500"), (200, None)]


def test_how_long_a_name_took_is_not_told(service: Callable[..., Service]) -> None:
    caller = service(callback__retry_delay_ms=0)
    callback = caller.finished(caller.ask("http://no-such-host.invalid/cb"))["callback"]
    assert {attempt["error"] for attempt in callback["history"]} <= {"no_usable_address"}
    assert {attempt["duration_ms"] for attempt in callback["history"]} <= {0}


def test_each_replay_is_told_in_its_place(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    caller = service(callback__retry_delay_ms=10)
    asked = caller.ask(receiver.planned(*[reply(500)] * 9, reply(200)))
    ended = caller.finished(asked)
    assert "replays" not in ended["callback"]
    for number in range(1, 4):
        before = ended["processed_at"]
        assert caller.client.post(f"{LETTERS}/{asked.request_id}/replay").status_code == 202

        def again(before: str = before) -> dict[str, Any] | None:
            seen = caller.session(asked.request_id)
            return seen if seen["processed_at"] not in (None, before) else None

        ended = eventually(again, 40)
        replays, attempts = ended["callback"]["replays"], [one["at"] for one in ended["callback"]["history"]]
        assert len(replays) == number
        assert before <= replays[-1] <= ended["processed_at"]
        assert len([at for at in attempts if at < replays[-1]]) == 3 * number
        caller.restart()  # what was before is kept on disk
    assert [code for code, _ in told(ended["callback"]["history"])] == [500] * 9 + [200]
    assert (ended["status"], ended["callback"]["replays"]) == ("COMPLETED", sorted(replays))


def test_only_the_newest_replays_are_kept(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    caller = service(callback__max_attempts=1)
    asked = caller.ask(receiver.planned(*[reply(410)] * 23))
    ended = caller.finished(asked)
    seen: list[str] = []
    for _ in range(22):
        before = ended["processed_at"]
        assert caller.client.post(f"{LETTERS}/{asked.request_id}/replay").status_code == 202

        def again(before: str = before) -> dict[str, Any] | None:
            now = caller.session(asked.request_id)
            return now if now["processed_at"] not in (None, before) else None

        ended = eventually(again, 40)
        seen.append(ended["callback"]["replays"][-1])
    assert ended["callback"]["replays"] == seen[-20:]
    assert len(told(ended["callback"]["history"])) == 20
