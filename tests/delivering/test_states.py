"""The table of a callback's states, under whatever order of events comes."""

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chargegate.concurrency import ConcurrencyLimit
from chargegate.delivering import deliveries as module
from chargegate.delivering.deliveries import TRANSITIONS, Callback, CallbackLimits, Deliveries, Event, State
from chargegate.delivering.retry import RetryPolicy
from chargegate.delivering.sender import Attempt
from chargegate.model import now_ms, parse_callback_url
from chargegate.observe import Metrics

TARGETS = [parse_callback_url(f"http://{name}.example/") for name in "abc"]
FINAL = {State.DELIVERED, State.GIVEN_UP, State.LEFT}
MAX, MAX_EACH, MAX_PARKED = 3, 2, 8
ANSWERS = [
    Attempt(True, False, True, 200, None, None),
    Attempt(False, False, True, 500, "http_500", None),
    Attempt(False, False, True, 503, "http_503", "7"),
    Attempt(False, False, False, None, "timeout", None),
    Attempt(False, False, False, None, "connection_refused", None),
    Attempt(False, True, True, 410, "http_410", None),
]

new = st.tuples(st.just("new"), st.integers(0, 2), st.sampled_from([60_000, 60_000, 20_000, 3_000, 0]))
answered = st.tuples(st.just("answered"), st.integers(0, 2), st.sampled_from(ANSWERS))
cancelled = st.tuples(st.just("cancelled"), st.integers(0, 2), st.none())
passes = st.tuples(st.just("passes"), st.sampled_from([0.5, 2, 6, 30]), st.none())
room = st.tuples(st.just("room"), st.none(), st.none())
persisting = st.tuples(st.just("persisting"), st.booleans(), st.none())
events = st.lists(
    new | new | new | answered | answered | cancelled | passes | room | persisting, min_size=15, max_size=80
)


class Loop(asyncio.SelectorEventLoop):
    """A loop whose clock the test moves."""

    now = 0.0

    def time(self) -> float:
        return self.now


class Scene:
    """Deliveries, and everything that was handed to them."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.callbacks: list[Callback] = []
        self.ended: list[Callback] = []
        self.answers: dict[str, asyncio.Future[Attempt]] = {}
        self.persisting = asyncio.Event()
        self.persisting.set()
        self.concurrency = ConcurrencyLimit(1_000, lambda: None)
        self.deliveries = Deliveries(
            sender=self,  # type: ignore[arg-type]  # it has the one method that is used
            limits=CallbackLimits(
                retries=RetryPolicy(3, 1_000, 10_000),
                deadline_ms=60_000,
                max_parked=MAX_PARKED,
                max_connections=MAX,
                max_connections_per_destination=MAX_EACH,
                circuit_failures=1,
                circuit_probe_ms=5_000,
            ),
            concurrency=self.concurrency,
            metrics=Metrics(),
            on_retry=self.retry,
            on_end=self.end,
        )

    async def send(self, request_id: str, *_: object) -> Attempt:
        self.answers[request_id] = self.loop.create_future()
        return await self.answers[request_id]

    async def retry(self, callback: Callback) -> None:
        assert callback.state is State.RECORDING
        await self.persisting.wait()

    async def end(self, callback: Callback) -> None:
        self.ended.append(callback)

    def happens(self, kind: str, what: Any, how: Any) -> None:
        if kind == "new":
            name = f"request-{len(self.callbacks)}"
            callback = Callback(name, TARGETS[what], b"{}", "", 0, now_ms() + how)
            self.callbacks.append(callback)
            self.concurrency.run(self.deliveries.deliver, callback)
        elif kind in ("answered", "cancelled") and self.answers:
            answer = self.answers.pop(sorted(self.answers)[what % len(self.answers)])
            if kind == "answered":
                answer.set_result(how)
            else:
                answer.cancel()
        elif kind == "passes":
            self.loop.now += what
        elif kind == "room":
            assert self.deliveries.make_room() == (self.deliveries.parked < MAX_PARKED)
        elif kind == "persisting":
            (self.persisting.set if what else self.persisting.clear)()

    async def settled(self) -> None:
        for _ in range(12):
            await asyncio.sleep(0)

    def check(self) -> None:
        """The counters say what the states say, no limit is passed, and nobody waits for nothing."""
        destinations = self.deliveries._destinations
        states = Counter(callback.state for callback in self.callbacks)
        assert self.deliveries.parked == states[State.IN_LINE] + states[State.WAITING]
        assert destinations.running == states[State.RUNNING] == len(self.answers) <= MAX
        assert self.deliveries.open_circuits == sum(destination.open for destination in destinations.all())
        for destination in destinations.all():
            mine = [each for each in self.callbacks if each.target.destination == destination.key]
            running = [each for each in mine if each.state is State.RUNNING]
            in_line = [each for each in mine if each.state is State.IN_LINE]
            assert destination.running == len(running) <= MAX_EACH
            assert destination.probing == any(each.probing for each in running)
            assert Counter(map(id, in_line)) == Counter(id(c) for c in destination.line if c.state is State.IN_LINE)
            if in_line and destinations.running < MAX:
                if destination.open:
                    assert destination.probing or destination.probe_at + 0.01 > self.loop.now
                else:
                    assert destination.running == MAX_EACH
        known = {destination.key for destination in destinations.all()}
        assert {c.target.destination for c in self.callbacks if c.state in (State.IN_LINE, State.RUNNING)} <= known
        assert Counter(map(id, self.ended)) == Counter(
            id(callback) for callback in self.callbacks if callback.state in (State.DELIVERED, State.GIVEN_UP)
        )
        assert {callback.state for callback in self.callbacks if callback.probing} <= {State.RUNNING}
        assert self.concurrency.failed == 0

    async def to_its_end(self) -> None:
        """Nobody answers any more, and the time goes on."""
        self.persisting.set()
        for _ in range(10):
            for answer in self.answers.values():
                answer.set_result(ANSWERS[3])
            self.answers.clear()
            self.loop.now += 30
            await self.settled()
        assert {callback.state for callback in self.callbacks} <= FINAL
        assert self.deliveries.parked == self.deliveries._destinations.running == 0


@settings(max_examples=300, deadline=None)
@given(events)
def test_the_counters_say_what_the_states_say(happening: list[tuple[str, Any, Any]]) -> None:
    loop = Loop()

    async def main() -> None:
        scene = Scene(loop)
        for each in happening:
            scene.happens(*each)
            await scene.settled()
            scene.check()
        await scene.to_its_end()
        scene.check()
        await scene.concurrency.drain(0)
        scene.deliveries.close()

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=lambda: loop) as runner:
        patch.setattr(module, "time", SimpleNamespace(monotonic=loop.time))
        runner.run(main())


def test_every_state_has_its_row_and_every_event_its_use() -> None:
    assert TRANSITIONS.keys() == set(State)
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)
    assert {state for state, row in TRANSITIONS.items() if not row} == FINAL
    reached = {State.NEW}.union(*(row.values() for row in TRANSITIONS.values()))
    assert reached == set(State)
