"""Idempotency-Key: one request, however often and however concurrently it is sent."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from tests.api.conftest import BODY, SESSION, STATION, Service, eventually

from chargegate.api import idempotency
from chargegate.engines.memory.queue import MemoryQueue
from chargegate.keys import new_access_key
from chargegate.ledger.records import CLAIM_MS, Claim
from chargegate.model import new_request_id, now_ms
from chargegate.queues.base import Capabilities, Message, QueueUnavailable
from outside import PLAIN
from servers.server import Server

KEY = {"idempotency-key": "order-4711"}


def together(service: Service, requests: list[dict[str, Any]]) -> list[httpx.Response]:
    """All at once, each on a connection of its own."""

    async def send() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=len(requests))
        async with httpx.AsyncClient(base_url=service.http.base_url, limits=limits, timeout=30, verify=PLAIN) as client:
            return await asyncio.gather(*(client.post(SESSION, **request) for request in requests))

    return asyncio.run(send())


def test_fifty_at_once_are_one_request(service: Service) -> None:
    answers = together(service, [{"json": BODY, "headers": KEY}] * 50)
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert service.accepted() == 1
    assert service.counted("accepted") == 1
    assert service.counted("repeated") == 49


def test_the_spelling_of_the_fields_makes_no_other_body(service: Service, client: httpx.Client) -> None:
    other = {"callbackUrl": BODY["callback_url"], "stationId": STATION, "driverToken": BODY["driver_token"]}
    answers = [client.post(SESSION, json=body, headers=KEY) for body in (BODY, other)]
    assert answers[0].content == answers[1].content
    assert service.accepted() == 1


@pytest.mark.parametrize("field", list(BODY))
def test_another_body_is_a_conflict(service: Service, client: httpx.Client, field: str) -> None:
    changed = {**BODY, field: BODY[field].replace("e", "f").replace("F", "E")}
    assert client.post(SESSION, json=BODY, headers=KEY).status_code == 202
    answer = client.post(SESSION, json=changed, headers=KEY)
    assert answer.status_code == 422
    assert answer.json()["status"] == "idempotency_conflict"
    assert service.accepted() == 1
    assert service.counted("conflict") == 1


def test_of_two_bodies_at_once_one_wins(service: Service) -> None:
    other = {**BODY, "callback_url": "https://example.com/other"}
    answers = together(service, [{"json": body, "headers": KEY} for body in (BODY, other) * 10])
    assert sorted(answer.status_code for answer in answers) == [202] * 10 + [422] * 10
    assert service.accepted() == 1


def test_another_key_is_another_request(service: Service, client: httpx.Client) -> None:
    ids = {
        client.post(SESSION, json=BODY, headers={"idempotency-key": key}).json()["request_id"]
        for key in ("a", "A", "!" * 255)
    }
    assert len(ids) == 3
    assert service.accepted() == 3


@pytest.mark.parametrize("key", [b"two words", b"x" * 256])
def test_a_bad_key_is_named_along_with_the_body(client: httpx.Client, key: bytes) -> None:
    answer = client.post(SESSION, json=BODY, headers={"idempotency-key": key})
    assert answer.status_code == 400
    assert answer.json()["details"] == {"Idempotency-Key": "must be 1 to 255 visible ASCII characters"}
    answer = client.post(SESSION, json={**BODY, "station_id": ""}, headers={"idempotency-key": key})
    assert set(answer.json()["details"]) == {"Idempotency-Key", "station_id"}


def test_clients_do_not_share_keys(serve: Callable[..., Service]) -> None:
    (one, one_line), (two, two_line) = new_access_key("client"), new_access_key("client")
    service = serve(keys=[one_line, two_line])
    ids = {
        service.http.post(SESSION, json=BODY, headers={**KEY, "x-api-key": key}).json()["request_id"]
        for key in (one, two, one)
    }
    assert len(ids) == 2
    assert service.accepted() == 2


def test_it_is_known_while_it_still_waits(serve: Callable[..., Service]) -> None:
    queue = MemoryQueue(10)
    ids = {serve(queue=queue).http.post(SESSION, json=BODY, headers=KEY).json()["request_id"] for _ in range(2)}
    assert len(ids) == 1
    assert len(queue._waiting) == 1


def test_a_crash_between_claim_and_put_is_made_good(serve: Callable[..., Service]) -> None:
    """The claim is in the ledger, the request in no queue: it is put again under the id that the key stands for."""
    first = serve(queue_size=0)
    assert first.http.post(SESSION, json=BODY, headers=KEY).status_code == 503
    second = serve()
    answers = together(second, [{"json": BODY, "headers": KEY}] * 5)
    assert len({answer.content for answer in answers}) == 1
    [delivery] = second.run(second.queue.receive(10))
    assert delivery.message.request_id == answers[0].json()["request_id"]
    third = serve(queue=second.queue)
    assert third.http.post(SESSION, json=BODY, headers=KEY).json()["request_id"] == delivery.message.request_id


class Gate(MemoryQueue):
    """Puts wait until they are let in, and are then refused."""

    def __init__(self) -> None:
        super().__init__(0)
        self.puts = 0
        self.open = asyncio.Event()

    async def put(self, message: Message) -> None:
        self.puts += 1
        await self.open.wait()
        await super().put(message)


def test_when_the_first_one_fails_the_others_get_the_same_error(serve: Callable[..., Service]) -> None:
    gate = Gate()
    service = serve(queue=gate)

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            base_url=service.http.base_url, limits=httpx.Limits(max_connections=10), verify=PLAIN
        ) as client:
            sent = [asyncio.create_task(client.post(SESSION, json=BODY, headers=KEY)) for _ in range(10)]
            await asyncio.to_thread(eventually, lambda: service.server.under_way == 10)
            service._loop.call_soon_threadsafe(gate.open.set)
            return await asyncio.gather(*sent)

    answers = asyncio.run(send())
    assert {answer.status_code for answer in answers} == {503}
    assert gate.puts == 1


def test_without_the_ledger_only_keyless_requests_are_accepted(
    service: Service, client: httpx.Client, tmp_path: Path
) -> None:
    lose_ledger(tmp_path)
    answer = client.post(SESSION, json=BODY, headers=KEY)
    assert answer.status_code == 503
    assert answer.json()["status"] == "service_unavailable"
    assert answer.headers["retry-after"]
    assert client.post(SESSION, json=BODY).status_code == 202


def lose_ledger(folder: Path) -> None:
    connection = sqlite3.connect(folder / "api.db")
    connection.execute("DROP TABLE idempotency_keys")
    connection.close()


@pytest.fixture
def cache(redis_server: Server) -> tuple[str, str]:
    return redis_server.url, f"c{uuid4().hex[:12]}"


@pytest.fixture
def two(serve: Callable[..., Service], cache: tuple[str, str], tmp_path: Path) -> list[Service]:
    """Two processes with one cache, and each with a queue and a ledger that the other does not see."""
    services = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        service = serve(cache=cache, folder=tmp_path / name)
        eventually(lambda shared=service.shared: shared.usable())
        services.append(service)
    return services


def test_a_key_that_another_process_confirmed_is_known_by_the_cache(two: list[Service]) -> None:
    answers = [service.http.post(SESSION, json=BODY, headers=KEY) for service in two]
    assert answers[0].content == answers[1].content
    assert [service.accepted() for service in two] == [1, 0]
    changed = {**BODY, "callback_url": "https://example.com/other"}
    assert [service.http.post(SESSION, json=changed, headers=KEY).status_code for service in two] == [422, 422]


def test_while_the_ledger_is_away_the_cache_says_what_a_key_stands_for(two: list[Service], tmp_path: Path) -> None:
    for name in ("one", "other"):
        lose_ledger(tmp_path / name)
    answers = [answer for service in two for answer in together(service, [{"json": BODY, "headers": KEY}] * 20)]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["request_id"] for answer in answers}) == 1
    assert [service.accepted() for service in two] == [1, 0]


def test_a_ledger_and_a_queue_that_are_silent_are_not_waited_for(
    two: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are where one database carries both, and the way to it is cut."""

    async def silent(*_: object) -> None:
        await asyncio.Event().wait()

    one, other = two
    for service in two:
        monkeypatch.setattr(service.ledger, "claim", silent)
    monkeypatch.setattr(one.queue, "put", silent)
    monkeypatch.setattr(type(one.queue), "capabilities", Capabilities(durable=True, shared=True, find=True))
    assert one.http.post(SESSION, json=BODY, headers=KEY).status_code == 503
    assert other.http.post(SESSION, json=BODY, headers=KEY).status_code == 202


