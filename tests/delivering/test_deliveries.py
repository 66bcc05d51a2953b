"""The owner of callbacks: limits, circuits, waits and deadlines, with a sender that answers what a test says."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from typing import Any

import pytest
import uvloop

from chargegate.concurrency import ConcurrencyLimit
from chargegate.delivering.deliveries import Deliveries
from chargegate.delivering.destinations import Destinations
from chargegate.delivering.lines import Destination
from chargegate.delivering.retry import RetryPolicy
from chargegate.delivering.sender import Attempt, Outcome, Way
from chargegate.delivering.shares import Shares
from chargegate.delivering.states import Callback, CallbackLimits, State
from chargegate.http1 import ConnectFailed, NotSent
from chargegate.model import CallbackTarget, now_ms, parse_callback_url
from chargegate.observe import Metrics

LIMIT_S = 20
A, B, C = (f"http://{name}.example/" for name in "abc")
LIMITS: dict[str, Any] = {
    "retries": RetryPolicy(2, 20, 3_600_000),
    "deadline_ms": 60_000,
    "max_parked": 1_000,
    "max_connections": 100,
    "max_connections_per_destination": 20,
    "circuit_failures": 3,
    "circuit_probe_ms": 50,
    "circuit_forget_ms": 600_000,
}
OK = Attempt(Outcome.DELIVERED, 200, None)
REFUSED = Attempt(Outcome.UNREACHABLE, None, "connection_refused")
ERROR = Attempt(Outcome.FAILED, 500, "http_500")
GONE = Attempt(Outcome.GONE, 410, "http_410")
NOT_SENT = Attempt(Outcome.NOT_SENT, None, "no_socket")
NAME_NEEDED = Attempt(Outcome.NAME_NEEDED, None, "no_usable_address")


def asks_to_wait(seconds: int) -> Attempt:
    """It failed, and wants its next attempt so much later."""
    return Attempt(Outcome.FAILED, 500, "http_500", str(seconds))


def pauses(seconds: int) -> Attempt:
    """It wants to be left alone for so long."""
    return Attempt(Outcome.REFUSED, 429, "http_429", str(seconds))


class Scene:
    """Deliveries whose attempts end when, and as, the test says."""

    def __init__(self, **limits: Any) -> None:
        self.metrics = Metrics()
        self.sent: list[str] = []  # the request id of every attempt
        self.ended: list[Callback] = []
        self.retried: list[tuple[Callback, State, int]] = []
        self.recorded = asyncio.Event()  # a failed attempt is persisted once it is set
        self.recorded.set()
        self.concurrency = ConcurrencyLimit(limits.pop("concurrency", 1_000), lambda: None)
        self.deliveries = Deliveries(
            sender=self,  # type: ignore[arg-type]  # it has the methods that are used
            limits=CallbackLimits(**(LIMITS | limits)),
            concurrency=self.concurrency,
            metrics=self.metrics,
            on_retry=self._retry,
            on_end=self._end,
        )
        self._answers: dict[str, asyncio.Future[Attempt]] = {}
        self.ways: dict[str, Way | None] = {}  # of hosts whose name is not simply known
        self.asked: list[str] = []
        self.names: dict[str, asyncio.Future[Way | None]] = {}
        self._number = 0

    async def send(self, request_id: str, *_: object) -> Attempt:
        self.sent.append(request_id)
        self._answers[request_id] = asyncio.get_running_loop().create_future()
        return await self._answers[request_id]

    def way(self, target: CallbackTarget) -> Way | None:
        return self.ways.get(target.host, [ip_address("192.0.2.1")])

    async def look_up(self, target: CallbackTarget) -> None:
        self.asked.append(target.host)
        self.ways[target.host] = await self.names.setdefault(target.host, asyncio.get_running_loop().create_future())

    async def name(self, host: str, way: Way | None) -> None:
        """A look-up that is under way ends."""
        self.names.pop(host).set_result(way)
        await self.settled()

    async def _retry(self, callback: Callback) -> None:
        await self.recorded.wait()
        self.retried.append((callback, callback.state, callback.attempts))

    async def _end(self, callback: Callback) -> None:
        self.ended.append(callback)

    @property
    def circuit(self) -> list[str]:
        """How often the metric says that the circuits opened and closed."""
        return [to for to in ("open", "closed") for _ in range(int(self.count_circuit(to)))]

    def count_circuit(self, to: str) -> float:
        labels = {"name": "callbacks", "to": to}
        return self.metrics.registry.get_sample_value("circuit_breaker_transitions_total", labels) or 0.0

    def count(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("callback_deliveries_total", {"outcome": outcome}) or 0.0

    async def deliver(self, url: str = A, *, deadline_in: int = 60_000, client: str = "") -> Callback:
        """A new callback, once it was sent, parked or given up."""
        self._number += 1
        target = parse_callback_url(url)
        callback = Callback(f"request-{self._number}", target, b"{}", "", 0, now_ms() + deadline_in, client)
        self.concurrency.run(self.deliveries.deliver, callback)
        await self.settled()
        return callback

    async def started(self, url: str = A, **fields: Any) -> Callback:
        callback = await self.deliver(url, **fields)
        assert callback.state is State.RUNNING
        assert self.sent[-1] == callback.request_id
        return callback

    async def parked(self, url: str = A, **fields: Any) -> Callback:
        callback = await self.deliver(url, **fields)
        assert callback.state is State.IN_LINE
        return callback

    async def answer(self, callback: Callback, attempt: Attempt = OK) -> None:
        self._answers.pop(callback.request_id).set_result(attempt)
        await self.settled()

    async def open_circuit(self, url: str = A, failures: int = 3) -> None:
        for _ in range(failures):
            await self.answer(await self.started(url), REFUSED)

    async def settled(self) -> None:
        """Let everything happen that waits for nothing."""
        for _ in range(8):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.005)

    async def passed(self, ms: int) -> None:
        end = time.monotonic() + ms / 1000
        await self.until(lambda: time.monotonic() > end)


Scenario = Callable[[Scene], Coroutine[Any, Any, None]]


def run(scenario: Scenario, **limits: Any) -> None:
    async def main() -> None:
        scene = Scene(**limits)
        try:
            async with asyncio.timeout(LIMIT_S):
                await scenario(scene)
        finally:
            scene.deliveries.close()
            await scene.concurrency.drain(0)
        assert not scene.concurrency.failed

    uvloop.run(main())


# Limits and lines


def test_a_destination_has_its_limit_and_its_order() -> None:
    async def scenario(scene: Scene) -> None:
        running = [await scene.started() for _ in range(2)]
        waiting = [await scene.parked() for _ in range(3)]
        other = await scene.started(B)
        assert scene.deliveries.parked == 3
        await scene.answer(running[0])
        in_order = [callback.request_id for callback in [*running, other, *waiting]]
        assert scene.sent == in_order[:4]
        await scene.answer(waiting[0])
        await scene.answer(running[1])
        assert scene.sent == in_order
        assert scene.deliveries.parked == 0

    run(scenario, max_connections_per_destination=2)


def test_scheme_host_and_port_make_a_destination() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.started("http://a.example/")
        await scene.started("https://a.example/")
        await scene.started("http://a.example:8080/")
        await scene.started("http://b.example/")
        await scene.parked("http://A.example:80/other/path?query")

    run(scenario, max_connections_per_destination=1)


def test_a_callback_that_waits_for_the_limit_in_all_gets_its_turn() -> None:
    """The destination that gave its connection back has nothing left to do."""

    async def scenario(scene: Scene) -> None:
        first, waiting = await scene.started(A), await scene.parked(B)
        await scene.answer(first)
        assert scene.sent[1:] == [waiting.request_id]
        await scene.answer(waiting)
        await scene.started(C)

    run(scenario, max_connections=1)


def test_room_in_all_goes_round_the_destinations() -> None:
    async def scenario(scene: Scene) -> None:
        for url in (A, B, C):
            await scene.answer(await scene.started(url))
        running = [await scene.started(A) for _ in range(2)]
        line = [await scene.parked(A) for _ in range(10)]
        others = [await scene.parked(B), await scene.parked(C)]
        for _ in range(3):
            await scene.answer(running.pop(0))
            running += [each for each in [*line, *others] if each.request_id == scene.sent[-1]]
        assert {callback.request_id for callback in others} <= set(scene.sent)

    run(scenario, max_connections=2)


def test_every_parked_callback_starts_in_the_end_and_no_limit_is_passed() -> None:
    async def scenario(scene: Scene) -> None:
        callbacks = [await scene.deliver(f"http://host-{n % 7}.example/") for n in range(200)]
        done = 0
        while running := [callback for callback in callbacks if callback.state is State.RUNNING]:
            assert len(running) <= 5
            keys = [callback.target.destination for callback in running]
            assert max(map(keys.count, keys)) <= 2
            await scene.answer(running[done % len(running)])
            done += 1
        assert done == 200
        assert scene.deliveries.parked == 0

    run(scenario, max_connections=5, max_connections_per_destination=2)


def test_where_too_many_are_parked_the_newest_of_the_longest_line_are_given_up() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.started(A)
        await scene.started(B)
        long = [await scene.parked(A) for _ in range(60)]
        short = [await scene.parked(B) for _ in range(39)]
        scene.deliveries.make_room()
        await scene.settled()
        assert scene.ended == []
        short.append(await scene.parked(B))
        scene.deliveries.make_room()
        await scene.settled()
        assert scene.ended == [long[59], long[58], long[57]]
        assert {callback.error for callback in scene.ended} == {"too_many_waiting"}
        assert scene.deliveries.parked == 97
        assert scene.count("dead_letter") == 3

    run(scenario, max_connections_per_destination=1, max_parked=100)


def test_who_waits_for_a_retry_counts_as_parked_and_makes_room_too() -> None:
    async def scenario(scene: Scene) -> None:
        older, newer = [await scene.started(deadline_in=deadline) for deadline in (50_000, 60_000)]
        for callback in (newer, older):
            await scene.answer(callback, asks_to_wait(600))
        assert scene.deliveries.parked == 2
        scene.deliveries.make_room()
        await scene.settled()
        assert scene.ended == [newer]
        assert (newer.attempts, newer.error) == (1, "too_many_waiting")

    run(scenario, max_parked=2)


# Shares


def test_destinations_that_never_answer_leave_the_reserve_to_proven_ones() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.answer(await scene.started(A))
        silent = [await scene.deliver(f"http://silent-{n}.example/") for n in range(30)]
        assert sum(each.state is State.RUNNING for each in silent) == 5, "half of what is not in the reserve"
        for _ in range(8):
            await scene.started(A)

    run(scenario, max_connections=20)


def test_a_client_that_comes_new_finds_a_connection_free() -> None:
    async def scenario(scene: Scene) -> None:
        for name in ("flood", "second flood"):
            for n in range(30):
                await scene.deliver(f"http://{name[0]}-{n}.example/", client=name)
        for n in range(3):
            await scene.started(B, client=f"new-{n}")

    run(scenario, max_connections=40)


def test_at_one_destination_the_clients_take_turns() -> None:
    async def scenario(scene: Scene) -> None:
        for url in (A, B, C):
            await scene.answer(await scene.started(url))
        held = [await scene.started(A, client="many") for _ in range(20)]
        late = [await scene.parked(A, client="many") for _ in range(3)]
        for url in (B, C):
            await scene.started(url, client="few")
        waiting = [await scene.deliver(A, client="few") for _ in range(2)]
        for callback in held[:4]:
            await scene.answer(callback)
        assert [each.state for each in waiting] == [State.RUNNING] * 2, "one client's flood kept the other waiting"
        assert [each.state for each in late] == [State.RUNNING, State.RUNNING, State.IN_LINE]

    run(scenario, max_connections=100, max_connections_per_destination=20)


def test_the_client_that_holds_the_fewest_is_next() -> None:
    async def scenario(scene: Scene) -> None:
        proven = [f"http://{n}.example/" for n in range(12)]
        for url in (*proven, A, B, C):
            await scene.answer(await scene.started(url))
        held = [await scene.started(url, client="many") for url in proven[:9]]
        more = [await scene.parked(url, client="many") for url in proven[9:]]
        await scene.started(A, client="few")
        few = [await scene.parked(url, client="few") for url in (B, C)]
        for number, callback in enumerate(held[:3], 1):
            await scene.answer(callback)
            assert sum(each.state is State.RUNNING for each in few) == min(number, 2)
        assert {each.state for each in more} <= {State.IN_LINE, State.RUNNING}

    run(scenario, max_connections=10)


def test_a_client_that_is_alone_leaves_a_tenth_for_the_next() -> None:
    async def scenario(scene: Scene) -> None:
        proven = [f"http://{n}.example/" for n in range(100)]
        for url in proven:
            await scene.answer(await scene.started(url))
        held = [await scene.deliver(url) for url in proven]
        assert sum(each.state is State.RUNNING for each in held) == 90
        for n in range(5):
            await scene.started(f"http://new-{n}.example/", client="next")

    run(scenario)


def test_destinations_that_hang_leave_as_many_connections_as_each_of_them_holds() -> None:
    async def scenario(scene: Scene) -> None:
        hanging = [f"http://{n}.example/" for n in range(5)]
        for url in (*hanging, A):
            await scene.answer(await scene.started(url))
        for url in hanging * 20:
            await scene.deliver(url)
        for _ in range(5):
            await scene.started(A)

    run(scenario)


def test_a_proven_destination_that_hangs_is_no_longer_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chargegate.delivering.dispatch._PROMPT_S", 0.05)
    monkeypatch.setattr("chargegate.delivering.dispatch._SWEEP_S", 0.01)

    async def scenario(scene: Scene) -> None:
        await scene.answer(await scene.started(A))
        (destination,) = scene.deliveries._dispatch._destinations.all()
        hanging = [await scene.started(A) for _ in range(6)]
        assert destination.proven(asyncio.get_running_loop().time())
        await scene.until(lambda: destination.late == 6)
        assert not destination.proven(asyncio.get_running_loop().time())
        assert (await scene.started(A)).connection.proven is False
        for callback in hanging:
            await scene.answer(callback)
        assert destination.late == 0

    run(scenario)


# Names


def test_a_name_is_looked_up_before_a_connection_is_taken() -> None:
    async def scenario(scene: Scene) -> None:
        scene.ways["a.example"] = None
        waiting = [await scene.parked(A) for _ in range(3)]
        await scene.started(B)
        assert (scene.asked, scene.sent) == (["a.example"], ["request-4"])
        await scene.name("a.example", [ip_address("192.0.2.7")])
        assert [each.state for each in waiting] == [State.RUNNING] * 3
        connection = waiting[0].connection
        assert connection is not None
        assert connection.way == [ip_address("192.0.2.7")]

    run(scenario)


def test_a_name_that_no_server_answers_for_costs_nothing_and_is_asked_again() -> None:
    async def scenario(scene: Scene) -> None:
        scene.ways["a.example"] = None
        callback = await scene.parked(A)
        await scene.name("a.example", NotSent("name_not_resolved"))
        assert (callback.state, callback.attempts, scene.count("not_sent")) == (State.IN_LINE, 0, 1)
        scene.ways["a.example"] = None
        await scene.until(lambda: len(scene.asked) == 2)
        await scene.name("a.example", [ip_address("192.0.2.1")])
        await scene.answer(callback)
        assert (callback.state, callback.attempts) == (State.DELIVERED, 1)
        assert scene.circuit == []

    run(scenario, circuit_failures=1)


def test_a_name_that_does_not_exist_is_an_attempt() -> None:
    async def scenario(scene: Scene) -> None:
        scene.ways["a.example"] = None
        callback = await scene.parked(A)
        failure = ConnectFailed("name_not_resolved")
        await scene.name("a.example", failure)
        assert callback.state is State.RUNNING
        assert callback.connection is not None
        assert callback.connection.way is failure

    run(scenario)


def test_a_kept_connection_that_is_gone_means_one_more_look_up() -> None:
    async def scenario(scene: Scene) -> None:
        callback = await scene.started(A)
        scene.ways["a.example"] = None
        await scene.answer(callback, NAME_NEEDED)
        assert (callback.state, callback.attempts, scene.asked) == (State.IN_LINE, 0, ["a.example"])
        await scene.name("a.example", [ip_address("192.0.2.1")])
        await scene.answer(callback)
        assert (callback.state, callback.attempts, scene.circuit) == (State.DELIVERED, 1, [])

    run(scenario, circuit_failures=1)


def test_the_deadline_ends_what_waits_for_its_name() -> None:
    async def scenario(scene: Scene) -> None:
        scene.ways["a.example"] = None
        callback = await scene.parked(A, deadline_in=100)
        await scene.until(lambda: scene.ended)
        assert (callback.attempts, callback.error) == (0, "no_usable_address")

    run(scenario)


@pytest.mark.parametrize("slow", [True, False])
def test_a_destination_that_answers_late_or_not_at_all_is_not_proven(
    slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chargegate.delivering.dispatch._PROMPT_S", -1.0 if slow else 60.0)

    async def scenario(scene: Scene) -> None:
        await scene.answer(await scene.started(A))
        for _ in range(0 if slow else 2):
            await scene.answer(await scene.started(A), REFUSED)
        callbacks = [await scene.deliver(A) for _ in range(12)]
        assert sum(each.state is State.RUNNING for each in callbacks) == 3

    run(scenario, max_connections=10, retries=RetryPolicy(1, 0, 0))


def test_room_is_made_by_the_client_that_has_the_most() -> None:
    async def scenario(scene: Scene) -> None:
        for n in range(3):
            await scene.started(f"http://{n}.example/", client="flood")
        for n in range(30):
            await scene.parked(f"http://{n % 3}.example/", client="flood")
        await scene.started(A, client="quiet")
        mine = [await scene.parked(A, client="quiet") for _ in range(20)]
        scene.deliveries.make_room()
        await scene.settled()
        assert {each.client for each in scene.ended} == {"flood"}
        assert len(scene.ended) == 2
        assert {each.state for each in mine} == {State.IN_LINE}

    run(scenario, max_parked=50, max_connections_per_destination=1)


# Pauses, and what was not sent


def test_a_pause_costs_no_attempt_and_holds_all_back() -> None:
    async def scenario(scene: Scene) -> None:
        refused, other = await scene.started(), await scene.started()
        await scene.answer(refused, pauses(0))
        assert (refused.state, refused.attempts, refused.error) == (State.IN_LINE, 0, "http_429")
        await scene.parked()
        await scene.started(B)
        await scene.answer(other)
        assert other.state is State.DELIVERED
        await scene.until(lambda: scene.sent.count(refused.request_id) == 2)
        await scene.answer(refused)
        assert (refused.state, refused.attempts, refused.error) == (State.DELIVERED, 1, None)
        assert (scene.count("paused"), scene.count("retry")) == (1, 0)
        assert scene.retried == []

    run(scenario)


def test_a_refusal_halves_the_limit_once_a_pause_and_success_brings_it_back() -> None:
    async def scenario(scene: Scene) -> None:
        for callback in [await scene.started() for _ in range(8)]:
            await scene.answer(callback, pauses(0))
        (destination,) = scene.deliveries._dispatch._destinations.all()
        assert (destination.limit, destination.pauses) == (4, 1)
        await scene.until(lambda: len(scene.sent) == 12)
        await scene.passed(20)
        assert len(scene.sent) == 12
        while scene._answers:
            request_id = next(iter(scene._answers))
            scene._answers.pop(request_id).set_result(OK)
            await scene.settled()
        while destination.limit < 8:
            await scene.answer(await scene.started())
        assert len(scene.ended) < 60

    run(scenario, max_connections_per_destination=8)


@pytest.mark.parametrize("attempt", [pauses(3_000), NOT_SENT])
def test_the_deadline_ends_what_is_refused_or_not_sent(attempt: Attempt) -> None:
    async def scenario(scene: Scene) -> None:
        callback = await scene.started(deadline_in=400)
        await scene.answer(callback, attempt)
        behind = await scene.deliver(deadline_in=300) if attempt.outcome is Outcome.REFUSED else None
        while callback not in scene.ended:
            await scene.passed(5)
            if callback.state is State.RUNNING and callback.request_id in scene._answers:
                await scene.answer(callback, attempt)
        assert (callback.attempts, callback.error) == (0, attempt.error)
        assert behind is None or behind.error == "http_429"
        assert scene.deliveries.open_circuits == 0

    run(scenario, circuit_failures=1)


def test_what_was_not_sent_says_nothing_of_the_destination() -> None:
    async def scenario(scene: Scene) -> None:
        callback = await scene.started()
        await scene.answer(callback, NOT_SENT)
        assert (callback.state, callback.attempts) == (State.WAITING, 0)
        assert scene.circuit == []
        await scene.until(lambda: len(scene.sent) == 2)
        await scene.answer(callback)
        assert (callback.state, callback.attempts) == (State.DELIVERED, 1)
        assert (scene.count("not_sent"), scene.count("retry")) == (1, 0)

    run(scenario, circuit_failures=1)


# Circuits


def test_a_circuit_opens_after_so_many_failures_to_reach() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.open_circuit(A, failures=2)
        assert scene.deliveries.open_circuits == 0
        await scene.open_circuit(A, failures=1)
        assert scene.deliveries.open_circuits == 1
        assert scene.circuit == ["open"]
        await scene.parked(A)
        await scene.started(B)

    run(scenario, circuit_probe_ms=60_000, retries=RetryPolicy(1, 0, 0))


def test_an_answer_of_any_status_starts_the_count_again() -> None:
    async def scenario(scene: Scene) -> None:
        for _ in range(5):
            await scene.open_circuit(A, failures=2)
            await scene.answer(await scene.started(A), ERROR)
        assert scene.circuit == []

    run(scenario, retries=RetryPolicy(1, 0, 0))


def test_a_probe_an_interval_uses_up_no_attempt_until_one_gets_through() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.open_circuit()
        waiting = {callback.request_id: callback for callback in [await scene.parked() for _ in range(3)]}
        for probes in range(1, 4):
            await scene.until(lambda probes=probes: len(scene.sent) == 3 + probes)
            probe = waiting[scene.sent[-1]]
            await scene.answer(probe, REFUSED)
            assert (probe.state, probe.attempts) == (State.IN_LINE, 0), "it was counted as an attempt"
            assert scene.deliveries.parked == 3
        await scene.until(lambda: len(scene.sent) == 7)
        await scene.answer(waiting[scene.sent[-1]])
        assert scene.deliveries.open_circuits == 0
        assert scene.circuit == ["open", "closed"]
        assert set(scene.sent[6:]) == waiting.keys()
        assert scene.deliveries.parked == 0

    run(scenario, retries=RetryPolicy(1, 0, 0))


def test_only_one_probe_at_a_time() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.open_circuit()
        for _ in range(3):
            await scene.deliver()
        await scene.until(lambda: len(scene.sent) == 4)
        await scene.parked()
        await scene.passed(20)
        assert len(scene.sent) == 4

    run(scenario, circuit_probe_ms=5, retries=RetryPolicy(1, 0, 0))


def test_a_new_callback_may_be_the_probe() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.open_circuit()
        await scene.passed(20)
        probe = await scene.started()
        await scene.answer(probe, REFUSED)
        assert (probe.state, probe.attempts) == (State.IN_LINE, 0)
        assert scene.deliveries.parked == 1

    run(scenario, circuit_probe_ms=5, retries=RetryPolicy(1, 0, 0))


def test_what_was_under_way_when_the_circuit_opened_counts_as_tried() -> None:
    async def scenario(scene: Scene) -> None:
        running = [await scene.started() for _ in range(5)]
        for callback in running:
            await scene.answer(callback, REFUSED)
        assert [callback.attempts for callback in running] == [1] * 5
        assert scene.deliveries.open_circuits == 1
        assert scene.circuit == ["open"]

    run(scenario, circuit_probe_ms=60_000)


def test_the_circuits_of_two_destinations_are_one_signal() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.open_circuit(A)
        await scene.open_circuit(B)
        assert scene.circuit == ["open"]
        probes = [await scene.parked(url) for url in (A, B)]
        await scene.until(lambda: len(scene.sent) == 8)
        await scene.answer(probes[0])
        assert scene.circuit == ["open"]
        await scene.answer(probes[1])
        assert scene.circuit == ["open", "closed"]

    run(scenario, circuit_probe_ms=500, retries=RetryPolicy(1, 0, 0))


def test_a_probe_that_is_no_longer_needed_forgets_nobody_else() -> None:
    """The timer of an old circuit rings while a new callback to the same destination is under way."""

    async def scenario(scene: Scene) -> None:
        running = [await scene.started() for _ in range(6)]
        for callback in running[:5]:
            await scene.answer(callback, REFUSED)
        assert scene.deliveries.open_circuits == 1
        await scene.answer(running[5])
        assert scene.deliveries.open_circuits == 0
        late = await scene.started()
        await scene.passed(200)
        await scene.answer(late)
        assert scene.ended[-1] is late

    run(scenario, circuit_failures=5, circuit_probe_ms=50, retries=RetryPolicy(1, 0, 0))


def test_a_circuit_that_nobody_asks_for_is_forgotten() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.open_circuit(A)
        await scene.open_circuit(B)
        await scene.parked(B)
        assert scene.deliveries.open_circuits == 2
        await scene.until(lambda: scene.deliveries.open_circuits == 1)
        await scene.passed(100)
        assert scene.deliveries.open_circuits == 1, "somebody waits for it"
        assert scene.circuit == ["open"]
        await scene.started(A)

    run(scenario, circuit_forget_ms=50, circuit_probe_ms=600_000, retries=RetryPolicy(1, 0, 0))


def forgetful(**limits: int) -> Destinations:
    chosen = {
        "max_per_destination": 20,
        "failure_threshold": 1,
        "probe_interval_ms": 600_000,
        "forget_after_ms": 600_000,
    }
    return Destinations(**(chosen | limits), on_room=lambda _: None, on_circuit=lambda _: None)


def called(destinations: Destinations, name: str, *, reachable: bool) -> Destination:
    destination = destinations.get(name)
    assert destination.startable
    destinations.take(destination)
    destinations.give_back(destination, probe=False, reachable=reachable)
    destinations.forget_if_idle(destination)
    return destination


@pytest.mark.parametrize("reachable", [True, False])
def test_hosts_without_end_are_forgotten(reachable: bool) -> None:
    async def main() -> None:
        destinations = forgetful()
        busy = destinations.get("busy")
        destinations.take(busy)
        for number in range(25_000):
            called(destinations, f"host-{number}", reachable=reachable)
        assert len(destinations.all()) <= 10_001
        assert destinations.open_circuits <= 10_001
        destinations.give_back(busy, probe=False, reachable=True)

    uvloop.run(main())


def test_one_hosts_circuit_survives_others_that_come_and_go() -> None:
    async def main() -> None:
        destinations = forgetful(failure_threshold=3)
        for _ in range(3):
            unreachable = called(destinations, "unreachable", reachable=False)
        assert destinations.get("unreachable") is unreachable
        Shares(1).park("client", unreachable, "what waits for it", in_line=True)
        for number in range(12_000):
            called(destinations, f"host-{number}", reachable=False)
        assert destinations.open_circuits == 1
        assert destinations.get("unreachable") is unreachable

    uvloop.run(main())


# Attempts and the waits between them


def test_a_failed_attempt_is_repeated_after_its_wait() -> None:
    async def scenario(scene: Scene) -> None:
        callback = await scene.started()
        await scene.answer(callback, ERROR)
        assert (callback.state, callback.attempts) == (State.WAITING, 1)
        assert scene.deliveries.parked == 1
        failed_at = time.monotonic()
        await scene.until(lambda: len(scene.sent) == 2)
        assert time.monotonic() - failed_at >= 0.015
        assert scene.sent == [callback.request_id] * 2
        assert scene.deliveries.parked == 0
        await scene.answer(callback)
        assert scene.ended == [callback]
        assert (callback.state, callback.attempts, callback.error) == (State.DELIVERED, 2, None)
        assert (scene.count("retry"), scene.count("delivered"), scene.count("dead_letter")) == (1, 1, 0)

    run(scenario)


def test_a_wait_begins_once_the_failed_attempt_is_persisted() -> None:
    async def scenario(scene: Scene) -> None:
        scene.recorded.clear()
        callback = await scene.started()
        await scene.answer(callback, ERROR)
        assert (callback.state, scene.deliveries.parked) == (State.RECORDING, 0)
        await scene.passed(60)
        assert len(scene.sent) == 1
        scene.recorded.set()
        await scene.until(lambda: len(scene.sent) == 2)
        assert scene.retried == [(callback, State.RECORDING, 1)]

    run(scenario)


@pytest.mark.parametrize(("last", "error"), [(ERROR, "http_500"), (REFUSED, "connection_refused"), (GONE, "http_410")])
def test_a_callback_is_given_up_with_its_last_error(last: Attempt, error: str) -> None:
    async def scenario(scene: Scene) -> None:
        callback = await scene.started()
        await scene.answer(callback, ERROR)
        await scene.until(lambda: len(scene.sent) == 2)
        await scene.answer(callback, last)
        assert scene.ended == [callback]
        assert (callback.state, callback.attempts) == (State.GIVEN_UP, 2)
        assert (callback.error, callback.last_status_code) == (error, last.status_code)
        assert (scene.count("retry"), scene.count("delivered"), scene.count("dead_letter")) == (1, 0, 1)

    run(scenario)


def test_gone_ends_it_at_the_first_attempt() -> None:
    async def scenario(scene: Scene) -> None:
        callback = await scene.started()
        await scene.answer(callback, GONE)
        assert scene.ended == [callback]
        assert (callback.attempts, callback.error) == (1, "http_410")

    run(scenario)


def test_who_waits_for_a_retry_holds_no_connection_and_no_place() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.answer(await scene.started(), asks_to_wait(600))
        await scene.started()

    run(scenario, concurrency=1, max_connections=1, max_connections_per_destination=1)


def test_a_wait_that_ends_at_a_busy_destination_goes_into_its_line() -> None:
    async def scenario(scene: Scene) -> None:
        first = await scene.started()
        await scene.answer(first, ERROR)
        second = await scene.started()
        await scene.until(lambda: first.state is State.IN_LINE)
        assert len(scene.sent) == 2
        assert scene.deliveries.parked == 1
        await scene.answer(second)
        assert scene.sent[2:] == [first.request_id]

    run(scenario, max_connections_per_destination=1)


def test_a_cancelled_attempt_gives_its_connection_back() -> None:
    async def scenario(scene: Scene) -> None:
        callback = await scene.started()
        waiting = await scene.parked()
        scene._answers.pop(callback.request_id).cancel()
        await scene.settled()
        assert callback.state is State.LEFT
        assert scene.sent == [callback.request_id, waiting.request_id]
        assert scene.ended == []

    run(scenario, max_connections=1)


def test_a_cancelled_probe_leaves_the_circuit_to_the_next() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.open_circuit()
        probe, waiting = await scene.parked(), await scene.parked()
        await scene.until(lambda: len(scene.sent) == 4)
        scene._answers.pop(probe.request_id).cancel()
        await scene.settled()
        assert scene.sent[4:] == [waiting.request_id]
        assert scene.deliveries.open_circuits == 1

    run(scenario, circuit_probe_ms=100, retries=RetryPolicy(1, 0, 0))


# Deadlines


def test_what_comes_too_late_is_not_sent() -> None:
    async def scenario(scene: Scene) -> None:
        callback = await scene.deliver(deadline_in=-1)
        assert scene.ended == [callback]
        assert (callback.state, callback.error, callback.attempts) == (State.GIVEN_UP, "deadline_exceeded", 0)
        assert scene.sent == []

    run(scenario)


def test_a_deadline_that_passes_while_all_places_are_taken_ends_it_unsent() -> None:
    """It has a connection already, which the next callback gets."""

    async def scenario(scene: Scene) -> None:
        gate = asyncio.Event()

        async def other_step(_: object) -> None:
            await gate.wait()

        callback = await scene.started(deadline_in=300)
        await scene.answer(callback, ERROR)
        scene.concurrency.run(other_step, None)
        await scene.until(lambda: callback.state is State.RUNNING)
        await scene.until(lambda: time.monotonic() >= callback.deadline)
        gate.set()
        await scene.settled()
        assert scene.ended == [callback]
        assert (callback.attempts, callback.error) == (1, "http_500")
        assert len(scene.sent) == 1
        await scene.started()

    run(scenario, concurrency=1, max_connections_per_destination=1)


def test_a_deadline_ends_waiting_in_a_line() -> None:
    async def scenario(scene: Scene) -> None:
        running = await scene.started()
        late, patient = await scene.parked(deadline_in=100), await scene.parked()
        await scene.until(lambda: scene.ended)
        assert scene.ended == [late]
        assert late.error == "deadline_exceeded"
        assert scene.deliveries.parked == 1
        await scene.answer(running)
        assert scene.sent[1:] == [patient.request_id]

    run(scenario, max_connections_per_destination=1)


def test_a_deadline_ends_waiting_for_a_circuit() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.open_circuit()
        late = await scene.parked(deadline_in=100)
        await scene.until(lambda: len(scene.ended) == 4)
        assert scene.ended[3] is late
        assert len(scene.sent) == 3
        assert scene.deliveries.parked == 0

    run(scenario, circuit_probe_ms=600_000, retries=RetryPolicy(1, 0, 0))


def test_a_deadline_ends_a_wait_that_would_outlast_it() -> None:
    async def scenario(scene: Scene) -> None:
        callback = await scene.started(deadline_in=150)
        await scene.answer(callback, asks_to_wait(3_600))
        assert callback.state is State.WAITING
        await scene.until(lambda: scene.ended)
        assert time.monotonic() >= callback.deadline
        assert scene.ended == [callback]
        assert (callback.attempts, callback.error) == (1, "http_500")
        assert len(scene.sent) == 1
        assert scene.deliveries.parked == 0

    run(scenario)


@pytest.mark.parametrize("probe", [True, False])
def test_a_failure_past_the_deadline_ends_it(probe: bool) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.open_circuit(failures=3 if probe else 0)
        callback = await scene.deliver(deadline_in=250)
        await scene.until(lambda: callback.request_id in scene.sent)
        await scene.until(lambda: time.monotonic() >= callback.deadline)
        await scene.answer(callback, REFUSED)
        assert scene.ended[-1] is callback
        assert (callback.attempts, callback.error) == (1, "connection_refused")
        assert scene.deliveries.parked == 0

    run(scenario, retries=RetryPolicy(1, 0, 0))


def test_nothing_starts_after_close() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.answer(await scene.started(C), ERROR)
        await scene.open_circuit(B)
        await scene.parked(B, deadline_in=100)
        scene.deliveries.close()
        sent, ended = len(scene.sent), len(scene.ended)
        await scene.passed(1_200)
        assert (len(scene.sent), len(scene.ended)) == (sent, ended)

    run(scenario, circuit_probe_ms=200, retries=RetryPolicy(2, 200, 200))
