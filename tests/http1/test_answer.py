"""Answers as receivers write them: what curl takes is taken, what could be read in two ways is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargegate.http1.answer import MAX_HEAD, Answer, MalformedAnswer, common_answer

LIMIT = 65536


def read(data: bytes, pieces: int = 0, limit: int = LIMIT) -> Answer:
    """The answer after all of this, in pieces of so many bytes."""
    answer = Answer(limit)
    size = pieces or len(data) or 1
    for start in range(0, len(data), size):
        answer.feed(data[start : start + size])
    return answer


def crlf(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((*lines, b"", b"")) + body


SLOPPY = {
    "lines that end in LF": b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
    "mixed line ends": b"HTTP/1.1 200 OK\r\ncontent-length: 2\n\r\nok",
    "no reason": crlf(b"HTTP/1.1 204"),
    "a reason of many words": crlf(b"HTTP/1.1 204 All   is well \x80"),
    "two spaces": crlf(b"HTTP/1.1  204 No Content"),
    "HTTP/1.0": crlf(b"HTTP/1.0 200 OK", b"content-length: 2", body=b"ok"),
    "a folded field": b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\tc\r\ncontent-length: 2\r\n\r\nok",
    "a folded length": b"HTTP/1.1 200 OK\r\ncontent-length:\r\n 2\r\n\r\nok",
    "a space before the colon": crlf(b"HTTP/1.1 200 OK", b"Content-Length : 2", body=b"ok"),
    "a control character in a value": crlf(b"HTTP/1.1 200 OK", b"x: a\x01b\x00", b"content-length: 2", body=b"ok"),
    "no space before the reason": crlf(b"HTTP/1.1 200OK", b"content-length: 2", body=b"ok"),
    "small letters": crlf(b"http/1.1 200 ok", b"content-length: 2", body=b"ok"),
    "a coding with a parameter": crlf(
        b"HTTP/1.1 200 OK", b"transfer-encoding: Chunked ; q=1", body=b"2\r\nok\r\n0\r\n\r\n"
    ),
    "identity beside chunks": crlf(
        b"HTTP/1.1 200 OK", b"transfer-encoding: identity, chunked", body=b"2\r\nok\r\n0\r\n\r\n"
    ),
    "a word behind a chunk size": crlf(
        b"HTTP/1.1 200 OK", b"transfer-encoding: chunked", body=b"2 bytes\r\nok\r\n0\r\n\r\n"
    ),
    "the same length twice": crlf(b"HTTP/1.1 200 OK", b"content-length: 2", b"Content-Length: 02", body=b"ok"),
    "the same length in one field": crlf(b"HTTP/1.1 200 OK", b"content-length: 2, 2", body=b"ok"),
    "identity": crlf(b"HTTP/1.1 200 OK", b"transfer-encoding: identity", b"content-length: 2", body=b"ok"),
    "chunks": crlf(b"HTTP/1.1 200 OK", b"transfer-encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n"),
    "padded chunk sizes": crlf(b"HTTP/1.1 200 OK", b"transfer-encoding: chunked", body=b" 0002 \r\nok\r\n000\r\n\r\n"),
    "chunk extensions": crlf(
        b"HTTP/1.1 200 OK", b"transfer-encoding: chunked", body=b'2;a="\x01"\r\nok\r\n0;b\r\n\r\n'
    ),
    "chunks with LF": b"HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n2\nok\n0\n\n",
    "trailers": crlf(b"HTTP/1.1 200 OK", b"transfer-encoding: chunked", body=b"2\r\nok\r\n0\r\nx: y\r\nz\r\n\r\n"),
    "a compressed body": crlf(b"HTTP/1.1 200 OK", b"transfer-encoding: gzip, chunked", body=b"2\r\nok\r\n0\r\n\r\n"),
    "interim answers": crlf(b"HTTP/1.1 100 Continue")
    + crlf(b"HTTP/1.1 103 Hints", b"link: x")
    + crlf(b"HTTP/1.1 204 X"),
}


@pytest.mark.parametrize("data", SLOPPY.values(), ids=SLOPPY)
@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_a_2xx_is_a_success_however_it_is_written(data: bytes, pieces: int) -> None:
    answer = read(data, pieces)
    assert answer.done
    assert 200 <= answer.status < 300
    assert not answer.surplus
    assert bytes(answer.body) in (b"", b"ok")


def test_without_a_length_the_end_of_the_connection_is_that_of_the_answer() -> None:
    answer = read(crlf(b"HTTP/1.1 200 OK", b"x: y", body=b"some"))
    assert not answer.done
    assert answer.closed()
    assert (answer.done, answer.persistent, bytes(answer.body)) == (True, False, b"some")


AMBIGUOUS = {
    "a line without a colon": crlf(b"HTTP/1.1 200 OK", b"nonsense", b"content-length: 2", body=b"ok"),
    "two lengths": crlf(b"HTTP/1.1 200 OK", b"content-length: 2", b"content-length: 3", body=b"okk"),
    "two lengths in one field": crlf(b"HTTP/1.1 200 OK", b"content-length: 2, 3", body=b"okk"),
    "a length beside chunks": crlf(
        b"HTTP/1.1 200 OK", b"content-length: 2", b"transfer-encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n"
    ),
    "a length that is none": crlf(b"HTTP/1.1 200 OK", b"content-length: two", body=b"ok"),
    "a negative length": crlf(b"HTTP/1.1 200 OK", b"content-length: -2", body=b"ok"),
    "an endless number": crlf(b"HTTP/1.1 200 OK", b"content-length: " + b"9" * 40, body=b"ok"),
    "a chunk size that is none": crlf(b"HTTP/1.1 200 OK", b"transfer-encoding: chunked", body=b"xyz\r\nok\r\n"),
    "a chunk longer than its size": crlf(
        b"HTTP/1.1 200 OK", b"transfer-encoding: chunked", body=b"2\r\nokay\r\n0\r\n\r\n"
    ),
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "RTSP": b"RTSP/1.0 200 OK\r\n\r\n",
    "no HTTP": b"\x15\x03\x01\x00\x02\x02\x16",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
}


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS)
@pytest.mark.parametrize("pieces", [0, 1])
def test_what_could_be_read_in_two_ways_is_no_answer(data: bytes, pieces: int) -> None:
    with pytest.raises(MalformedAnswer):
        read(data, pieces)


def endless_heads() -> dict[str, bytes]:
    field = b"x: " + b"y" * 1000 + b"\r\n"
    return {
        "fields": b"HTTP/1.1 200 OK\r\n" + field * 70,
        "a field": b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD,
        "interim answers": crlf(b"HTTP/1.1 100 Continue", b"x: " + b"y" * 1000) * 70,
        "a chunk extension": crlf(b"HTTP/1.1 200 OK", b"transfer-encoding: chunked", body=b"1;" + b"x" * 5000),
        "a trailer": crlf(b"HTTP/1.1 200 OK", b"transfer-encoding: chunked", body=b"0\r\nx: " + b"y" * 5000),
    }


@pytest.mark.parametrize("kind", endless_heads())
@pytest.mark.parametrize("pieces", [0, 777])
def test_what_does_not_end_is_no_answer(kind: str, pieces: int) -> None:
    with pytest.raises(MalformedAnswer):
        read(endless_heads()[kind], pieces)


ENDLESS_BODIES = {
    "a length": crlf(b"HTTP/1.1 200 OK", b"content-length: 99999999") + b"x" * 2000,
    "no length": crlf(b"HTTP/1.1 200 OK") + b"x" * 2000,
    "a chunk": crlf(b"HTTP/1.1 200 OK", b"transfer-encoding: chunked") + b"ffffffff\r\n" + b"x" * 2000,
    "tiny chunks": crlf(b"HTTP/1.1 200 OK", b"transfer-encoding: chunked") + b"1\r\nx\r\n" * 400,
    "extensions": crlf(b"HTTP/1.1 200 OK", b"transfer-encoding: chunked") + b"1;aaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n" * 80,
    "trailers": crlf(b"HTTP/1.1 200 OK", b"transfer-encoding: chunked") + b"0\r\n" + b"x: y\r\n" * 400,
}


@pytest.mark.parametrize("data", ENDLESS_BODIES.values(), ids=ENDLESS_BODIES)
@pytest.mark.parametrize("pieces", [0, 1, 100])
def test_every_byte_counts_and_the_status_stands_when_they_are_too_many(data: bytes, pieces: int) -> None:
    answer = read(data, pieces, limit=1000)
    assert (answer.done, answer.status, answer.persistent) == (True, 200, False)
    assert len(answer.body) <= 1000


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes_are_an_answer_or_are_not(data: bytes, pieces: int) -> None:
    try:
        answer = read(b"HTTP/1.1 " + data, pieces)
    except MalformedAnswer:
        return
    assert len(answer.body) <= LIMIT
    answer.closed()


LINES = st.sampled_from(
    [
        *(
            b"Content-Length: 2",
            b"content-length: 0",
            b"content-length : 2",
            b"Content-Length: 2, 2",
            b"CONTENT-LENGTH: 2",
        ),
        *(b"content-type: a", b"Cache-Control: b", b"Connection: keep-alive", b"connection: close", b"Keep-Alive: 5"),
        *(
            b"date: x",
            b" folded",
            b"no colon",
            b": no name",
            b"transfer-encoding: chunked",
            b"retry-after: 1",
            b"x: a\rb",
        ),
    ]
)


@given(
    st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 200", b"HTTP/1.1 204 X", b"HTTP/1.0 200 OK", b"HTTP/1.1 503 No"]),
    st.lists(LINES, max_size=5),
    st.sampled_from([b"\r\n", b"\r\n", b"\n"]),
    st.sampled_from([b"ok", b"", b"okay"]),
    st.integers(1, 4),
)
def test_the_short_way_says_what_the_long_one_does(
    status: bytes, lines: list[bytes], end: bytes, body: bytes, limit: int
) -> None:
    data = end.join([status, *lines, b"", b""]) + body
    short = common_answer(data, limit)
    if short is not None:
        answer = read(data, limit=limit)
        assert short == (answer.status, answer.body)
        assert (answer.done, answer.persistent, answer.surplus, answer.retry_after) == (True, True, False, None)


def test_the_short_way_is_taken() -> None:
    fields = [
        b"Server: x",
        b"Connection: keep-alive",
        b"Content-Type: a",
        b"Content-Length: 2",
        b"Keep-Alive: timeout=5",
    ]
    assert common_answer(crlf(b"HTTP/1.1 201 Created", *fields, body=b"ok"), LIMIT) == (201, b"ok")


CODINGS = st.sampled_from([b"", b"chunked", b"identity", b"gzip, chunked"])


@given(
    st.integers(200, 599).filter(lambda status: status not in (204, 304)),
    CODINGS,
    st.binary(max_size=300),
    st.sampled_from([b"\r\n", b"\n"]),
    st.integers(1, 40),
)
def test_what_was_written_is_read(status: int, coding: bytes, body: bytes, end: bytes, pieces: int) -> None:
    fields = [b"HTTP/1.1 %d X" % status, b"retry-after: 7"]
    content = body
    if coding:
        fields.append(b"Transfer-Encoding: " + coding)
    if b"chunked" in coding:
        parts = [body[start : start + 7] for start in range(0, len(body), 7)]
        content = b"".join(b"%x%b%b%b" % (len(part), end, part, end) for part in parts) + b"0" + end + end
    else:
        fields.append(b"Content-Length: %d" % len(body))
    answer = read(end.join([*fields, b"", b""]) + content, pieces)
    assert (answer.done, answer.status, bytes(answer.body)) == (True, status, body)
    assert (answer.retry_after, answer.persistent, answer.surplus) == ("7", True, False)
