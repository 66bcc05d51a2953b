"""What processes say of themselves to each other, and what is made of it."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from chargegate.ledger.base import LedgerUnavailable
from chargegate.observe import Metrics
from chargegate.operations.health import Component
from chargegate.operations.processes import Circuit, Lag, Process, Processes, Report, Reporter, Reporting, together

PREFIX = "process:"


class Values:
    """Values by name, as a database keeps them."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.away = False

    async def put_value_if_absent(self, name: str, value: str) -> str:
        return self.kept.setdefault(name, value)

    async def value(self, name: str) -> str | None:
        return self.kept.get(name)

    async def put_value(self, name: str, value: str) -> None:
        self.kept[name] = value

    async def values_of(self, prefix: str) -> dict[str, str]:
        if self.away:
            raise LedgerUnavailable("away")
        return {name: value for name, value in self.kept.items() if name.startswith(prefix)}

    async def drop_values(self, names: Sequence[str]) -> None:
        for name in names:
            self.kept.pop(name, None)


class Time:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def report(number: int, **changes: object) -> Report:
    plain = Report("worker", number, 0, 0, 0, {"callbacks": Component("UP")}, [], [])
    return msgspec.structs.replace(plain, **changes)


def say(values: Values, name: str, said: Report) -> None:
    values.kept[PREFIX + name] = msgspec.json.encode(said).decode()


def test_how_long_the_others_could_be_heard() -> None:
    async def scenario() -> None:
        values, time = Values(), Time()
        processes = Processes(values, "me", time)
        assert processes.readable_ms == 0
        await processes.read()
        time.now += 3
        await processes.read()
        assert processes.readable_ms == 3000
        values.away = True
        with pytest.raises(LedgerUnavailable):
            await processes.read()
        time.now += 9
        assert processes.readable_ms == 0
        values.away = False
        await processes.read()
        time.now += 0.5
        await processes.read()
        assert processes.readable_ms == 500, "who was silent while nobody could speak may live"

    asyncio.run(scenario())


def test_who_says_nothing_new_is_silent_and_then_forgotten() -> None:
    async def scenario() -> None:
        values, time = Values(), Time()
        processes = Processes(values, "me", time)
        say(values, "me", report(1))
        say(values, "a", report(1))
        say(values, "b", report(1))
        say(values, "desk", report(1, role="api"))
        values.kept[PREFIX + "newer"] = '{"another": "release"}'
        values.kept["other"] = "value"
        assert await processes.read() == [
            Process("a", "worker", 0), Process("b", "worker", 0), Process("desk", "api", 0),
        ]  # fmt: skip
        time.now += 2.4
        assert not any(each.silent for each in await processes.read())
        time.now += 0.2
        say(values, "b", report(2))
        assert [(each.name, each.silent) for each in await processes.read()] == [
            ("a", True), ("b", False), ("desk", True),
        ]  # fmt: skip
        assert [said.number for said, _ in processes.reports()] == [2]
        time.now += 60
        say(values, "b", report(3))
        # The only API is kept: it is told that none is there, for as long as that is so.
        assert [each.name for each in await processes.read()] == ["b", "desk"]
        assert PREFIX + "a" not in values.kept
        say(values, "a", report(7))
        assert [each.name for each in await processes.read()] == ["a", "b", "desk"]

    asyncio.run(scenario())


def test_what_others_accept_is_counted_from_when_they_are_heard() -> None:
    async def scenario() -> None:
        values = Values()
        processes = Processes(values, "me")
        for number, accepted in enumerate((1000, 1003, 1003, 5, 9)):  # it was started again
            say(values, "a", report(number, accepted=accepted))
            await processes.read()
        assert processes.accepted == 7

    asyncio.run(scenario())


def test_a_process_tells_of_itself_until_it_ends() -> None:
    async def scenario() -> None:
        values, metrics = Values(), Metrics()
        metrics.circuit("authorization")("open")
        metrics.audit_lag.labels("csv").set(2.5)
        metrics.in_flight.set(4)

        async def part() -> Component:
            return Component("DEGRADED", {"circuit": "open"})

        reporter = Reporter(role="worker", metrics=metrics, oldest_question_ms=lambda: 70)
        reporting = Reporting(reporter, {"authorization": part}, values, "a")
        processes = Processes(values, "me")
        while not (found := await processes.read()):
            await asyncio.sleep(0.01)
        assert found == [Process("a", "worker", 0)]
        [(said, age)] = processes.reports()
        assert age < 2500
        assert said.components == {"authorization": Component("DEGRADED", {"circuit": "open"})}
        assert (said.circuits, said.sinks) == ([Circuit("authorization", "open")], [Lag("csv", 2.5)])
        assert (said.in_flight, said.oldest_question_ms) == (4, 70)
        await reporting.close()
        assert await processes.read() == []

    asyncio.run(scenario())


def test_of_several_the_worst_is_shown() -> None:
    own = report(1, components={"queue": Component("UP"), "clock": Component("UP")}, accepted=3)
    well = report(
        1, in_flight=2, components={"audit": Component("UP"), "clock": Component("UP", {"ahead_ms": 1})},
        circuits=[Circuit("callbacks", "closed")], sinks=[Lag("csv", 1.0)],
    )  # fmt: skip
    ill = report(
        1, in_flight=5, oldest_question_ms=3000,
        components={"audit": Component("DEGRADED"), "clock": Component("DOWN")},
        circuits=[Circuit("callbacks", "open")], sinks=[Lag("csv", 0.5), Lag("influx", 9.0)],
    )  # fmt: skip
    for others in ([well, ill], [ill, well]):
        whole = together(own, [(each, 500) for each in others])
        assert {name: each.status for name, each in whole.components.items()} == {
            "queue": "UP", "clock": "DOWN", "audit": "DEGRADED",
        }  # fmt: skip
        assert whole.circuits == [Circuit("callbacks", "open")]
        assert sorted(whole.sinks, key=lambda lag: lag.sink) == [Lag("csv", 1.0), Lag("influx", 9.0)]
        assert (whole.in_flight, whole.oldest_question_ms, whole.accepted) == (7, 3500, 3)
    assert together(own, []) == msgspec.structs.replace(own, circuits=[], sinks=[])


@pytest.mark.parametrize("question", [0, 10])
def test_a_question_that_was_answered_does_not_grow(question: int) -> None:
    whole = together(report(1), [(report(1, oldest_question_ms=question), 900)])
    assert whole.oldest_question_ms == (910 if question else 0)
