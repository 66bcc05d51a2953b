"""Clients share out the traces that they ask for."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from chargegate.observe.trace_shares import TraceShares


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def granted(shares: TraceShares, sharer: str, asked: int) -> int:
    return sum(shares.take(sharer) for _ in range(asked))


@given(per_second=st.integers(0, 500), asked=st.integers(0, 1000))
def test_a_client_that_is_alone_has_the_whole_and_no_more(per_second: int, asked: int) -> None:
    shares = TraceShares(per_second, Random(1), Clock())
    assert granted(shares, "a", asked) == min(asked, per_second)


@given(clients=st.integers(2, 40), flood=st.integers(100, 2000), seed=st.integers())
def test_a_flood_takes_nothing_from_the_others(clients: int, flood: int, seed: int) -> None:
    clock = Clock()
    shares = TraceShares(80, Random(seed), clock)
    others = [f"client-{number}" for number in range(clients - 1)]
    for sharer in ("flood", *others):
        shares.take(sharer)
    clock.now += 1
    assert granted(shares, "flood", flood) <= 80 // clients + 1
    for other in others:
        assert 80 // clients <= granted(shares, other, 100) <= 80 // clients + 1


@given(seed=st.integers())
def test_more_clients_than_traces_make_no_more_traces(seed: int) -> None:
    """Also where strangers have an address for every request."""
    clock = Clock()
    shares = TraceShares(20, Random(seed), clock)
    first = sum(shares.take(f"address-{number}") for number in range(5000))
    clock.now += 1
    second = sum(shares.take(f"address-{number}") for number in range(5000))
    # In the first second each new client finds a smaller share: 20 times the sum of 1/n, and chance around it.
    assert first < 400
    assert second < 100


def test_a_client_that_stopped_asking_leaves_its_share() -> None:
    clock = Clock()
    shares = TraceShares(10, Random(1), clock)
    granted(shares, "a", 5)
    granted(shares, "b", 5)
    clock.now += 5
    assert granted(shares, "b", 50) == 10
