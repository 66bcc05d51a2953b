"""TLS of an outgoing connection: its settings, and the protocol over bytes that the connection moves."""

import ssl
from typing import Final

_PIECE: Final = 65536


def tls_context() -> ssl.SSLContext:
    """A context that trusts the system's authorities and checks names, alike on every interpreter.

    Python 3.13 set two more flags by default. Its strict mode refuses certificates that are not written as RFC 5280
    asks, such as those of an authority without a key usage extension, which is what ``openssl req -x509`` makes. A
    receiver with such a private authority is as safe as before, and Python 3.11 and 3.12 accept it. The other flag lets
    an intermediate authority be trusted without its root. A receiver cannot make the client shake hands again.
    """
    context = ssl.create_default_context()
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.verify_flags = (context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
    return context


class Tls:
    """TLS over bytes. The connection moves them itself, because it counts every byte that a receiver sends."""

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self.established = False

    def received(self, data: bytes) -> None:
        self._incoming.write(data)

    def handshake(self) -> None:
        """Go on as far as what was received allows. Raises ``ssl.SSLError``."""
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            return
        self.established = True

    def encrypt(self, data: bytes) -> bytes:
        """The bytes to send for these. Raises ``ssl.SSLError``."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._session.write(rest) :]
        return self._outgoing.read()

    def decrypt(self) -> bytes | None:
        """A piece of what was received; empty at its end; None if more must come first. Raises ``ssl.SSLError``."""
        if not self._incoming.pending and not self._session.pending():
            return None
        try:
            return self._session.read(_PIECE)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""

    def to_send(self) -> bytes:
        """What TLS itself has to say."""
        return self._outgoing.read() if self._outgoing.pending else b""
