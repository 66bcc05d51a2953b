"""What the suite tries of what could be tried, and what is left for ``make soak``."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def few_or_many(few: int, many: int) -> pytest.MarkDecorator:
    """The test gets ``examples``: the few, and under the soak mark the many."""
    long = pytest.param(many, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])
    return pytest.mark.parametrize("examples", [few, long])


def some_of(name: str, every: Iterable[Any], kept: Collection[Any], *, indirect: bool = False) -> pytest.MarkDecorator:
    """The test gets each value in turn, as ``name``. The suite has those that are kept, and the rest is for soak.

    It is for what behaves alike with each value, such as an engine, where other tests hold each of them to the same
    promise. A name of a fixture needs ``indirect``.
    """
    values = list(every)
    assert kept, "the suite would have none of them"
    assert set(kept) <= set(values), f"{set(kept) - set(values)} does not exist"
    cases = [pytest.param(value, marks=[] if value in kept else [pytest.mark.soak]) for value in values]
    return pytest.mark.parametrize(name, cases, indirect=indirect)


def first_of(count: int, cases: Iterable[Any]) -> list[Any]:
    """Cases of which the suite has the first, and the rest is for soak.

    It is for cases that each start a process only to read why it refuses something, where tests of the inside have
    every case.
    """
    return [
        case if place < count else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.soak)
        for place, case in enumerate(cases)
    ]


def in_turns(
    names: tuple[str, str],
    first: Sequence[str],
    second: Iterable[str],
    *,
    marks: Mapping[str, Collection[pytest.MarkDecorator]],
    indirect: Sequence[str] = (),
) -> pytest.MarkDecorator:
    """Every pair of the two. In the suite those of the first take turns with those of the second, and the other pairs
    are for soak. ``marks`` are those that one of the first needs."""
    pairs = [
        pytest.param(one, other, marks=[*marks.get(one, ()), *[pytest.mark.soak] * (turn != place % len(first))])
        for place, other in enumerate(second)
        for turn, one in enumerate(first)
    ]
    return pytest.mark.parametrize(names, pairs, indirect=list(indirect))


def try_many(examples: int, strategy: st.SearchStrategy[Any], test: Callable[[Any], None]) -> None:
    """Run the test on so many examples of the strategy."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings(max_examples=examples, deadline=None, database=None, suppress_health_check=checks)(given(strategy)(test))()
