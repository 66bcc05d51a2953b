import random
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chargegate.delivering.retry import RetryPolicy, retry_after_ms

NOW = 1_767_225_600_000  # 2026-01-01T00:00:00Z
policies = st.builds(RetryPolicy, st.integers(1, 100), st.integers(0, 600_000), st.integers(0, 600_000))
seeds = st.integers(0, 2**32)
PIECES = [
    "Sun,",
    "31",
    "Dec",
    "Feb",
    "99",
    "9999",
    "0001",
    "23:59:60",
    "24:00",
    "00:00:00",
    "GMT",
    "-0000",
    "+9999",
    "EST",
    "-1",
    ";",
    ",",
    ":",
    "1e9",
    "5.5",
]
date_words = st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join)
junk = st.text(max_size=60) | date_words


@settings(max_examples=200)
@given(policies, st.integers(1, 120), st.none() | junk | st.integers(0, 10**12).map(str), seeds)
def test_a_wait_keeps_within_its_bounds(policy: RetryPolicy, attempts: int, retry_after: str | None, seed: int) -> None:
    wait = policy.wait_ms(attempts, retry_after, NOW, random.Random(seed))
    if attempts >= policy.max_attempts:
        assert wait is None
        return
    base = policy.retry_delay_ms * 2 ** (attempts - 1) if attempts <= 31 else policy.retry_delay_ms * 2**30
    assert wait is not None
    assert base <= wait <= max(base * 1.25 + 1, policy.max_retry_after_ms)


@settings(max_examples=100)
@given(policies, st.integers(1, 20), st.integers(0, 10**6), seeds)
def test_retry_after_makes_a_wait_longer_up_to_its_cap(
    policy: RetryPolicy, attempts: int, seconds: int, seed: int
) -> None:
    plain = policy.wait_ms(attempts, None, NOW, random.Random(seed))
    asked = policy.wait_ms(attempts, str(seconds), NOW, random.Random(seed))
    if plain is None:
        assert asked is None
    else:
        assert asked == max(plain, min(seconds * 1000, policy.max_retry_after_ms))


def test_waits_are_spread() -> None:
    policy = RetryPolicy(3, 1000, 0)
    rng = random.Random(1)
    waits = {policy.wait_ms(1, None, NOW, rng) for _ in range(100)}
    assert len(waits) > 50


def test_the_contracts_three_attempts() -> None:
    policy = RetryPolicy(3, 1000, 30_000)
    first, second, third = (policy.wait_ms(n, None, NOW, random.Random(n)) for n in (1, 2, 3))
    assert first is not None
    assert 1000 <= first <= 1250
    assert second is not None
    assert 2000 <= second <= 2500
    assert third is None


@given(st.integers(-10_000_000, 10_000_000), st.integers(-14, 14))
def test_a_date_is_so_long_from_now(seconds: int, hours_east: int) -> None:
    moment = datetime.fromtimestamp(NOW / 1000, UTC) + timedelta(seconds=seconds)
    elsewhere = moment.astimezone(timezone(timedelta(hours=hours_east)))
    assert retry_after_ms(format_datetime(moment, usegmt=True), NOW) == max(0, seconds * 1000)
    assert retry_after_ms(format_datetime(elsewhere), NOW) == max(0, seconds * 1000)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        ("120", 120_000),
        (" 7 ", 7_000),
        ("007", 7_000),
        ("-5", 0),
        ("1.5", 0),
        ("٣", 0),
        ("", 0),
        ("soon", 0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30_000),
        ("Thursday, 01-Jan-26 00:00:30 GMT", 30_000),
        ("Thu, 01 Jan 2026 00:00:30 -0000", 30_000),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Thu, 99 Jan 2026 00:00:00 GMT", 0),
    ],
)
def test_known_values(value: str, expected: int) -> None:
    assert retry_after_ms(value, NOW) == expected


@settings(max_examples=300)
@given(junk)
def test_junk_is_never_an_error_and_never_in_the_past(value: str) -> None:
    assert retry_after_ms(value, NOW) >= 0


def test_a_huge_number_of_digits_is_only_a_long_wait() -> None:
    assert retry_after_ms("9" * 5000, NOW) >= 10**9
