"""Fixtures and hooks for all the tests."""

import gc
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import settings

import forked
from chargegate.observe import configure_logging, log
from distribution import Units, place

# Many tests start the service. Where Python may not keep what it has compiled, each start would compile all of it anew,
# which takes longer than the rest of the start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

settings.register_profile("chargegate", settings.default, deadline=None)  # the machine that runs the tests may be busy
settings.load_profile("chargegate")

forked.install()

pytest_plugins = ["servers.fixtures", "databases", "messages"]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Units | None:
    return Units(config, log) if config.getoption("dist") == "loadscope" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place(item.nodeid))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # a collection in the middle of a test need not look at all that was imported, nor at all the tests


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    forked.Popen.allowed = item.get_closest_marker("true_start") is None
    return (yield)


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
