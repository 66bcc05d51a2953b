"""The sink on a real InfluxDB, and on answers that a real one gives only seldom."""

import asyncio
import gzip
import itertools
import random
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargegate.audit.base import SinkUnavailable
from chargegate.audit.influx import InfluxSink, InfluxTarget, bucket_target, database_target
from chargegate.audit.remote_feed import RemoteFeed
from chargegate.http1 import HttpClient
from chargegate.ledger.moments import moment_of
from chargegate.ledger.records import AuditRow
from chargegate.model import Decision, now_ms, parse_callback_url
from chargegate.observe import Metrics
from databases import Database, Run
from servers.fixtures import provide
from servers.influxdb import PASSWORD, USER, PasswordInfluxdb, query
from servers.server import Server

Decide = Callable[..., Decision]
LIMIT_S = 60
ALL = "SELECT * FROM authorization_decisions"  # fmt: skip


def run(where: InfluxTarget, act: Callable[[InfluxSink], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        sink = InfluxSink(HttpClient(max_connections=1, content_type="text/plain; charset=utf-8"), where)
        try:
            async with asyncio.timeout(LIMIT_S):
                return await act(sink)
        finally:
            await sink.close()

    return uvloop.run(main())


def write(where: InfluxTarget, *batches: list[AuditRow]) -> list[int]:
    """Write batches one after the other; how many rows of each were refused for good."""

    async def act(sink: InfluxSink) -> list[int]:
        return [await sink.write(batch) for batch in batches]

    return run(where, act)


def failure(where: InfluxTarget, rows: list[AuditRow]) -> SinkUnavailable:
    async def act(sink: InfluxSink) -> SinkUnavailable:
        with pytest.raises(SinkUnavailable) as caught:
            await sink.write(rows)
        return caught.value

    return run(where, act)


def numbered(decisions: list[Decision], first: int = 1) -> list[AuditRow]:
    return [AuditRow(number, decision) for number, decision in enumerate(decisions, first)]


def at_version(version: int, url: str, database: str) -> InfluxTarget:
    target = parse_callback_url(url)
    return database_target(target, database, "", "") if version == 1 else bucket_target(target, "", database, "")


@pytest.mark.parametrize("version", [1, 2])
def test_each_decision_is_a_point_and_again_changes_nothing(
    influxdb_server: Server, influx_database: str, decide: Decide, version: int
) -> None:
    at = now_ms()
    rows = numbered([decide(timestamp=at + number, reason="token_blocked") for number in range(3_000)])
    where = at_version(version, influxdb_server.url, influx_database)
    assert write(where, rows, rows, rows[100:200]) == [0, 0, 0]
    found = query(influxdb_server.url, ALL, influx_database, epoch="ms")
    assert {point["request_id"]: point["time"] for point in found} == {
        row.decision.request_id: row.decision.timestamp for row in rows
    }
    assert len(found) == len(rows)
    first = next(point for point in found if point["request_id"] == rows[0].decision.request_id)
    assert {name: value for name, value in first.items() if name not in ("time", "request_id")} == {
        "driver_token_hash": "0123456789abcdef",
        "processing_time_ms": 12,
        "reason": "token_blocked",
        "station_id": rows[0].decision.station_id,
        "status": "not_allowed",
    }
    tags = query(influxdb_server.url, "SHOW TAG KEYS", influx_database)
    assert {row["tagKey"] for row in tags} == {"station_id", "status"}


@pytest.mark.parametrize("version", [1, 2])
def test_decisions_of_one_millisecond_are_points_in_whatever_order_they_are_written(
    influxdb_server: Server, influx_database: str, decide: Decide, version: int
) -> None:
    """Each batch goes with the rows of the same moments that were committed until then, as the ledger tells them."""
    at = now_ms()
    stations = ("A-station", "a-station", "another")
    rows = numbered([decide(station=random.choice(stations), timestamp=at + number // 100) for number in range(300)])
    random.shuffle(rows)

    async def act(sink: InfluxSink) -> None:
        committed: list[AuditRow] = []
        while len(committed) < len(rows):
            batch = rows[len(committed) : len(committed) + random.randint(1, 30)]
            moments = set(map(moment_of, batch))
            beside = [row for row in committed if moment_of(row) in moments]
            assert await sink.write([*batch, *beside]) == 0
            committed += batch
        await sink.write(rows)

    run(at_version(version, influxdb_server.url, influx_database), act)
    found = query(influxdb_server.url, ALL, influx_database, epoch="ms")
    assert Counter((point["request_id"], point["time"]) for point in found) == Counter(
        (row.decision.request_id, row.decision.timestamp) for row in rows
    )


def test_writers_of_one_database_share_no_point(
    postgres_run: Run, influxdb_server: Server, influx_database: str, decide: Decide
) -> None:
    """Each process sends what it decided, at its own pace."""
    where = at_version(1, influxdb_server.url, influx_database)
    at = now_ms()

    async def scenario(database: Database) -> None:
        async def work(writer: str) -> None:
            sink = InfluxSink(HttpClient(max_connections=1, content_type="text/plain; charset=utf-8"), where)
            feed = RemoteFeed(sink, Metrics())
            ledger = database.ledger(feed.offer, writer=writer)
            await feed.start(ledger)
            for number in range(40):
                await asyncio.gather(*(ledger.record(decide(timestamp=at + number), at) for _ in range(3)))
                await asyncio.sleep(random.uniform(0, 0.05))
            await feed.close()

        await asyncio.gather(*map(work, ("one", "two", "three")))
        rows = await database.execute("SELECT request_id, timestamp FROM authorization_audit")
        found = query(influxdb_server.url, ALL, influx_database, epoch="ms")
        assert len(rows) == 360
        assert Counter((point["request_id"], point["time"]) for point in found) == Counter(rows)

    postgres_run(scenario)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10) | st.text("\\ ,=\"'\n\x00/a#", max_size=6)
numbers = itertools.count(1)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text, text, text)
def test_hostile_text_comes_back_as_it_is(
    influxdb_server: Server, influx_database: str, decide: Decide, request_id: str, station: str, reason: str
) -> None:
    at = now_ms() + next(numbers)  # a time of its own
    row = AuditRow(1, decide(request_id or "r", station=station, reason=reason, timestamp=at))
    plain = AuditRow(2, decide("plain", timestamp=at - 86_400_000))
    assert write(at_version(1, influxdb_server.url, influx_database), [row, plain]) == [0]
    where = f"time = {at}ms"
    found = query(influxdb_server.url, f"{ALL} WHERE {where}", influx_database)

    def shown(given_text: str) -> str:
        return "".join(" " if ord(c) < 32 or ord(c) == 127 else c for c in given_text)

    assert [(point["request_id"], point["reason"]) for point in found] == [(shown(request_id or "r"), shown(reason))]
    assert (found[0]["station_id"] or "") == shown(station.lower()).replace("\\", "/")


def test_a_database_that_is_not_there_yet(influxdb_server: Server, decide: Decide) -> None:
    name = f"later{now_ms()}"
    where = at_version(1, influxdb_server.url, name)
    rows = numbered([decide(timestamp=now_ms())])
    assert str(failure(where, rows)) == f'404: database not found: "{name}"'
    query(influxdb_server.url, f'CREATE DATABASE "{name}"')
    assert write(where, rows) == [0]


def test_points_older_than_the_server_keeps_are_counted_and_hold_up_nothing(
    influxdb_server: Server, influx_database: str, decide: Decide, logged: Callable[[], list[dict[str, Any]]]
) -> None:
    query(
        influxdb_server.url, f'CREATE RETENTION POLICY short ON "{influx_database}" DURATION 1h REPLICATION 1 DEFAULT'
    )
    old = [decide(timestamp=now_ms() - 86_400_000) for _ in range(30)]
    new = [decide(timestamp=now_ms()) for _ in range(20)]
    rows = numbered([each for pair in zip(old, [*new, *old[:10]], strict=True) for each in pair])
    where = at_version(1, influxdb_server.url, influx_database)
    assert write(where, rows, rows, numbered(old, 1_000)) == [40, 40, 30]
    found = query(influxdb_server.url, ALL, influx_database)
    assert {point["request_id"] for point in found} == {each.request_id for each in new}
    assert [event["decisions"] for event in logged() if "keeps no decisions" in event["event"]] == [40]


def test_a_field_of_another_type_is_the_databases_fault(
    influxdb_server: Server, influx_database: str, decide: Decide
) -> None:
    """Somebody wrote into the measurement before. No decision is left out for it."""
    where = at_version(1, influxdb_server.url, influx_database)
    other = f'authorization_decisions,status=allowed processing_time_ms="text" {now_ms()}'
    path = f"write?db={influx_database}&precision=ms"
    urllib.request.urlopen(f"{influxdb_server.url}/{path}", other.encode(), timeout=20).close()
    said = str(failure(where, numbered([decide(timestamp=now_ms()) for _ in range(100)])))
    assert said.startswith("400: partial write: field type conflict")


@pytest.fixture(scope="module")
def guarded_server() -> Iterator[Any]:
    yield from provide(PasswordInfluxdb)


@pytest.mark.servers
def test_a_wrong_password_is_said_and_the_right_one_works(guarded_server: Server, decide: Decide) -> None:
    query(guarded_server.url, "CREATE DATABASE audit", user=USER)
    url = parse_callback_url(guarded_server.url)
    rows = numbered([decide(timestamp=now_ms())])
    for user, password in ((USER, "a wrong one"), ("", ""), ("nobody", PASSWORD)):
        said = str(failure(database_target(url, "audit", user, password), rows))
        assert said.startswith("401: ")
        assert "a wrong one" not in said
    assert write(database_target(url, "audit", USER, PASSWORD), rows) == [0]
    assert str(failure(bucket_target(url, "", "audit", f"{USER}:no"), rows)).startswith("401: ")
    assert write(bucket_target(url, "org", "audit", f"{USER}:{PASSWORD}"), rows) == [0]
    assert len(query(guarded_server.url, ALL, "audit", user=USER)) == 1


class Scripted:
    """Answers as InfluxDB would if it refused the points of some requests, or were not well."""

    def __init__(self, answer: Callable[[list[str]], tuple[int, str, str]]) -> None:
        self._answer = answer
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.held: set[str] = set()
        self.sizes: list[int] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            except asyncio.IncompleteReadError:
                break
            first, *lines = head.split("\r\n")[:-2]
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = gzip.decompress(await reader.readexactly(int(headers["content-length"])))
            points = body.decode().splitlines()
            self.requests.append((first, headers))
            self.sizes.append(len(points))
            status, text, more = self._answer(points)
            if status == 204:
                self.held.update(points)
            writer.write(f"HTTP/1.1 {status} X\r\n{more}content-length: {len(text.encode())}\r\n\r\n{text}".encode())
            await writer.drain()
        writer.close()


def against(
    scripted: Scripted, act: Callable[[InfluxSink], Awaitable[Any]], where: Callable[[str], InfluxTarget]
) -> Any:
    async def main() -> Any:
        server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        sink = InfluxSink(HttpClient(max_connections=1, content_type="text/plain; charset=utf-8"), where(url))
        try:
            async with asyncio.timeout(LIMIT_S):
                return await act(sink)
        finally:
            await sink.close()
            server.close()

    return uvloop.run(main())


def bucket(url: str) -> InfluxTarget:
    return bucket_target(parse_callback_url(f"{url}/behind/a/proxy/"), "my org", "my/bucket", "very-secret")


def test_what_a_request_says_of_itself(decide: Decide) -> None:
    scripted = Scripted(lambda _: (204, "", ""))
    against(scripted, lambda sink: sink.write(numbered([decide("a"), decide("b")])), bucket)
    ((first, headers),) = scripted.requests
    assert first == "POST /behind/a/proxy/api/v2/write?bucket=my%2Fbucket&org=my+org&precision=ms HTTP/1.1"
    assert headers["authorization"] == "Token very-secret"
    assert headers["content-encoding"] == "gzip"
    assert headers["content-type"] == "text/plain; charset=utf-8"


def test_more_rows_than_a_request_takes_have_the_places_of_the_whole(decide: Decide) -> None:
    scripted = Scripted(lambda _: (204, "", ""))
    rows = numbered([decide() for _ in range(4_500)])
    assert against(scripted, lambda sink: sink.write(rows), bucket) == 0
    assert scripted.sizes == [2_000, 2_000, 500]
    assert len({point.partition(" ")[0] for point in scripted.held}) == 4_500


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("bad", [{0}, {99}, {3, 50, 51, 98}, set(range(40)), set(range(99)), set(range(30, 100))])
def test_a_point_that_is_refused_is_found_and_holds_up_no_other(
    decide: Decide, logged: Callable[[], list[dict[str, Any]]], status: int, bad: set[int]
) -> None:
    refused = {f"bad-{number}" for number in bad}
    rows = numbered([decide(f"bad-{n}" if n in bad else f"good-{n}") for n in range(100)])

    def answer(points: list[str]) -> tuple[int, str, str]:
        if any(each in point for each in refused for point in points):
            return status, '{"code":"invalid","message":"a poisoned point, Token very-secret"}', ""
        return 204, "", ""

    scripted = Scripted(answer)
    assert against(scripted, lambda sink: sink.write(rows), bucket) == len(bad)
    assert len(scripted.held) == 100 - len(bad)
    events = [event for event in logged() if "for good" in event["event"]]
    assert {event["request_id"] for event in events} == refused
    assert {event["error"] for event in events} == {f"{status}: a poisoned point, Token ***"}
    assert len(scripted.requests) <= 2 * len(bad) * 8


def test_where_every_point_is_refused_none_is_left_out(decide: Decide) -> None:
    scripted = Scripted(lambda _: (400, '{"error":"no such precision"}', ""))

    async def act(sink: InfluxSink) -> str:
        with pytest.raises(SinkUnavailable) as caught:
            await sink.write(numbered([decide() for _ in range(2_000)]))
        return str(caught.value)

    assert against(scripted, act, bucket) == "400: no such precision"
    assert len(scripted.requests) < 80


@pytest.mark.parametrize(
    ("status", "header", "wait_s"),
    [(429, "Retry-After: 7\r\n", 7), (503, "retry-after: 120\r\n", 120), (503, "", None), (500, "", None)]
    + [(status, "", None) for status in (301, 401, 403, 404)],
)
def test_a_server_that_is_not_well_is_left_alone_as_long_as_it_asks(
    decide: Decide, status: int, header: str, wait_s: float | None
) -> None:
    async def act(sink: InfluxSink) -> SinkUnavailable:
        with pytest.raises(SinkUnavailable) as caught:
            await sink.write(numbered([decide() for _ in range(10)]))
        return caught.value

    scripted = Scripted(lambda _: (status, "line one\nline two", header))
    error = against(scripted, act, bucket)
    assert (str(error), error.wait_s) == (f"{status}: line one\\nline two", wait_s)
    assert scripted.sizes == [10]


def test_nobody_listens(decide: Decide) -> None:
    where = bucket_target(parse_callback_url("http://127.0.0.1:1"), "", "b", "")
    assert str(failure(where, numbered([decide()]))) == "connection refused"
