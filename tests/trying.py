"""How often a property is tried: with few examples in the suite, and with many under ``make soak``."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def few_or_many(few: int, many: int) -> pytest.MarkDecorator:
    """The test gets ``examples``: the few, and under the soak mark the many."""
    long = pytest.param(many, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])
    return pytest.mark.parametrize("examples", [few, long])


def try_many(examples: int, strategy: st.SearchStrategy[Any], test: Callable[[Any], None]) -> None:
    """Run the test on so many examples of the strategy."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings(max_examples=examples, deadline=None, database=None, suppress_health_check=checks)(given(strategy)(test))()
