import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from chargegate.authorizers.base import AuthorizationError, AuthorizationTimeout
from chargegate.authorizers.http import HttpAuthorizer, _verdict
from chargegate.http1 import HttpClient
from chargegate.model import ChargingRequest, Status, Verdict, parse_callback_url
from outside import Call, Reply, Site, eventually, sites, verdict

MakeRequest = Callable[..., ChargingRequest]

HASH = "ab" * 32
TOKEN = "driver_token_0123456789"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PATH = "/decide"


def says(**members: object) -> Reply:
    return Reply(200, json.dumps(members).encode())


@pytest.fixture
def service() -> Iterator[Site]:
    """The microservice that is asked. A test plans its replies at ``PATH``."""
    with sites() as make:
        yield make()


async def asked(service: Site, times: int) -> None:
    """Waits until the service was asked so often."""
    await asyncio.to_thread(eventually, lambda: len(service.calls) >= times, 10)


class Luck(Random):
    """Draws the same point of every range (``at`` 1 is its end), and remembers the ranges."""

    def __init__(self, at: float) -> None:
        super().__init__(0)
        self.at = at
        self.ranges: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.ranges.append((a, b))
        return a + (b - a) * self.at


@asynccontextmanager
async def asking(
    service: Site, *, max_retries: int = 3, timeout_ms: int = 20_000, rng: Random | None = None
) -> AsyncIterator[HttpAuthorizer]:
    authorizer = HttpAuthorizer(
        HttpClient(max_connections=5),
        parse_callback_url(service.url(PATH)),
        max_retries=max_retries,
        timeout_ms=timeout_ms,
        rng=rng or Luck(0),
    )
    try:
        yield authorizer
    finally:
        await authorizer.close()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(scenario())


def test_the_question_and_each_answer(service: Site, make_request: MakeRequest) -> None:
    replies = [says(status=status, reason="stolen_card") for status in Status]
    service.plan(PATH, *replies, says(status="allowed"))

    async def scenario() -> None:
        request = make_request(token=TOKEN, traceparent=TRACEPARENT)
        async with asking(service) as authorizer:
            for status in Status:
                assert await authorizer.decide(request, HASH) == Verdict(status, "stolen_card")
            assert await authorizer.decide(make_request(token=TOKEN), HASH) == Verdict(Status.ALLOWED, "")
            await authorizer.check()
        expected = {"request_id": request.request_id, "station_id": request.station_id, "driver_token": TOKEN}
        assert [call.json for call in service.calls] == [expected] * 5
        heads = [call.head for call in service.calls]
        assert all(head.startswith("POST /decide HTTP/1.1\r\n") for head in heads)
        assert all(head.lower().count("content-type: application/json\r\n") == 1 for head in heads)
        assert [f"traceparent: {TRACEPARENT}\r\n" in head for head in heads] == [True] * 4 + [False]

    run(scenario)


def test_a_broken_traceparent_is_not_sent(service: Site, make_request: MakeRequest) -> None:
    service.plan(PATH, says(status="allowed"))

    async def scenario() -> None:
        async with asking(service) as authorizer:
            await authorizer.decide(make_request(traceparent=f"{TRACEPARENT}\r\nx-injected: 1"), HASH)
        assert "traceparent" not in service.calls[0].head
        assert "x-injected" not in service.calls[0].head

    run(scenario)


