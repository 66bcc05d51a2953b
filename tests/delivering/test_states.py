"""The table of a callback's states, under whatever order of events comes."""

import asyncio
from collections import Counter
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chargegate.concurrency import ConcurrencyLimit
from chargegate.delivering import deliveries as module
from chargegate.delivering import dispatch as dispatch_module
from chargegate.delivering import states as states_module
from chargegate.delivering.deliveries import Deliveries
from chargegate.delivering.retry import RetryPolicy
from chargegate.delivering.sender import Attempt, Outcome, Way
from chargegate.delivering.states import TRANSITIONS, Callback, CallbackLimits, Event, State
from chargegate.http1 import ConnectFailed, NotSent
from chargegate.model import CallbackTarget, now_ms, parse_callback_url
from chargegate.observe import Metrics

TARGETS = [parse_callback_url(f"http://{name}.example/") for name in "abcd"]
CLIENTS = ["first", "second", "third"]
FINAL = {State.DELIVERED, State.GIVEN_UP, State.LEFT}
MAX, MAX_EACH, MAX_PARKED = 6, 2, 12
MAX_UNPROVEN = MAX // 2
ANSWERS = [
    Attempt(Outcome.DELIVERED, 200, None),
    Attempt(Outcome.FAILED, 500, "http_500"),
    Attempt(Outcome.FAILED, 500, "http_500", "7"),
    Attempt(Outcome.UNREACHABLE, None, "timeout"),
    Attempt(Outcome.UNREACHABLE, None, "connection_refused"),
    Attempt(Outcome.GONE, 410, "http_410"),
    Attempt(Outcome.REFUSED, 429, "http_429"),
    Attempt(Outcome.REFUSED, 503, "http_503", "9"),
    Attempt(Outcome.NOT_SENT, None, "no_socket"),
    Attempt(Outcome.NAME_NEEDED, None, "no_usable_address"),
    Attempt(Outcome.NO_ADDRESS, None, "no_usable_address"),
]
KNOWN: Way = [ip_address("192.0.2.1")]
WAYS: list[Way | None] = [KNOWN, KNOWN, None, NotSent("name_not_resolved"), ConnectFailed("name_not_resolved")]
TIMEOUT = ANSWERS[3]

