"""Access keys and rates."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.conftest import BODY, SESSION, Service

from chargegate.api.access import RateLimit
from chargegate.api.errors import Refused
from chargegate.keys import new_access_key

ADMIN = [("GET", "/api/v1/audit/stats"), ("GET", "/api/v1/audit/timeouts")]
CLIENT = [("POST", SESSION)]


@pytest.fixture
def keys(serve: Callable[..., Service]) -> tuple[Service, str, str]:
    (client, client_line), (admin, admin_line) = new_access_key("client"), new_access_key("admin")
    return serve(keys=[client_line, admin_line]), client, admin


def test_roles(keys: tuple[Service, str, str]) -> None:
    service, client, admin = keys
    for method, path in ADMIN:
        assert service.http.request(method, path, headers={"x-api-key": client}).status_code == 403
    for method, path in [*ADMIN, *CLIENT]:
        for headers in ({"x-api-key": admin}, {"authorization": f"Bearer {admin}"}):
            assert service.http.request(method, path, headers=headers).status_code not in (401, 403)
    for method, path in CLIENT:
        for headers in ({"x-api-key": client}, {"authorization": f"bearer  {client}"}):
            assert service.http.request(method, path, headers=headers).status_code not in (401, 403)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": "unknown"},
        {"x-api-key": ""},
        {"authorization": "Bearer unknown"},
        {"authorization": "Bearer"},
        {"authorization": "Basic dXNlcjpwYXNz"},
        {"x-api-key": "schön".encode()},
    ],
)
def test_no_key_no_answer(keys: tuple[Service, str, str], headers: dict[str, str]) -> None:
    service, _, _ = keys
    for method, path in [*ADMIN, *CLIENT]:
        answer = service.http.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["status"] == "unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert service.counted("unauthorized") == 1
    assert service.accepted() == 0


@pytest.mark.parametrize("authorization", ["Basic dXNlcjpwYXNz", "Bearer unknown", "", "Bearer {key}"])
def test_a_key_is_sent_in_one_way(keys: tuple[Service, str, str], authorization: str) -> None:
    service, client, _ = keys
    headers = {"authorization": authorization.format(key=client), "x-api-key": client}
    answer = service.http.post(SESSION, json=BODY, headers=headers)
    assert answer.status_code == 400
    assert set(answer.json()["details"]) == {"Authorization", "X-API-Key"}
    assert service.accepted() == 0


def test_forbidden_has_the_one_shape(keys: tuple[Service, str, str]) -> None:
    service, client, _ = keys
    answer = service.http.get("/api/v1/acl", headers={"x-api-key": client})
    assert answer.json()["status"] == "forbidden"
    assert client not in answer.text


def test_an_anonymous_caller_is_an_address(serve: Callable[..., Service]) -> None:
    service = serve(rate_limit_per_second=0.001)
    assert [service.http.post(SESSION, json=BODY).status_code for _ in range(2)] == [202, 429]


@given(
    rate=st.floats(0.01, 50),
    burst=st.integers(1, 20),
    waits=st.lists(st.floats(0, 5), min_size=1, max_size=60),
)
def test_a_bucket_never_gives_more_than_its_burst_and_its_rate(rate: float, burst: int, waits: list[float]) -> None:
    now = 0.0
    limit = RateLimit(rate, burst, clock=lambda: now)
    for passed, wait in enumerate(waits, start=1):
        now += wait
        try:
            limit.take("caller", None)
        except Refused as refused:
            now += int(refused.headers["retry-after"])
            limit.take("caller", None)  # by then there is one
        assert passed <= burst + now * rate + 1e-6


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_ipv6_callers_are_networks(one: str, other: str, *, same: bool) -> None:
    limit = RateLimit(1, 1, clock=lambda: 0.0)
    limit.take("", (one, 1))
    if same:
        with pytest.raises(Refused):
            limit.take("", (other, 2))
    else:
        limit.take("", (other, 2))


def test_callers_seen_longest_ago_are_forgotten() -> None:
    limit = RateLimit(1, 1, clock=lambda: 0.0)
    for number in range(10_001):
        limit.take(str(number), None)
    assert len(limit._buckets) == 10_000
    limit.take("0", None)
    with pytest.raises(Refused):
        limit.take("10000", None)
