"""How the tests are distributed among workers (``distribution.py``)."""

import random
from pathlib import Path

import pytest

from distribution import ALONE, FIRST, place, unit

TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", FIRST[len(ALONE) :])
def test_what_begins_first_exists(name: str) -> None:
    assert (TESTS / name).is_dir() or list(TESTS.rglob(name))


def test_a_unit_is_a_file_or_a_server() -> None:
    in_turn = [
        "tests/scaling/test_outages.py::test_the_queues_server_comes_back[kafka-kill]",
        "tests/deploy/test_faults.py::test_a_fault_is_seen_raises_its_alerts_and_ends[a sink is away]",
        "tests/scaling/test_outages.py::test_the_queues_server_comes_back[redis-stop]",
        "tests/contract/test_what_is_wrong.py::test_a_certificate_near_its_end_is_told",
        "tests/contract/test_accepting.py::test_tokens[a/b::c]",
        "tests/test_worker.py::test_one",
    ]
    assert sorted(random.sample(in_turn, len(in_turn)), key=place) == in_turn
    assert unit(in_turn[0]) == unit("tests/engines/kafka/test_kafka.py::test_one") == "kafka"
    assert unit(in_turn[2]) == "tests/scaling/test_outages.py"
    assert unit(in_turn[4]) == "tests/contract/test_accepting.py"


def test_the_tests_of_a_server_are_in_its_unit(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        for server in ALONE:
            if f"{server}_server" in getattr(item, "fixturenames", ()):
                assert unit(item.nodeid) == server, f"{item.nodeid} would start one more {server}"
