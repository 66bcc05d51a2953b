"""The floor of accepting: an application that decodes the same body and sends the same answer, and does nothing else.

Usage: bare.py protocol|asgi; prints its port, and serves until it is terminated.

``protocol`` parses the head with httptools, and has nothing of the service in it. ``asgi`` is an ASGI application on
the service's server.
"""

import asyncio
import sys
import time
import uuid
from typing import Any

import httptools
import msgspec
import uvloop

from chargegate.api import Server
from processes import free_port

MESSAGE = "Request is being processed asynchronously. The result will be sent to the provided callback URL."
HEAD = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


class Body(msgspec.Struct):
    """The three members of a request. Only their types are checked."""

    station_id: str
    driver_token: str
    callback_url: str


class Answer(msgspec.Struct):
    """The members of the answer."""

    status: str
    message: str
    request_id: str
    timestamp: int


decode = msgspec.json.Decoder(Body).decode
encode = msgspec.json.Encoder().encode


def answer() -> bytes:
    """The body of the answer."""
    return encode(Answer("accepted", MESSAGE, str(uuid.uuid4()), time.time_ns() // 1_000_000))


class Bare(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        decode(self.body)
        self.body = b""
        body = answer()
        self.transport.write(HEAD % len(body) + body)  # type: ignore[attr-defined]  # TCP transports can write


async def app(_scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application."""
    decode((await receive())["body"])
    body = answer()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def protocol() -> None:
    """Serve the bare protocol on loopback."""
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def asgi() -> None:
    """Serve the ASGI application on loopback."""
    port = free_port()
    await Server().start(app, "127.0.0.1", port, request_timeout_ms=15_000)
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run({"protocol": protocol, "asgi": asgi}[sys.argv[1]]())