FAILURES = {
    "500": Reply(500, b"{}"),
    "503 with a verdict": Reply(503, b'{"status":"allowed"}'),
    "201 with a verdict": Reply(201, b'{"status":"allowed"}'),
    "204": Reply(raw=b"HTTP/1.1 204 No\r\n\r\n"),
    "redirect": Reply(302, b"", {"location": "http://127.0.0.1/"}),
    "408": Reply(408),
    "425": Reply(425),
    "429": Reply(429, b"", {"retry-after": "3600"}),
    "empty": Reply(200),
    "not JSON": Reply(200, b"allowed"),
    "not UTF-8": Reply(200, b'{"status":"allowed","reason":"\xff"}'),
    "not an object": Reply(200, b'["allowed"]'),
    "deep": Reply(200, b'{"x":' * 3000),
    "no status": says(reason="x"),
    "unknown status": says(status="ALLOWED"),
    "status of the wrong type": says(status=True),
    "reason of the wrong type": says(status="allowed", reason=7),
    "too long": says(status="allowed", more="x" * 70_000),
    "not HTTP": Reply(raw=b"SSH-2.0-OpenSSH_9.2\r\n", how="cut"),
    "connection closed": Reply(how="cut"),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_failed_call_is_made_again(service: Site, failure: Reply, make_request: MakeRequest) -> None:
    service.plan(PATH, failure, failure, says(status="not_allowed"))

    async def scenario() -> None:
        async with asking(service, max_retries=2) as authorizer:
            assert await authorizer.decide(make_request(), HASH) == Verdict(Status.NOT_ALLOWED)
        assert len(service.calls) == 3
        assert len({call.body for call in service.calls}) == 1

    run(scenario)


@pytest.mark.parametrize("max_retries", [0, 1, 4])
def test_retries_used_up_are_an_error_and_not_a_timeout(
    service: Site, max_retries: int, make_request: MakeRequest
) -> None:
    service.plan(PATH, Reply(500))

    async def scenario() -> None:
        async with asking(service, max_retries=max_retries) as authorizer:
            with pytest.raises(AuthorizationError, match="HTTP 500") as refusal:
                await authorizer.decide(make_request(), HASH)
        assert refusal.type is AuthorizationError
        assert len(service.calls) == max_retries + 1

    run(scenario)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422, 451, 499])
def test_an_answer_that_stays_as_it_is_is_not_asked_for_again(
    service: Site, status: int, make_request: MakeRequest
) -> None:
    service.plan(PATH, Reply(status, b'{"status":"allowed"}'))

    async def scenario() -> None:
        async with asking(service) as authorizer:
            with pytest.raises(AuthorizationError, match=f"HTTP {status}") as refusal:
                await authorizer.decide(make_request(), HASH)
        assert refusal.type is AuthorizationError
        assert len(service.calls) == 1

    run(scenario)


def test_waits_double_up_to_two_seconds_with_full_jitter(service: Site, make_request: MakeRequest) -> None:
    service.plan(PATH, Reply(500))
    luck = Luck(at=0)

    async def scenario() -> None:
        async with asking(service, max_retries=7, rng=luck) as authorizer:
            with pytest.raises(AuthorizationError):
                await authorizer.decide(make_request(), HASH)
        assert luck.ranges == [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.8), (0, 1.6), (0, 2.0), (0, 2.0)]

    run(scenario)


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_service_that_never_answers_is_a_timeout(service: Site, max_retries: int, make_request: MakeRequest) -> None:
    service.plan(PATH, Reply(how="held"))

    async def scenario() -> None:
        async with asking(service, timeout_ms=50, max_retries=max_retries) as authorizer:
            with pytest.raises(AuthorizationTimeout):
                await authorizer.decide(make_request(), HASH)
        assert len(service.calls) <= 1

    run(scenario)


def test_an_answer_that_stops_half_way_is_a_timeout(service: Site, make_request: MakeRequest) -> None:
    service.plan(PATH, Reply(raw=b'HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{"status":'))

    async def scenario() -> None:
        async with asking(service, timeout_ms=50) as authorizer:
            with pytest.raises(AuthorizationTimeout):
                await authorizer.decide(make_request(), HASH)

    run(scenario)


def test_a_slow_answer_within_the_time_counts_after_a_failure(service: Site, make_request: MakeRequest) -> None:
    service.plan(PATH, Reply(500), verdict("allowed", how="held"))

    async def scenario() -> None:
        async with asking(service) as authorizer:
            decided = asyncio.create_task(authorizer.decide(make_request(), HASH))
            await asked(service, 2)
            service.release(PATH)
            assert await decided == Verdict(Status.ALLOWED)

    run(scenario)


