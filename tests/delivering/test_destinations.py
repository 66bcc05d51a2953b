import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from chargegate.delivering.destinations import IN_LINE, Callback, Destinations
from chargegate.model import now_ms, parse_callback_url

LIMIT_S = 20
A, B, C = (f"http://{name}.example/" for name in "abc")


class Street:
    """Destinations, and what they told."""

    def __init__(self, **limits: int) -> None:
        self.ready: list[Callback] = []
        self.expired: list[Callback] = []
        self.circuit: list[str] = []
        chosen = {"max_connections": 100, "max_per_destination": 20, "failure_threshold": 3, "probe_interval_ms": 50}
        self.destinations = Destinations(
            **(chosen | limits),
            on_ready=self.ready.append,
            on_expired=self.expired.append,
            on_circuit=self.circuit.append,
        )
        self._number = 0

    def callback(self, url: str = A, *, deadline_in: int = 60_000) -> Callback:
        self._number += 1
        return Callback(
            f"request-{self._number}",
            parse_callback_url(url),
            b"{}",
            traceparent="",
            attempts=0,
            deadline=now_ms() + deadline_in,
            work=None,
        )

    def started(self, url: str = A, **fields: int) -> Callback:
        callback = self.callback(url, **fields)
        assert self.destinations.start(callback)
        return callback

    def parked(self, url: str = A, **fields: int) -> Callback:
        callback = self.callback(url, **fields)
        assert not self.destinations.start(callback)
        return callback

    def ended(self, callback: Callback, *, reachable: bool = True) -> bool:
        return self.destinations.finished(callback, reachable=reachable)

    def open_circuit(self, url: str = A, failures: int = 3) -> None:
        for _ in range(failures):
            assert self.ended(self.started(url), reachable=False)

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.005)


async def others_rested(wait_ms: int) -> None:
    """Let so much time pass as another's rest takes."""
    other = Street()
    callback = other.started()
    other.ended(callback)
    other.destinations.retry(callback, wait_ms)
    await other.until(lambda: other.ready)


Scenario = Callable[[Street], Coroutine[Any, Any, None]]


def run(scenario: Scenario, **limits: int) -> None:
    async def main() -> None:
        street = Street(**limits)
        async with asyncio.timeout(LIMIT_S):
            await scenario(street)
        street.destinations.close()

    uvloop.run(main())


def test_a_destination_has_its_limit_and_its_order() -> None:
    async def scenario(street: Street) -> None:
        running = [street.started() for _ in range(2)]
        waiting = [street.parked() for _ in range(3)]
        street.started(B)
        assert street.destinations.parked == 3
        street.ended(running[0])
        assert street.ready == waiting[:1]
        street.ended(waiting[0])
        street.ended(running[1])
        assert street.ready == waiting
        assert street.destinations.parked == 0

    run(scenario, max_per_destination=2)


def test_scheme_host_and_port_make_a_destination() -> None:
    async def scenario(street: Street) -> None:
        street.started("http://a.example/")
        street.started("https://a.example/")
        street.started("http://a.example:8080/")
        street.started("http://b.example/")
        street.parked("http://A.example:80/other/path?query")

    run(scenario, max_per_destination=1)


def test_a_callback_that_waits_for_the_limit_in_all_gets_its_turn() -> None:
    """What made room is another destination, with nothing left to do."""

    async def scenario(street: Street) -> None:
        first, waiting = street.started(A), street.parked(B)
        street.ended(first)
        assert street.ready == [waiting]
        street.ended(waiting)
        street.started(C)

    run(scenario, max_connections=1)


def test_room_in_all_goes_round_the_destinations() -> None:
    async def scenario(street: Street) -> None:
        running = [street.started(A) for _ in range(2)]
        for _ in range(10):
            street.parked(A)
        b, c = street.parked(B), street.parked(C)
        for _ in range(3):
            street.ended(running.pop(0))
            running += street.ready[len(street.ready) - 1 :]
        assert {b.request_id, c.request_id} <= {callback.request_id for callback in street.ready}

    run(scenario, max_connections=2)