new = st.tuples(
    st.just("new"),
    st.tuples(st.sampled_from(TARGETS), st.sampled_from(CLIENTS), st.sampled_from([1, 1, 5])),
    st.sampled_from([60_000, 20_000, 3_000, 0]),
)
answered = st.tuples(st.just("answered"), st.integers(0, 9), st.sampled_from(ANSWERS))
delivered = st.tuples(st.just("answered"), st.integers(0, 9), st.just(ANSWERS[0]))
cancelled = st.tuples(st.just("cancelled"), st.integers(0, 9), st.none())
passes = st.tuples(st.just("passes"), st.sampled_from([0.5, 2, 6, 30, 400]), st.none())
room = st.tuples(st.just("room"), st.none(), st.none())
persisting = st.tuples(st.just("persisting"), st.booleans(), st.none())
named = st.tuples(st.just("named"), st.sampled_from(TARGETS), st.sampled_from(WAYS))
events = st.lists(
    new | new | new | answered | answered | delivered | cancelled | passes | room | persisting | named, max_size=60
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
        self.ways: dict[str, Way | None] = {}
        self.asked: dict[str, asyncio.Future[None]] = {}
        self.persisting = asyncio.Event()
        self.persisting.set()
        self.concurrency = ConcurrencyLimit(1_000, lambda: None)
        self.deliveries = Deliveries(
            sender=self,  # type: ignore[arg-type]  # it has the methods that are used
            limits=CallbackLimits(
                retries=RetryPolicy(3, 1_000, 10_000),
                deadline_ms=60_000,
                max_parked=MAX_PARKED,
                max_connections=MAX,
                max_connections_per_destination=MAX_EACH,
                circuit_failures=1,
                circuit_probe_ms=5_000,
                circuit_forget_ms=30_000,
            ),
            concurrency=self.concurrency,
            metrics=Metrics(),
            on_retry=self.retry,
            on_end=self.end,
        )

    async def send(self, request_id: str, *_: object) -> Attempt:
        self.answers[request_id] = self.loop.create_future()
        return await self.answers[request_id]

    def way(self, target: CallbackTarget) -> Way | None:
        return self.ways.get(target.host, KNOWN)

    async def look_up(self, target: CallbackTarget) -> None:
        self.asked[target.host] = self.loop.create_future()
        await self.asked[target.host]

    def name(self, host: str, way: Way | None) -> None:
        """From now on the name is known, or known to be bad, or forgotten."""
        self.ways[host] = way
        if way is not None and host in self.asked:
            self.asked.pop(host).set_result(None)

    async def retry(self, callback: Callback) -> None:
        assert callback.state is State.RECORDING
        await self.persisting.wait()

    async def end(self, callback: Callback) -> None:
        self.ended.append(callback)

    def happens(self, kind: str, what: Any, how: Any) -> None:
        if kind == "new":
            target, client, count = what
            for _ in range(count):
                name = f"request-{len(self.callbacks)}"
                self.callbacks.append(Callback(name, target, b"{}", "", 0, now_ms() + how, client))
                self.concurrency.run(self.deliveries.deliver, self.callbacks[-1])
        elif kind in ("answered", "cancelled") and self.answers:
            answer = self.answers.pop(sorted(self.answers)[what % len(self.answers)])
            if kind == "answered":
                answer.set_result(how)
            else:
                answer.cancel()
        elif kind == "passes":
            self.loop.now += what
        elif kind == "named":
            self.name(what.host, how)
        elif kind == "room":
            self.shed()
        elif kind == "persisting":
            (self.persisting.set if what else self.persisting.clear)()

    def shed(self) -> None:
        """Room is always made, by those who had the most."""
        parked = [each for each in self.callbacks if each.state in (State.IN_LINE, State.WAITING)]
        self.deliveries.make_room()
        assert self.deliveries.parked < MAX_PARKED
        lost = Counter(each.client for each in parked if each.error == "too_many_waiting")
        before = Counter(each.client for each in parked)
        for client, count in lost.items():
            assert before[client] - count >= max(before[each] - lost[each] for each in before) - 1

    async def settled(self) -> None:
        for _ in range(12):
            await asyncio.sleep(0)

    def check(self) -> None:
        """The counters say what the states say, no limit is passed, and nobody waits for nothing."""
        deliveries = self.deliveries
        shares, destinations = deliveries._dispatch._shares, deliveries._dispatch._destinations.all()
        states = Counter(callback.state for callback in self.callbacks)
        assert deliveries.parked == states[State.IN_LINE] + states[State.WAITING]
        assert shares.running == states[State.RUNNING] == len(self.answers) <= MAX
        assert shares.unproven <= MAX_UNPROVEN
        assert deliveries.open_circuits == sum(destination.open for destination in destinations)
        for destination in destinations:
            mine = [each for each in self.callbacks if each.target.destination == destination.key]
            running = [each.connection for each in mine if each.state is State.RUNNING]
            assert destination.running == len(running) <= MAX_EACH
            assert 1 <= destination.limit <= MAX_EACH
            assert destination.probing == any(each is not None and each.probe for each in running)
            for state, kind in ((State.IN_LINE, "in_line"), (State.WAITING, "waiting")):
                expected = Counter(id(each) for each in mine if each.state is state)
                assert Counter(id(c) for line in destination.lines.values() for c in getattr(line, kind)) == expected
            assert all(destination.lines.values()), "a line is kept that nobody stands in"
            assert destination.late == sum(each is not None and each.late for each in running)
            if destination.nameless and destination.lines:
                assert mine[0].target.host in self.asked, "it waits for a name that nobody looks up"
        known = {destination.key for destination in destinations}
        kept = (State.IN_LINE, State.WAITING, State.RUNNING)
        assert {c.target.destination for c in self.callbacks if c.state in kept} <= known
        self.check_clients()
        assert Counter(map(id, self.ended)) == Counter(
            id(callback) for callback in self.callbacks if callback.state in (State.DELIVERED, State.GIVEN_UP)
        )
        assert self.concurrency.failed == 0

    def check_clients(self) -> None:
        shares, now = self.deliveries._dispatch._shares, self.loop.time()
        active = {c.client for c in self.callbacks if c.state in (State.IN_LINE, State.WAITING, State.RUNNING)}
        assert shares._clients.keys() == active
        for name in active:
            mine = [each for each in self.callbacks if each.client == name]
            running = [each.connection for each in mine if each.state is State.RUNNING]
            client = shares.client(name)
            assert client.running == len(running)
            assert client.unproven == sum(each is not None and not each.proven for each in running)
            assert client.parked == sum(each.state in (State.IN_LINE, State.WAITING) for each in mine)
            for line in client.lines.values():
                if line.in_line and line.destination.startable:
                    proven = line.destination.proven(now)
                    assert not shares.may_take(client, line.destination, proven=proven), (
                        "it waits while a connection is free for it"
                    )
                    free = min(MAX - shares.running, MAX if proven else MAX_UNPROVEN - shares.unproven)
                    assert running or not free, "one that holds nothing waits while a connection is free"

    async def to_its_end(self) -> None:
        """Nobody answers any more, and the time goes on."""
        self.persisting.set()
        for target in TARGETS:
            self.name(target.host, KNOWN)
        for _ in range(12):
            for answer in self.answers.values():
                answer.set_result(TIMEOUT)
            self.answers.clear()
            self.loop.now += 30
            await self.settled()
        assert {callback.state for callback in self.callbacks} <= FINAL
        shares = self.deliveries._dispatch._shares
        assert shares.parked == shares.running == shares.unproven == len(shares._clients) == 0
        assert self.deliveries.open_circuits == self.deliveries.overdue == 0


@settings(max_examples=300, deadline=None)
@given(events)
def test_the_counters_say_what_the_states_say(happening: list[tuple[str, Any, Any]]) -> None:
    loop = Loop()
    loop.now = 1_000.0

    async def main() -> None:
        scene = Scene(loop)
        try:
            for each in happening:
                scene.happens(*each)
                await scene.settled()
                scene.check()
            await scene.to_its_end()
            scene.check()
        finally:
            await scene.concurrency.drain(0)
            scene.deliveries.close()

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=lambda: loop) as runner:
        for each in (module, dispatch_module, states_module):
            patch.setattr(each, "time", SimpleNamespace(monotonic=loop.time))
        runner.run(main())


def test_every_state_has_its_row_and_every_event_its_use() -> None:
    assert TRANSITIONS.keys() == set(State)
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)
    assert {state for state, row in TRANSITIONS.items() if not row} == FINAL
    reached = {State.NEW}.union(*(row.values() for row in TRANSITIONS.values()))
    assert reached == set(State)
