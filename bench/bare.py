"""The floor of accepting: a bare protocol that parses the head with httptools, decodes the same body and sends the same
answer. Nothing of the service is in it.

Usage: bare.py; prints its port, and serves until it is terminated.
"""

import asyncio
import time
import uuid

import httptools
import msgspec
import uvloop

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
        answer = encode(Answer("accepted", MESSAGE, str(uuid.uuid4()), time.time_ns() // 1_000_000))
        self.transport.write(HEAD % len(answer) + answer)  # type: ignore[attr-defined]  # TCP transports can write


async def serve() -> None:
    """Serve on loopback."""
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