def test_every_parked_callback_starts_in_the_end_and_no_limit_is_passed() -> None:
    async def scenario(street: Street) -> None:
        urls = [f"http://host-{n % 7}.example/" for n in range(200)]
        callbacks = [street.callback(url) for url in urls]
        running = [callback for callback in callbacks if street.destinations.start(callback)]
        done = 0
        while running:
            assert len(running) <= 5
            keys = [callback.destination for callback in running]
            assert max(map(keys.count, keys)) <= 2
            street.ended(running.pop(done % len(running)))
            done += 1
            running += street.ready
            street.ready.clear()
        assert done == 200
        assert street.destinations.parked == 0

    run(scenario, max_connections=5, max_per_destination=2)


def test_a_circuit_opens_after_so_many_failures_to_reach() -> None:
    async def scenario(street: Street) -> None:
        street.open_circuit(A, failures=2)
        assert street.destinations.open_circuits == 0
        street.open_circuit(A, failures=1)
        assert street.destinations.open_circuits == 1
        assert street.circuit == ["open"]
        street.parked(A)
        street.started(B)

    run(scenario, probe_interval_ms=60_000)


def test_an_answer_of_any_status_starts_the_count_again() -> None:
    async def scenario(street: Street) -> None:
        for _ in range(5):
            street.open_circuit(A, failures=2)
            street.ended(street.started(A), reachable=True)
        assert street.circuit == []

    run(scenario)


def test_a_probe_an_interval_uses_up_no_attempt_until_one_gets_through() -> None:
    async def scenario(street: Street) -> None:
        street.open_circuit()
        waiting = [street.parked() for _ in range(3)]
        for probes in range(1, 4):
            await street.until(lambda probes=probes: len(street.ready) == probes)  # type: ignore[misc]  # bound on purpose
            assert not street.ended(street.ready[-1], reachable=False), "counted as an attempt"
            assert street.destinations.parked == 3
        await street.until(lambda: len(street.ready) == 4)
        assert street.ended(street.ready[3], reachable=True)
        assert street.destinations.open_circuits == 0
        assert street.circuit == ["open", "closed"]
        assert {callback.request_id for callback in street.ready[3:]} == {callback.request_id for callback in waiting}
        assert street.destinations.parked == 0

    run(scenario)


def test_only_one_probe_at_a_time() -> None:
    async def scenario(street: Street) -> None:
        street.open_circuit()
        for _ in range(3):
            street.parked()
        await street.until(lambda: street.ready)
        street.parked()
        await others_rested(20)
        assert len(street.ready) == 1

    run(scenario, probe_interval_ms=5)


def test_a_new_callback_may_be_the_probe() -> None:
    async def scenario(street: Street) -> None:
        street.open_circuit()
        await others_rested(20)
        assert not street.ended(street.started(), reachable=False)
        assert street.destinations.parked == 1

    run(scenario, probe_interval_ms=5)


def test_what_was_under_way_when_the_circuit_opened_counts_as_tried() -> None:
    async def scenario(street: Street) -> None:
        running = [street.started() for _ in range(5)]
        assert all(street.ended(callback, reachable=False) for callback in running)
        assert street.destinations.open_circuits == 1
        assert street.circuit == ["open"]

    run(scenario, probe_interval_ms=60_000)


def test_the_circuits_of_two_destinations_are_one_signal() -> None:
    async def scenario(street: Street) -> None:
        street.open_circuit(A)
        street.open_circuit(B)
        assert street.circuit == ["open"]
        for url in (A, B):
            street.parked(url)
        await street.until(lambda: len(street.ready) == 2)
        street.ended(street.ready[0])
        assert street.circuit == ["open"]
        street.ended(street.ready[1])
        assert street.circuit == ["open", "closed"]

    run(scenario)


def test_a_rest_ends_when_its_time_comes() -> None:
    async def scenario(street: Street) -> None:
        callback = street.started()
        assert street.ended(callback)
        street.destinations.retry(callback, 20)
        assert street.destinations.parked == 1
        assert street.ready == []
        await street.until(lambda: street.ready)
        assert street.ready == [callback]
        assert street.destinations.parked == 0

    run(scenario)


def test_who_rests_takes_no_connection() -> None:
    async def scenario(street: Street) -> None:
        callback = street.started()
        street.ended(callback)
        street.destinations.retry(callback, 60_000)
        street.started()

    run(scenario, max_connections=1, max_per_destination=1)


