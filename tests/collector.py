"""A collector of traces, as anyone has one: it decodes OTLP, over HTTP and over gRPC."""

from __future__ import annotations

import contextlib
import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue


@dataclass(frozen=True)
class Seen:
    """A span as the collector got it. Ids are hexadecimal, times are Unix nanoseconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: int
    end: int
    error: bool
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    links: list[tuple[str, str]]
    resource: dict[str, Any]


class Collector:
    """Listens on one port, and keeps every span and every byte that it got. ``status`` is how it answers over HTTP."""

    def __init__(self, protocol: str) -> None:
        self.bodies: list[bytes] = []
        self.heads: list[str] = []
        self.status = 200
        self._spans: list[Seen] = []
        self._release = threading.Event()
        self._release.set()
        if protocol == "grpc":
            self._grpc = grpc.server(ThreadPoolExecutor(4))
            add_TraceServiceServicer_to_server(_Service(self), self._grpc)
            self.port = self._grpc.add_insecure_port("127.0.0.1:0")
            self._grpc.start()
            self._stop: Callable[[], object] = lambda: self._grpc.stop(0).wait(10)
        else:
            server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
            server.daemon_threads = True
            self.port = server.server_address[1]
            threading.Thread(target=server.serve_forever, daemon=True).start()

            def stop() -> None:
                server.shutdown()
                server.server_close()

            self._stop = stop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hold(self) -> None:
        """Answer nobody from now on."""
        self._release.clear()

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        self._release.wait()
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self._spans += [_seen(span, named) for span in scope.spans]

    def spans(self, trace_id: str = "") -> list[Seen]:
        """The spans of a trace, the first to begin first; without an id, all of them."""
        found = [span for span in list(self._spans) if trace_id in ("", span.trace_id)]
        return sorted(found, key=lambda span: span.start)

    def names(self, trace_id: str = "") -> list[str]:
        return [span.name for span in self.spans(trace_id)]

    def close(self) -> None:
        self._release.set()
        self._stop()


def _seen(span: Any, resource: dict[str, Any]) -> Seen:
    return Seen(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == 2,
        _values(span.attributes),
        [(event.name, _values(event.attributes)) for event in span.events],
        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        resource,
    )


def _values(pairs: Any) -> dict[str, Any]:
    def value(pair: KeyValue) -> Any:
        return getattr(pair.value, pair.value.WhichOneof("value"))

    return {pair.key: value(pair) for pair in pairs}


class _Service(TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:  # noqa: N802 - the protocol's name
        self._collector.take(request.SerializeToString())
        return ExportTraceServiceResponse()


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collector.heads.append(f"{self.requestline}\n{self.headers}")
            if collector.status == 200:
                assert self.path == "/v1/traces"
                assert self.headers["content-type"] == "application/x-protobuf"
                collector.take(body)
            with contextlib.suppress(OSError):
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def collectors() -> Iterator[Callable[..., Collector]]:
    """Makes collectors, which end with the test."""
    made: list[Collector] = []

    def make(protocol: str = "http/protobuf") -> Collector:
        made.append(Collector(protocol))
        return made[-1]

    try:
        yield make
    finally:
        for collector in made:
            collector.close()