def test_without_ledger_and_cache_a_key_is_refused(
    serve: Callable[..., Service], tmp_path: Path, redis_server: Server
) -> None:
    with redis_server.proxied() as proxy:
        service = serve(cache=(proxy.url, "away"))
        eventually(service.shared.usable)
        proxy.reset()
        lose_ledger(tmp_path)
        assert service.http.post(SESSION, json=BODY, headers=KEY).status_code == 503
        assert service.http.post(SESSION, json=BODY).status_code == 202


def test_a_key_is_forgotten_after_an_hour(service: Service, client: httpx.Client) -> None:
    digest = service.keyring.digest("idempotency", "", KEY["idempotency-key"])
    old = Claim("another body", new_request_id(), now_ms() - CLAIM_MS - 1)
    service.run(service.ledger.claim(digest, old))
    answer = client.post(SESSION, json=BODY, headers=KEY)
    assert answer.status_code == 202
    assert answer.json()["request_id"] != old.request_id


def test_what_is_kept_in_memory_is_bounded_and_expires(serve: Callable[..., Service]) -> None:
    service = serve()
    known = idempotency.Idempotency(service.ledger, service.queue, service.keyring, service.parts.queue.put)
    fresh, stale = Claim("b", "id", now_ms()), Claim("b", "id", now_ms() - CLAIM_MS)
    for number in range(idempotency._MAX_CONFIRMED + 5):
        known._confirm(str(number), fresh)
    assert len(known._confirmed) == idempotency._MAX_CONFIRMED
    assert known._known("4") is None
    assert known._known("5") is fresh
    known._confirm("stale", stale)
    assert known._known("stale") is None


