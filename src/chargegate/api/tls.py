"""TLS between a socket and a connection. It is here, and not in the event loop, so that a connection counts and has its
limit of time before its handshake is over, and so that an answer survives what its client goes on sending."""

import asyncio
import contextlib
import ssl
from typing import Any, Final, cast

_PIECE: Final = 64 * 1024


class Encrypted(asyncio.Protocol):
    """A protocol for the socket's transport, and a transport for the connection inside."""

    __slots__ = ("_incoming", "_inside", "_open", "_outgoing", "_outside", "_shut", "_tls")

    def __init__(self, inside: asyncio.Protocol, context: ssl.SSLContext) -> None:
        self._inside = inside
        self._outside: asyncio.Transport = cast(asyncio.Transport, None)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._open = False  # the handshake is done
        self._shut = False  # our side is closed: what still comes is not decrypted

    # The socket's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._outside = cast(asyncio.Transport, transport)
        self._inside.connection_made(cast(asyncio.BaseTransport, self))

    def connection_lost(self, exc: Exception | None) -> None:
        self._inside.connection_lost(exc)
        self._inside = asyncio.Protocol()  # the two would keep each other in memory

    def pause_writing(self) -> None:
        self._inside.pause_writing()

    def resume_writing(self) -> None:
        self._inside.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._shut:
            self._inside.data_received(data)
            return
        self._incoming.write(data)
        try:
            if not self._open:
                self._tls.do_handshake()
                self._open = True
            while not self._shut and (piece := self._tls.read(_PIECE)):
                self._inside.data_received(piece)
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError:
            self._flush()  # the alert that says why
            self._outside.close()
        else:
            if not self._shut and not self.eof_received():
                self.close()

    def eof_received(self) -> bool:
        return self._open and bool(self._inside.eof_received())

    def _flush(self) -> None:
        if self._outgoing.pending and not self._outside.is_closing():
            self._outside.write(self._outgoing.read())

    # The connection's transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._outside.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._outside.is_closing()

    def write(self, data: bytes) -> None:
        if self._open and not self._shut:
            with contextlib.suppress(ssl.SSLError):
                self._tls.write(data)
            self._flush()

    def write_eof(self) -> None:
        """Say that nothing more comes, by TLS and by TCP."""
        self._shut_down()
        if self._outside.can_write_eof():
            self._outside.write_eof()

    def close(self) -> None:
        self._shut_down()
        self._outside.close()

    def abort(self) -> None:
        self._shut = True
        self._outside.abort()

    def pause_reading(self) -> None:
        self._outside.pause_reading()

    def resume_reading(self) -> None:
        self._outside.resume_reading()

    def _shut_down(self) -> None:
        if self._open and not self._shut:
            with contextlib.suppress(ssl.SSLError):  # it would wait for the other side to say the same
                self._tls.unwrap()
            self._flush()
        self._shut = True