def test_a_rest_that_ends_at_a_busy_destination_goes_into_its_line() -> None:
    async def scenario(street: Street) -> None:
        first = street.started()
        street.ended(first)
        second = street.started()
        street.destinations.retry(first, 1)
        await street.until(lambda: first.state == IN_LINE)
        assert street.ready == []
        assert street.destinations.parked == 1
        street.ended(second)
        await street.until(lambda: street.ready)
        assert street.ready == [first]

    run(scenario, max_per_destination=1)


def test_a_deadline_ends_waiting_in_a_line() -> None:
    async def scenario(street: Street) -> None:
        running = street.started()
        late, patient = street.parked(deadline_in=10), street.parked()
        await street.until(lambda: street.expired)
        assert street.expired == [late]
        assert street.destinations.parked == 1
        street.ended(running)
        assert street.ready == [patient]

    run(scenario, max_per_destination=1)


def test_a_deadline_ends_waiting_for_a_circuit() -> None:
    async def scenario(street: Street) -> None:
        street.open_circuit()
        late = street.parked(deadline_in=10)
        await street.until(lambda: street.expired)
        assert street.expired == [late]
        assert street.ready == []
        assert street.destinations.parked == 0

    run(scenario, probe_interval_ms=600_000)


def test_a_deadline_ends_a_rest_that_would_outlast_it() -> None:
    async def scenario(street: Street) -> None:
        callback = street.started(deadline_in=20)
        street.ended(callback)
        street.destinations.retry(callback, 3_600_000)
        await street.until(lambda: street.expired)
        assert street.expired == [callback]
        assert street.ready == []
        assert street.destinations.parked == 0

    run(scenario)


def test_a_failed_probe_past_its_deadline_is_told_as_ended() -> None:
    async def scenario(street: Street) -> None:
        street.open_circuit()
        callback = street.parked(deadline_in=150)
        await street.until(lambda: street.ready)
        await street.until(lambda: time.monotonic() >= callback.deadline)
        assert street.ended(callback, reachable=False)
        assert street.destinations.parked == 0

    run(scenario)


@pytest.mark.parametrize("reachable", [True, False])
def test_endless_hosts_are_forgotten(reachable: bool) -> None:
    async def scenario(street: Street) -> None:
        busy = street.started("http://busy.example/")
        for number in range(25_000):
            street.ended(street.started(f"http://host-{number}.example/"), reachable=reachable)
        assert len(street.destinations._known) <= 10_001  # looks inside: memory shows nowhere else
        assert street.destinations.open_circuits <= 10_001
        street.ended(busy)

    run(scenario, failure_threshold=1, probe_interval_ms=600_000)


def test_one_hosts_circuit_survives_others_that_come_and_go() -> None:
    async def scenario(street: Street) -> None:
        street.open_circuit(A)
        waiting = street.parked(A)
        for number in range(12_000):
            street.ended(street.started(f"http://host-{number}.example/"), reachable=False)
        assert street.destinations.open_circuits == 1
        await street.until(lambda: street.ready)
        assert street.ready == [waiting]

    run(scenario)


def test_nothing_rings_after_close() -> None:
    async def scenario(street: Street) -> None:
        callback = street.started()
        street.ended(callback)
        street.destinations.retry(callback, 5)
        street.open_circuit(B)
        street.parked(B, deadline_in=5)
        street.destinations.close()
        await others_rested(20)
        assert street.ready == []
        assert street.expired == []

    run(scenario, probe_interval_ms=5)


def test_a_probe_that_is_no_longer_needed_forgets_nobody_else() -> None:
    """The timer of an old circuit rings while a new callback to the same destination is under way."""

    async def scenario(street: Street) -> None:
        running = [street.started() for _ in range(6)]
        for callback in running[:5]:
            street.ended(callback, reachable=False)
        assert street.destinations.open_circuits == 1
        street.ended(running[5])
        assert street.destinations.open_circuits == 0
        late = street.started()
        rung = asyncio.get_running_loop().time() + 0.2
        await street.until(lambda: asyncio.get_running_loop().time() > rung)
        assert street.ended(late)

    run(scenario, failure_threshold=5, probe_interval_ms=50)