class Unsure(MemoryQueue):
    """Its puts fail as long as ``away``: what they had is stored all the same, or not."""

    def __init__(self, *, stores: bool) -> None:
        super().__init__(10)
        self.away = True
        self.stores = stores

    async def put(self, message: Message) -> None:
        if not self.away or self.stores:
            await super().put(message)
        if self.away:
            raise QueueUnavailable("no answer")


OTHER_BODY = {**BODY, "callback_url": "https://example.com/other"}


def test_the_same_body_gets_the_id_of_a_put_that_had_no_answer(serve: Callable[..., Service]) -> None:
    queue = Unsure(stores=True)
    service = serve(queue=queue)
    assert service.http.post(SESSION, json=BODY, headers=KEY).status_code == 503
    queue.away = False
    answer = service.http.post(SESSION, json=BODY, headers=KEY)
    assert answer.status_code == 202
    [delivery] = service.run(queue.receive(10))
    assert delivery.message.request_id == answer.json()["request_id"]
    assert service.http.post(SESSION, json=OTHER_BODY, headers=KEY).status_code == 422


def test_another_body_is_a_conflict_with_a_put_that_had_no_answer_but_arrived(serve: Callable[..., Service]) -> None:
    queue = Unsure(stores=True)
    service = serve(queue=queue)
    assert service.http.post(SESSION, json=BODY, headers=KEY).status_code == 503
    queue.away = False
    assert service.http.post(SESSION, json=OTHER_BODY, headers=KEY).status_code == 422


def test_another_body_takes_over_from_a_put_that_did_not_arrive(serve: Callable[..., Service]) -> None:
    queue = Unsure(stores=False)
    service = serve(queue=queue)
    assert service.http.post(SESSION, json=BODY, headers=KEY).status_code == 503
    queue.away = False
    answer = service.http.post(SESSION, json=OTHER_BODY, headers=KEY)
    assert answer.status_code == 202
    assert service.http.post(SESSION, json=OTHER_BODY, headers=KEY).content == answer.content
    assert service.http.post(SESSION, json=BODY, headers=KEY).status_code == 422
    assert service.accepted() == 1


def test_where_it_cannot_be_known_what_arrived_another_body_is_not_accepted(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Unsure(stores=False)
    monkeypatch.setattr(Unsure, "capabilities", Capabilities(durable=True, shared=False, find=False), raising=False)
    service = serve(queue=queue)
    assert service.http.post(SESSION, json=BODY, headers=KEY).status_code == 503
    queue.away = False
    assert service.http.post(SESSION, json=OTHER_BODY, headers=KEY).status_code == 503
    assert service.accepted() == 0
    assert service.http.post(SESSION, json=BODY, headers=KEY).status_code == 202


def test_a_claim_that_is_in_the_cache_only_is_taken_over_too(two: list[Service], tmp_path: Path) -> None:
    for name in ("one", "other"):
        lose_ledger(tmp_path / name)
    one, other = two
    one.run(fill(one.queue))
    assert one.http.post(SESSION, json=BODY, headers=KEY).status_code == 503
    answer = other.http.post(SESSION, json=OTHER_BODY, headers=KEY)
    assert answer.status_code == 202
    assert other.http.post(SESSION, json=BODY, headers=KEY).status_code == 422


async def fill(queue: Any) -> None:
    for _ in range(100):
        await queue.put(Message(new_request_id(), STATION, now_ms(), b""))