def test_no_retry_is_waited_for_that_could_not_start_in_time(service: Site, make_request: MakeRequest) -> None:
    service.plan(PATH, Reply(500))

    async def scenario() -> None:
        async with asking(service, timeout_ms=3_600_000, rng=Luck(at=36_000)) as authorizer, asyncio.timeout(60):
            with pytest.raises(AuthorizationTimeout):
                await authorizer.decide(make_request(), HASH)
        assert len(service.calls) == 1

    run(scenario)


def test_a_service_that_is_not_there_is_an_error(make_request: MakeRequest) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        authorizer = HttpAuthorizer(
            HttpClient(max_connections=1),
            parse_callback_url(f"http://127.0.0.1:{port}/"),
            max_retries=2,
            timeout_ms=20_000,
            rng=Luck(0),
        )
        with pytest.raises(AuthorizationError, match="connection_refused") as refusal:
            await authorizer.decide(make_request(), HASH)
        assert refusal.type is AuthorizationError
        await authorizer.close()

    run(scenario)


def test_a_cancelled_call_ends_at_once_and_leaves_the_authorizer_usable(
    service: Site, make_request: MakeRequest
) -> None:
    service.plan(PATH, Reply(how="held"), says(status="allowed"))

    async def scenario() -> None:
        async with asking(service) as authorizer:
            decided = asyncio.create_task(authorizer.decide(make_request(), HASH))
            await asked(service, 1)
            decided.cancel()
            async with asyncio.timeout(10):
                with pytest.raises(asyncio.CancelledError):
                    await decided
                assert await authorizer.decide(make_request(), HASH) == Verdict(Status.ALLOWED)

    run(scenario)


def test_many_questions_at_once_each_get_their_own_answer(make_request: MakeRequest) -> None:
    def name_the_station(call: Call) -> Reply:
        return verdict("allowed", "at_" + call.json["station_id"][-4:])

    async def scenario() -> None:
        stations = [f"00000000-0000-4000-8000-{number:012d}" for number in range(50)]
        with sites() as make:
            async with asking(make(name_the_station)) as authorizer:
                verdicts = await asyncio.gather(*(authorizer.decide(make_request(station=s), HASH) for s in stations))
        assert [verdict.reason for verdict in verdicts] == [f"at_{station[-4:]}" for station in stations]

    run(scenario)


@pytest.mark.parametrize(
    ("reason", "passed_on"),
    [
        ("tariff_2_expired", "tariff_2_expired"),
        ("a" * 64, "a" * 64),
        ("a" * 65, ""),
        ("Expired", ""),
        ("two words", ""),
        ("line\n", ""),
        ("=1+1", ""),
        (TOKEN, ""),
        (f"no_{TOKEN}_here", ""),
    ],
)
def test_a_reason_is_passed_on_only_if_it_is_a_code_without_the_token(reason: str, passed_on: str) -> None:
    body = json.dumps({"status": "not_allowed", "reason": reason}).encode()
    assert _verdict(body, TOKEN) == Verdict(Status.NOT_ALLOWED, passed_on)


leaves = st.none() | st.booleans() | st.integers() | st.text()
json_values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
statuses = st.sampled_from([*Status, "Allowed", "denied"]) | json_values
bodies = st.fixed_dictionaries({}, optional={"status": statuses, "reason": json_values, "more": json_values})


@given(bodies | json_values)
def test_a_body_is_a_verdict_exactly_if_status_and_reason_are_right(body: object) -> None:
    right = isinstance(body, dict) and body.get("status") in [*Status] and isinstance(body.get("reason"), str | None)
    verdict = _verdict(json.dumps(body).encode(), TOKEN)
    assert (verdict is not None) == right
    assert not right or verdict.status == body["status"]


@given(st.binary())
def test_no_bytes_break_the_reading(body: object) -> None:
    assert _verdict(body, TOKEN) is None or b"status" in body
