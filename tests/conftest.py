"""Fixtures and hooks for all the tests."""

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from chargegate.observe import configure_logging, log

# Many tests start the service. Where Python may not keep what it has compiled, each start would compile all of it anew,
# which takes longer than the rest of the start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

settings.register_profile("chargegate", settings.default, deadline=None)  # the machine that runs the tests may be busy
settings.load_profile("chargegate")

pytest_plugins = ["servers.fixtures", "databases", "messages"]


# The folders whose files take longest come first, and the small files last, so that all workers of pytest-xdist end at
# about the same time.
ORDER = ("test_faults.py", "scaling", "engines", "queues", "contract")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(ORDER)}
    items.sort(key=lambda item: min(places.get(part, len(ORDER)) for part in item.path.parts))


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Logging is set up once in a process, and here a process runs many tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    ours = {name: value for name, value in vars(log).items() if name != "_waiting"}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    vars(log).update(ours)


@pytest.fixture
def logged() -> Callable[[], list[dict[str, Any]]]:
    """The events logged since the test began."""
    stream = io.BytesIO()
    configure_logging("debug", "json", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
