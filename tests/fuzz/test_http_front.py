"""Requests that were changed at random: always an answer or a closed connection, and nothing breaks."""

import asyncio
import contextlib
import json
import random
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from contract.conftest import Service

SUITE_S: Final = 12
SOAK_S: Final = 600
AT_ONCE: Final = 40
ANSWERS: Final = {100, 200, 202, 204, 400, 401, 403, 404, 405, 413, 415, 422, 503}

_BODY: Final = json.dumps(
    {
        "station_id": "6f9619ff-8b86-4011-b42d-00c04fc964ff",
        "driver_token": "driver-0123456789-0123456789",
        "callback_url": "https://client.example/callback",
    }
).encode()
_POST: Final = b"POST /api/v1/charging-session HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
_ENTRY: Final = b'{"driver_token":"driver-0123456789-0123456789","allowed_stations":[],"note":"x"}'
_SEEDS: Final = (
    _POST + b"content-length: %d\r\n\r\n" % len(_BODY) + _BODY,
    _POST + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(_BODY), _BODY),
    _POST
    + b"transfer-encoding: chunked\r\ntrailer: x\r\n\r\n9;a=b\r\n%b\r\n%x\r\n%b\r\n0\r\nx: y\r\n\r\n"
    % (_BODY[:9], len(_BODY) - 9, _BODY[9:]),
    _POST + b"idempotency-key: k\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(_BODY) + _BODY,
    b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"HEAD /docs HTTP/1.1\r\nhost: 127.0.0.1\r\nx-request-id: abc\r\n\r\n",
    b"GET /api/v1/decisions?limit=5&from=2026-01-01 HTTP/1.1\r\nhost: localhost\r\nconnection: keep-alive\r\n\r\n",
    b"GET http://localhost/api/v1/acl HTTP/1.0\r\n\r\n",
    b"PUT /api/v1/acl HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    % (len(_ENTRY), _ENTRY),
    b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
)
_PIECES: Final = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b"\xff",
    b" ",
    b"\t",
    b":",
    b"%00",
    b"%zz",
    b"/../",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"host: localhost\r\n",
    b"transfer-encoding: chunked\r\n",
    b"content-length: 5\r\n",
    b"content-length: 99999999999999999999\r\n",
    b"connection: close\r\n",
    b"expect: 100-continue\r\n",
    b"authorization: Bearer x\r\n",
    b"x: " + b"y" * 5000 + b"\r\n",
    b"a: b\r\n" * 120,
    b"ffffffff",
    b"HTTP/2.0",
    b'"driver_token":1,',
    b"\\u0064",
    b"[" * 3000,
    b"\xf0\x9f\x94\x8c",
    b"9" * 400,
)


def mutated(chance: random.Random) -> bytes:
    """One to three requests, in which up to six places were changed."""
    data = bytearray(b"".join(chance.choice(_SEEDS) for _ in range(chance.choice((1, 1, 1, 2, 3)))))
    for _ in range(chance.randrange(7)):
        place, size = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 8, 60))
        match chance.randrange(6):
            case 0:
                del data[place : place + size]
            case 1:
                data[place:place] = chance.choice(_PIECES)
            case 2:
                data[place : place + size] = chance.randbytes(size)
            case 3:
                data[place:place] = data[chance.randrange(len(data) + 1) :][:size]
            case 4:
                del data[max(place, 1) :]
            case _:
                lines = data.split(b"\r\n")
                chance.shuffle(lines)
                data = bytearray(b"\r\n".join(lines))
    return bytes(data)


async def ask(port: int, data: bytes, pieces: list[int], *, half_closed: bool) -> bytes:
    """All that comes until the connection ends. It must end, or be one that was answered and goes on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        async with asyncio.timeout(20 if half_closed else 3):
            with contextlib.suppress(OSError):  # also ENOTCONN, from closing a half of what was reset meanwhile
                for start, end in zip([0, *pieces], [*pieces, len(data)], strict=True):
                    writer.write(data[start:end])
                    await writer.drain()
                    await asyncio.sleep(0)
                if half_closed:
                    writer.write_eof()
                while piece := await reader.read(65536):
                    received += piece
    except TimeoutError:
        assert received, data
        assert not half_closed, data
    finally:
        writer.close()
    return received


async def attack(port: int, seconds: float, seed: int) -> int:
    chance = random.Random(seed)
    ends = time.monotonic() + seconds
    sent = 0
    while time.monotonic() < ends:
        asked = []
        for _ in range(AT_ONCE):
            data = mutated(chance)
            pieces = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 0, 1, 3))))
            asked.append((data, pieces, chance.random() < 0.97))
        answers = await asyncio.gather(*(ask(port, d, p, half_closed=h) for d, p, h in asked))
        for (data, _, _), received in zip(asked, answers, strict=True):
            statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", received)]
            assert not received or received.startswith(b"HTTP/1.1 "), data
            assert set(statuses) <= ANSWERS, data
        sent += len(asked)
    return sent


@pytest.mark.parametrize(
    "seconds", [SUITE_S, pytest.param(SOAK_S, marks=[pytest.mark.soak, pytest.mark.timeout(SOAK_S + 120)])]
)
def test_whatever_is_sent(shared_service: Callable[..., "Service"], seconds: float) -> None:
    gate = shared_service(server__request_timeout_ms=300)
    seed = 1 if seconds == SUITE_S else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    assert asyncio.run(attack(gate.port, seconds, seed)) > AT_ONCE
    assert gate.ready() == 200
    for word in ('"traceback"', "Traceback", '"level":"error"', "driver-0123456789-0123456789"):
        assert word not in gate.log
    assert gate.stop() == 0
