"""The floor of accepting: a bare ASGI application on the service's server. It decodes the same body and sends the same
answer.

Usage: bare.py PORT; serves until it is terminated.
"""

import asyncio
import sys
import time
import uuid
from typing import Any

import msgspec
import uvloop

from chargegate.api import Server


class Body(msgspec.Struct):
    """The three members of a request. Only their types are checked."""

    station_id: str
    driver_token: str
    callback_url: str


MESSAGE = "Request is being processed asynchronously. The result will be sent to the provided callback URL."
decode = msgspec.json.Decoder(Body).decode
encode = msgspec.json.Encoder().encode


async def app(_scope: Any, receive: Any, send: Any) -> None:
    """Decode the body and answer 202."""
    decode((await receive())["body"])
    answer = encode(
        {
            "status": "accepted",
            "message": MESSAGE,
            "request_id": str(uuid.uuid4()),
            "timestamp": time.time_ns() // 1_000_000,
        }
    )
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def serve(port: int) -> None:
    """Serve on loopback."""
    await Server().start(app, "127.0.0.1", port, request_timeout_ms=15_000)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
