"""Traces, as a collector gets them and as the client, the authorizer and the receiver see their context."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from collector import Collector, collectors
from outside import eventually, leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Reply, Service, Site

WHOLE = {"accept", "queue", "decide", "record", "deliver"}


@pytest.fixture
def collector() -> Iterator[Callable[..., Collector]]:
    with collectors() as make:
        yield make


def parent(flags: str = "01", version: str = "00") -> str:
    return f"{version}-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-{flags}"


def whole(collector: Collector, trace_id: str = "") -> dict[str, Any]:
    """The spans of a trace once all of them came, by name."""
    eventually(lambda: set(collector.names(trace_id)) >= WHOLE, 40, lambda: f"came: {collector.names(trace_id)}")
    return {span.name: span for span in collector.spans(trace_id)}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_one_request_is_one_trace(
    service: Callable[..., Service],
    authorizer: Site,
    site: Callable[..., Site],
    reply: type[Reply],
    collector: Callable[..., Collector],
    protocol: str,
) -> None:
    spans, receiver = collector(protocol), site()
    traced = service(
        tracing__otlp_endpoint=spans.url,
        tracing__protocol=protocol,
        tracing__sample_ratio=0,
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        callback__retry_delay_ms=20,
    )
    given = parent()
    asked = traced.ask(receiver.planned(reply(500), reply(503), reply(200)), headers={"traceparent": given})
    assert traced.finished(asked)["callback"]["attempts"] == 3
    trace_id, client_span = given.split("-")[1:3]
    seen = whole(spans, trace_id)
    assert len(spans.spans(trace_id)) == len(WHOLE)
    accept, queue, decide, record, deliver = (seen[name] for name in ("accept", "queue", "decide", "record", "deliver"))
    assert accept.parent_id == client_span
    assert {span.parent_id for span in (queue, decide, record, deliver)} == {accept.span_id}
    assert queue.links == [(trace_id, accept.span_id)]
    assert (accept.kind, queue.kind, deliver.kind) == (2, 5, 3)
    assert accept.attributes["http.request.method"] == "POST"
    assert accept.attributes["http.route"] == "/api/v1/charging-session"
    assert accept.attributes["http.response.status_code"] == 202
    assert queue.attributes["messaging.system"] == "sqlite"
    assert decide.attributes["chargegate.status"] == "allowed"
    assert record.attributes["db.system.name"] == "sqlite"
    assert {span.attributes["chargegate.request_id"] for span in seen.values()} == {asked.request_id}
    assert [event for event, _ in deliver.events] == ["attempt"] * 3
    codes = [attributes["http.response.status_code"] for _, attributes in deliver.events]
    assert codes == [500, 503, 200]
    assert not any(span.error for span in seen.values())
    assert accept.start <= decide.start <= decide.end <= record.start <= record.end <= deliver.start <= deliver.end
    assert queue.start <= queue.end <= decide.start
    assert accept.resource["service.name"] == "chargegate"
    [question] = authorizer.calls_to(asked.driver_token)
    assert question.headers["traceparent"] == f"00-{trace_id}-{decide.span_id}-01"
    calls = receiver.calls_to(asked.callback_url)
    assert {call.headers["traceparent"] for call in calls} == {f"00-{trace_id}-{deliver.span_id}-01"}
    lines = [json.loads(line) for line in traced.log.splitlines()]
    about = {line["event"]: line for line in lines if line.get("request_id") == asked.request_id}
    for event in ("request accepted", "decided", "callback failed, will be tried again", "callback delivered"):
        assert about[event]["trace_id"] == trace_id


def test_nothing_secret_reaches_the_collector(
    service: Callable[..., Service],
    authorizer: Site,
    answer: Callable[..., Reply],
    site: Callable[..., Site],
    reply: type[Reply],
    collector: Callable[..., Collector],
) -> None:
    spans, receiver = collector(), site()
    traced = service(
        tracing__otlp_endpoint=spans.url,
        tracing__sample_ratio=1,
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        callback__retry_delay_ms=20,
    )
    asked = []
    for planned in (answer("allowed"), answer("not_allowed", "token_blocked"), reply(400), reply(how="cut")):
        token = f"secret-{uuid.uuid4().hex}"
        authorizer.plan(token, planned)
        asked.append(traced.ask(receiver.planned(reply(500), reply(410)), driver_token=token))
    asked.append(traced.ask("http://127.0.0.1:1/nobody-listens-here"))
    for each in asked:
        traced.finished(each)
    eventually(lambda: spans.names().count("deliver") == len(asked), 40, "not all came")
    everything = b"".join(spans.bodies) + "".join(spans.heads).encode()
    for each in asked:
        assert not leaks(everything, each.driver_token)
        assert each.callback_url.encode() not in everything
        assert each.callback_url.rpartition("/")[2].encode() not in everything
        assert each.station_id.encode() not in everything
        assert each.request_id.encode() in everything
    assert b"http://" not in b"".join(spans.bodies)
    failed = [span for span in spans.spans() if span.name == "deliver"]
    assert all(span.error and span.attributes["error.type"] for span in failed)


def test_a_delivery_tells_of_its_last_attempt(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], collector: Callable[..., Collector]
) -> None:
    """A status code belongs to the attempt that got it. The next one may get none."""
    spans = collector()
    traced = service(tracing__otlp_endpoint=spans.url, tracing__sample_ratio=1, callback__retry_delay_ms=20)
    cut = reply(how="cut", raw=b"HTTP/1.1 2")
    replies = {500: [cut, cut, reply(500)], None: [reply(500), reply(500), cut]}
    asked = {code: traced.ask(receiver.planned(*planned)) for code, planned in replies.items()}
    for code, each in asked.items():
        assert traced.finished(each)["callback"]["last_status_code"] == code
    eventually(lambda: spans.names().count("deliver") == len(asked), 40, "not all came")
    delivered = {span.attributes["chargegate.request_id"]: span for span in spans.spans() if span.name == "deliver"}
    for code, each in asked.items():
        span = delivered[each.request_id]
        assert span.attributes.get("http.response.status_code") == code
        codes = [attributes.get("http.response.status_code") for _, attributes in span.events]
        assert codes == ([None, None, 500] if code else [500, 500, None])


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_variables_of_opentelemetry_count(
    service: Callable[..., Service], receiver: Site, collector: Callable[..., Collector], protocol: str
) -> None:
    spans = collector(protocol)
    traced = service(
        tracing__otlp_endpoint=spans.url,
        tracing__protocol=protocol,
        tracing__sample_ratio=1,
        environ={
            "OTEL_SERVICE_NAME": "gate-north",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20collectors-key",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        },
    )
    traced.finished(traced.ask(receiver.url()))
    resource = whole(spans)["accept"].resource
    assert resource["service.name"] == "gate-north"
    assert resource["deployment.environment.name"] == "test"
    assert resource["chargegate.role"] == "serve"
    if protocol != "grpc":
        assert all("authorization: Bearer collectors-key" in head for head in spans.heads)
        assert all("content-encoding: gzip" in head.lower() for head in spans.heads)


def test_stations_are_told_only_where_that_is_asked_for(
    service: Callable[..., Service], receiver: Site, collector: Callable[..., Collector]
) -> None:
    spans = collector()
    traced = service(tracing__otlp_endpoint=spans.url, tracing__sample_ratio=1, tracing__station_ids=True)
    asked = traced.ask(receiver.url())
    seen = whole(spans)
    assert {span.attributes["chargegate.station_id"] for span in seen.values()} == {asked.station_id}


def test_what_is_not_traced_carries_the_clients_context_unchanged(
    service: Callable[..., Service], authorizer: Site, receiver: Site, collector: Callable[..., Collector]
) -> None:
    spans = collector()
    traced = service(
        tracing__otlp_endpoint=spans.url,
        tracing__sample_ratio=1,  # but a client that wants none has none
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
    )
    for given in (parent("00"), parent("02"), parent("fe", version="cc")):
        asked = traced.ask(receiver.url(), headers={"traceparent": given})
        traced.finished(asked)
        assert receiver.calls_to(asked.callback_url)[0].headers["traceparent"] == given
        assert authorizer.calls_to(asked.driver_token)[0].headers["traceparent"] == given
    last = traced.ask(receiver.url())
    whole(spans)
    assert {span.attributes["chargegate.request_id"] for span in spans.spans()} == {last.request_id}


def test_without_a_collector_the_context_is_carried_and_logged(service: Callable[..., Service], receiver: Site) -> None:
    plain = service()
    given = parent()
    asked = plain.ask(receiver.url(), headers={"traceparent": given})
    without = plain.ask(receiver.url())
    for each in (asked, without):
        plain.finished(each)
    assert receiver.calls_to(asked.callback_url)[0].headers["traceparent"] == given
    assert "traceparent" not in receiver.calls_to(without.callback_url)[0].headers
    lines = [json.loads(line) for line in plain.log.splitlines()]
    told = [line.get("trace_id") for line in lines if line.get("request_id") == asked.request_id]
    assert len(told) >= 3
    assert set(told) == {given.split("-")[1]}
    assert not any("trace_id" in line for line in lines if line.get("request_id") == without.request_id)


def test_a_traceparent_that_holds_the_drivers_token_is_dropped(
    service: Callable[..., Service], receiver: Site, collector: Callable[..., Collector]
) -> None:
    spans = collector()
    traced = service(tracing__otlp_endpoint=spans.url, tracing__sample_ratio=1)
    token = uuid.uuid4().hex
    asked = traced.ask(receiver.url(), driver_token=token, headers={"traceparent": f"00-{token}-{'1' * 16}-01"})
    traced.finished(asked)
    seen = whole(spans)
    assert seen["accept"].trace_id != token
    assert token not in traced.log


def test_strangers_do_not_decide_how_much_is_traced(
    service: Callable[..., Service], receiver: Site, collector: Callable[..., Collector]
) -> None:
    spans = collector()
    traced = service(tracing__otlp_endpoint=spans.url, tracing__sample_ratio=0, tracing__max_requested_per_second=1)
    began = time.monotonic()
    asked = [traced.ask(receiver.url(), headers={"traceparent": parent()}) for _ in range(60)]
    for each in asked:
        traced.finished(each)
    traced.stop()
    lasted_s = time.monotonic() - began
    made = spans.names().count("accept")
    assert 1 <= made <= lasted_s + 2
    assert made < len(asked)


def counts(traced: Service) -> tuple[float, float]:
    samples = traced.metrics()
    return (samples['trace_spans_total{outcome="sent"}'], samples['trace_spans_total{outcome="lost"}'])


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("how", ["nobody listens", "silent", "refusing"])
def test_a_collector_that_takes_nothing_costs_only_traces(
    service: Callable[..., Service],
    receiver: Site,
    site: Callable[..., Site],
    collector: Callable[..., Collector],
    protocol: str,
    how: str,
) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if how != "nobody listens":
            listening.listen()  # connections are made by the kernel, and nobody answers
        endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
        if how == "refusing":
            refusing = collector()  # over gRPC, what answers does not even speak the protocol
            refusing.status = 400
            endpoint = refusing.url
        traced = service(
            tracing__otlp_endpoint=endpoint,
            tracing__protocol=protocol,
            tracing__sample_ratio=1,
            server__shutdown_grace_ms=1500,
        )
        asked = [traced.ask(receiver.url()) for _ in range(20)]
        for each in asked:
            assert traced.finished(each)["status"] == "COMPLETED"
        if how == "refusing":
            eventually(lambda: counts(traced)[1] >= 20, 40, "no span was counted as lost")
        assert traced.stop() == 0
    lines = [json.loads(line) for line in traced.log.splitlines()]  # nothing writes beside the log
    assert "stopped" in {line["event"] for line in lines}
    assert not [line for line in lines if line["level"] == "error"]
    assert len([line for line in lines if "collector" in line["event"]]) <= 2


def test_what_waits_is_sent_at_the_end_and_a_collector_that_comes_back_is_used(
    service: Callable[..., Service], receiver: Site, collector: Callable[..., Collector]
) -> None:
    spans = collector()
    spans.status = 404
    traced = service(tracing__otlp_endpoint=spans.url, tracing__sample_ratio=1)
    traced.finished(traced.ask(receiver.url()))
    eventually(lambda: counts(traced)[1] >= 5, 40, "no span was counted as lost")
    spans.status = 200
    traced.finished(traced.ask(receiver.url()))
    whole(spans)
    last = traced.ask(receiver.url())
    traced.finished(last)
    assert traced.stop() == 0
    ids = [span.attributes["chargegate.request_id"] for span in spans.spans()]
    assert ids.count(last.request_id) == len(WHOLE)


@pytest.mark.parametrize(
    "endpoint",
    ["collector:4318", "ftp://collector", "http://", "http://user:secret-pass@collector", "http://a/?key=secret-pass"],
)
def test_an_endpoint_that_is_none_stops_the_start(service: Callable[..., Service], endpoint: str) -> None:
    traced = service(started=False, tracing__otlp_endpoint=endpoint)
    assert traced.spawn().wait(40) == 1
    assert "tracing.otlp_endpoint: " in traced.log
    assert "secret-pass" not in traced.log
    assert len(traced.log.splitlines()) == 1


def test_an_endpoint_without_the_extra_stops_the_start(service: Callable[..., Service]) -> None:
    """The extra is hidden from the interpreter, as where it was never installed."""
    traced = service(started=False, tracing__otlp_endpoint="http://127.0.0.1:4318")
    hidden = traced.folder / "hidden.py"
    hidden.write_text(
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from chargegate.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    assert traced.spawn(sys.executable, str(hidden)).wait(40) == 1
    assert "pip install 'chargegate[otel]'" in traced.log
    assert len(traced.log.splitlines()) == 1


def test_without_an_endpoint_nothing_is_imported(service: Callable[..., Service]) -> None:
    plain = service(started=False)
    code = (
        "import sys, chargegate.cli, chargegate.app.serving, chargegate.app.tracing\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'grpc'))])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=plain.folder, capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"
