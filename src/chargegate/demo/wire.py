"""The demo's own HTTP, without the service's code: a client, and servers for callbacks and for the authorizer."""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

_LIMIT_S = 10


@dataclass(frozen=True)
class Answer:
    """An answer of the service, and how long it took."""

    status: int
    body: bytes
    took_ms: float

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Call:
    """A request to one of the demo's servers. The names of its headers are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes


async def send(
    base: str, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send one request over its own connection. Raises ``OSError`` or ``HTTPException``."""
    return await asyncio.to_thread(_send, base, method, path, body, headers or {})


def _send(base: str, method: str, path: str, body: object, headers: Mapping[str, str]) -> Answer:
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=_LIMIT_S)
    content = None if body is None else json.dumps(body)
    started = time.perf_counter()
    try:
        connection.request(method, path, content, {"content-type": "application/json", **headers})
        response = connection.getresponse()
        answer = response.read()
        return Answer(response.status, answer, (time.perf_counter() - started) * 1000)
    finally:
        connection.close()


class Server(ThreadingHTTPServer):
    """An HTTP/1.1 server on a free port of 127.0.0.1, for the time of a ``with`` block.

    ``answer`` gives the status and the body for each POST. It is called in a thread of the connection, and may block.
    """

    block_on_close = False

    def __init__(self, answer: Callable[[Call], tuple[int, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """Ignore a broken connection: the demo kills the client."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, answer = self.server.answer(Call(self.path, headers, body))
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_request(self, *_: object) -> None:
        """Write nothing to the terminal."""
