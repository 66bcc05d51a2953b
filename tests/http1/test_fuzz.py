"""Any bytes in answer to a post, over real sockets: an answer or a failure, in time, and nothing is left behind."""

import asyncio
import contextlib
import gc
from typing import Any

import uvloop
from hypothesis import strategies as st

from chargegate.http1 import BadAnswer, CallFailed, HttpClient, Response, TimedOut
from chargegate.model import parse_callback_url
from trying import few_or_many, try_many

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
WORDS = st.sampled_from(
    [
        *(
            OK,
            CHUNKED,
            b"HTTP/1.1 ",
            b"200 OK\r\n",
            b"HTTP/1.0 204 X\n",
            b"HTTP/1.1 100 C\r\n\r\n",
            b"a: b\r\n",
            b" c\r\n",
        ),
        *(
            b"content-length: 3\r\n",
            b"Content-Length : 3\n",
            b"transfer-encoding: identity, chunked\r\n",
            b"\r\n",
            b"\n",
        ),
        *(b"connection: close\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"ffffffff\r\n", b"1;" + b"x" * 3000, b"x" * 900),
    ]
)
PIECES = st.lists(WORDS | st.binary(min_size=1, max_size=30), max_size=10)
CONVERSATION = st.lists(st.tuples(PIECES, st.booleans()), min_size=1, max_size=4)


async def converse(conversation: list[tuple[list[bytes], bool]]) -> list[Response | CallFailed]:
    """Each post is answered by the next pieces, and its connection closed or kept."""
    left = list(conversation)
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        with contextlib.suppress(OSError, EOFError):
            while True:
                await reader.readuntil(b"{}")
                pieces, close = left[min(answered, len(left) - 1)]
                answered += 1
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                if close:
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    target = parse_callback_url(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    client = HttpClient(max_connections=2, max_answer_bytes=2000)
    outcomes: list[Response | CallFailed] = []
    try:
        for _ in conversation:
            try:
                outcomes.append(await client.post(target, b"", b"{}", 0.05))
            except CallFailed as failure:
                outcomes.append(failure)
        assert len(client._open) <= 1
    finally:
        await client.close()
        server.close()
    assert not client._open
    return outcomes


@few_or_many(40, 2_000)
def test_any_bytes_are_an_answer_or_a_failure(examples: int) -> None:
    try_many(examples, CONVERSATION, is_answered)


def is_answered(conversation: list[tuple[list[bytes], bool]]) -> None:
    complaints: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
        outcomes = runner.run(converse(conversation))
    gc.collect()
    assert complaints == []
    assert all(isinstance(outcome, Response | BadAnswer | TimedOut) for outcome in outcomes)
    assert all(len(outcome.body) <= 2000 for outcome in outcomes if isinstance(outcome, Response))
