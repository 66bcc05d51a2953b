"""The demo's own HTTP, none of the service's code: a client, and small servers for callbacks and for the authorizer."""

import asyncio
import http.client
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

_LIMIT_S = 10


@dataclass(frozen=True)
class Answer:
    """What came back, and after how many milliseconds."""

    status: int
    body: bytes
    took_ms: float

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Call:
    """A request that one of the demo's servers got; names of headers are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes


async def send(
    base: str, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """One request over a connection of its own. Raises ``OSError`` or ``HTTPException``."""
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


class Server:
    """An HTTP/1.1 server on a free port of 127.0.0.1. ``answer`` gives the status and body for each request."""

    def __init__(self, answer: Callable[[Call], Awaitable[tuple[int, bytes]]]) -> None:
        self._answer = answer
        self._connections: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._talk(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that was killed ends its connection anywhere: that is part of the demo.
        with suppress(OSError, asyncio.IncompleteReadError):
            while call := await _read(reader):
                status, body = await self._answer(call)
                writer.write(
                    f"HTTP/1.1 {status} {http.client.responses[status]}\r\n"
                    f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        writer.close()


async def _read(reader: asyncio.StreamReader) -> Call | None:
    """The next request with a ``content-length``; None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Call(first.split(" ")[1], headers, body)
