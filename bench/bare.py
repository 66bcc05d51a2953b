"""The floor of accepting: a bare ASGI application that decodes the same body and sends the same answer."""

import sys
import time
import uuid
from typing import Any

import msgspec
import uvicorn


class Body(msgspec.Struct):
    """The three members of a request. Only their types are checked."""

    station_id: str
    driver_token: str
    callback_url: str


MESSAGE = "Request is being processed asynchronously. The result will be sent to the provided callback URL."
decode = msgspec.json.Decoder(Body).decode
encode = msgspec.json.Encoder().encode


async def app(_scope: dict[str, Any], receive: Any, send: Any) -> None:
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


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        lifespan="off",
        server_header=False,
    )
