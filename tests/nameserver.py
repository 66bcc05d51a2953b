"""A real name server on a UDP port of this machine, for tests of how names are resolved."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

_TYPES = {4: 1, 6: 28}


class NameServer:
    """Answers from ``names``: addresses by name. A name that is not there does not exist, one in ``silent`` is never
    answered, and for one in ``failing`` the server says that it failed. Questions of a family in ``silent_families``
    (4 or 6) are never answered. ``asked`` holds every question's name, in lower case.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.silent: set[str] = set()
        self.failing: set[str] = set()
        self.silent_families: set[int] = set()
        self.ttl = 60
        self.negative_ttl: int | None = None  # how long its zone says that a name which is not there stays away
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                question, client = self._socket.recvfrom(4096)
            except OSError:
                return
            if not question:
                return
            if answer := self._answer(question):
                self._socket.sendto(answer, client)

    def _answer(self, question: bytes) -> bytes:
        labels, at = [], 12
        while length := question[at]:
            labels.append(question[at + 1 : at + 1 + length])
            at += 1 + length
        name = b".".join(labels).decode().lower()
        kind = struct.unpack("!H", question[at + 1 : at + 3])[0]
        self.asked.append(name)
        if name in self.silent or any(_TYPES[family] == kind for family in self.silent_families):
            return b""
        found = [ip_address(text) for text in self.names.get(name, [])]
        records = [address.packed for address in found if _TYPES[address.version] == kind]
        code = 2 if name in self.failing else 0 if name in self.names else 3
        zones = [self._zone(self.negative_ttl)] if code == 3 and self.negative_ttl is not None else []
        head = question[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(records), len(zones), 0)
        body = question[12 : at + 5]
        rows = [struct.pack("!HHHIH", 0xC00C, kind, 1, self.ttl, len(packed)) + packed for packed in records]
        return head + body + b"".join(rows + zones)

    @staticmethod
    def _zone(ttl: int) -> bytes:
        """A start of authority: its last number limits how long an absence is remembered (RFC 2308)."""
        data = b"\0\0" + struct.pack("!IIIII", 1, ttl, ttl, ttl, ttl)
        return b"\0" + struct.pack("!HHIH", 6, 1, ttl, len(data)) + data

    def close(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@contextmanager
def name_server() -> Iterator[NameServer]:
    server = NameServer()
    try:
        yield server
    finally:
        server.close()
