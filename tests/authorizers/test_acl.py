import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargegate.authorizers.acl import AclAuthorizer, judge
from chargegate.authorizers.base import AuthorizationError
from chargegate.ledger.records import AccessEntry
from chargegate.model import ChargingRequest, Reason, Status, Verdict

MakeRequest = Callable[..., ChargingRequest]
MakeAccessList = Callable[..., Any]

HERE = "123e4567-e89b-12d3-a456-426614174000"
THERE = "00000000-0000-4000-8000-00000000000b"
HASH = "ab" * 32

times = st.none() | st.integers(min_value=0, max_value=12)
stations = st.frozensets(st.sampled_from([HERE, THERE]))
entries = st.builds(
    AccessEntry,
    st.just(HASH),
    blocked=st.booleans(),
    valid_from=times,
    valid_until=times,
    allowed_stations=stations,
    denied_stations=stations,
)
moments = st.integers(min_value=-1, max_value=13)
spellings = st.sampled_from([HERE, HERE.upper(), HERE.title()])


def rules(entry: AccessEntry, now: int) -> list[tuple[Reason, bool]]:
    """The contract's rules in order: the verdict of each, and whether the rule fits."""
    return [
        (Reason.BLOCKED, entry.blocked),
        (Reason.NOT_YET_VALID, entry.valid_from is not None and now < entry.valid_from),
        (Reason.EXPIRED, entry.valid_until is not None and now >= entry.valid_until),
        (Reason.NOT_AT_THIS_LOCATION, HERE in entry.denied_stations),
        (Reason.NOT_AT_THIS_LOCATION, bool(entry.allowed_stations) and HERE not in entry.allowed_stations),
    ]


@given(entries, spellings, moments)
def test_the_first_rule_that_fits_decides(entry: AccessEntry, station: str, now: int) -> None:
    verdict = judge(entry, station, now)
    fitting = [reason for reason, fits in rules(entry, now) if fits]
    assert verdict.reason == (fitting[0] if fitting else "")
    assert verdict.status is (Status.NOT_ALLOWED if fitting else Status.ALLOWED)
    assert verdict.cached is False


@given(entries, moments)
def test_good_until_is_the_next_moment_with_another_answer(entry: AccessEntry, now: int) -> None:
    def answer(moment: int) -> tuple[Status, str]:
        verdict = judge(entry, HERE, moment)
        return verdict.status, verdict.reason

    until = judge(entry, HERE, now).good_until
    assert until is None or until > now
    assert {answer(moment) for moment in range(now, 20 if until is None else until)} == {answer(now)}
    if until is not None:
        assert answer(until) != answer(now)


def test_a_driver_who_is_not_on_the_list() -> None:
    assert judge(None, HERE, 0) == Verdict(Status.NOT_ALLOWED, "driver_not_in_acl")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (AccessEntry(HASH), ""),
        (AccessEntry(HASH, blocked=True, valid_until=1, denied_stations=frozenset({HERE})), "token_blocked"),
        (AccessEntry(HASH, valid_from=101, denied_stations=frozenset({HERE})), "token_not_yet_valid"),
        (AccessEntry(HASH, valid_from=100), ""),
        (AccessEntry(HASH, valid_until=100, denied_stations=frozenset({HERE})), "token_expired"),
        (AccessEntry(HASH, valid_until=101), ""),
        (AccessEntry(HASH, denied_stations=frozenset({HERE})), "not_at_this_location"),
        (
            AccessEntry(HASH, allowed_stations=frozenset({HERE}), denied_stations=frozenset({HERE})),
            "not_at_this_location",
        ),
        (AccessEntry(HASH, allowed_stations=frozenset({THERE})), "not_at_this_location"),
        (AccessEntry(HASH, allowed_stations=frozenset({HERE, THERE}), denied_stations=frozenset({THERE})), ""),
    ],
)
def test_each_rule_by_its_code(entry: AccessEntry, reason: str) -> None:
    assert judge(entry, HERE, 100).reason == reason


def test_it_judges_by_the_entry_of_the_hash_and_the_time_of_the_call(
    memory_access_list: MakeAccessList, make_request: MakeRequest
) -> None:
    moments = iter([100, 200])
    authorizer = AclAuthorizer(memory_access_list(AccessEntry(HASH, valid_until=200)), now=lambda: next(moments))

    async def scenario() -> list[Verdict]:
        return [await authorizer.decide(make_request(), HASH) for _ in range(2)]

    first, second = asyncio.run(scenario())
    assert first == Verdict(Status.ALLOWED, "", 200)
    assert second == Verdict(Status.NOT_ALLOWED, "token_expired")


def test_a_change_of_the_list_is_seen_by_the_next_call(
    memory_access_list: MakeAccessList, make_request: MakeRequest
) -> None:
    access_list = memory_access_list()
    authorizer = AclAuthorizer(access_list)

    async def scenario() -> tuple[Verdict, Verdict]:
        before = await authorizer.decide(make_request(), HASH)
        await access_list.put([AccessEntry(HASH)])
        return before, await authorizer.decide(make_request(), HASH)

    before, after = asyncio.run(scenario())
    assert (before.reason, after.status) == ("driver_not_in_acl", Status.ALLOWED)


def test_a_list_that_cannot_be_read_is_an_authorization_error(
    memory_access_list: MakeAccessList, make_request: MakeRequest
) -> None:
    access_list = memory_access_list(AccessEntry(HASH))
    authorizer = AclAuthorizer(access_list)

    async def scenario() -> None:
        await authorizer.check()
        access_list.fault = "disk full"
        with pytest.raises(AuthorizationError, match="disk full"):
            await authorizer.decide(make_request(), HASH)
        with pytest.raises(AuthorizationError, match="disk full"):
            await authorizer.check()
        await authorizer.close()

    asyncio.run(scenario())
    assert not access_list.closed
