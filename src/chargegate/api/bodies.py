"""Reading JSON bodies within a limit of bytes. The server limits the time."""

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import Receive

from chargegate.api.errors import ClientGone, Refused
from chargegate.api.headers import trace_id
from chargegate.model import Invalid, broken, doubled_fields

_decode = msgspec.json.Decoder(dict[str, Any]).decode


async def read_json(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """A body of at most ``limit`` bytes that says it is JSON. Raises ``Refused`` (415, 413) or ``ClientGone``."""
    media_type = headers.get(b"content-type", b"")
    if media_type != b"application/json" and media_type.partition(b";")[0].strip().lower() != b"application/json":
        raise Refused(415, "unsupported_media_type", "The content type must be application/json.")
    if int(headers.get(b"content-length", b"0")) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] != "http.request":
        raise ClientGone
    body: bytes = message["body"]
    if message["more_body"]:
        body = await _read_on(receive, bytearray(body), limit)
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def _read_on(receive: Receive, body: bytearray, limit: int) -> bytes:
    while len(body) <= limit:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        body += message["body"]
        if not message["more_body"]:
            break
    return bytes(body)


def _too_large(limit: int) -> Refused:
    return Refused(413, "payload_too_large", f"The body must be at most {limit} bytes.")


async def read_object(request: Request, limit: int, *, may_be_empty: bool = False) -> dict[str, Any]:
    """The request's JSON object. Raises ``Invalid``, and what ``read_json`` raises. A trace id that may repeat the
    token is replaced.

    ``may_be_empty``: a request without a body needs no content type either. A browser's form always names one.
    """
    headers = dict(request.scope["headers"])
    named = headers.keys() & {b"content-type", b"transfer-encoding"}
    if may_be_empty and not named and not int(headers.get(b"content-length", b"0")):
        return {}
    body = await read_json(request.receive, headers, limit)
    if b"x-request-id" in headers:
        request.scope["trace_id"] = trace_id(headers, body)
    if may_be_empty and not body:
        return {}
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise Invalid("The request body must be a JSON object.") from None
    if doubled := doubled_fields(body):
        raise broken(doubled)
    return fields
