"""A proxy before a PostgreSQL server, on which the answer to a commit gets lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
BACKEND_KEY = b"K\x00\x00\x00\x0c"
"""Before a session's number and its secret."""

BEGIN = b"BEGIN"
BIND = b"B"
"""The first byte of a statement that runs: outside of a transaction it also commits."""


class LossyProxy:
    """While ``to_lose`` is above 0, a commit reaches the server and happens, and then the connection breaks. With
    ``held`` the connection breaks at once, and the commit reaches the server only after ``release``. With ``pooler``
    its sessions have numbers of their own, as a pooler's have."""

    def __init__(self, server_url: str, *, pooler: bool) -> None:
        self._server = urlsplit(server_url)
        self._pooler = pooler
        self.url = ""
        self.to_lose = 0
        self.held = False
        self._released = asyncio.Event()
        self._late: list[asyncio.Task[None]] = []

    def listens(self, port: int) -> None:
        self.url = self._server._replace(netloc=f"{self._server.username}:secret@127.0.0.1:{port}").geturl()

    async def release(self) -> None:
        """Let the commits arrive that were held back, and wait until the server has answered them."""
        self._released.set()
        await asyncio.gather(*self._late)

    async def _commit_late(self, server: asyncio.StreamReader, requests: asyncio.StreamWriter, commit: bytes) -> None:
        await self._released.wait()
        requests.write(commit)
        await server.read(65536)
        requests.transport.abort()

    async def serve(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        server, requests = await asyncio.open_connection(self._server.hostname, self._server.port)
        lost = asyncio.Event()
        late, begun = b"", False

        async def forward() -> None:
            nonlocal late, begun
            while data := await client.read(65536):
                begun = data[5:10] == BEGIN or (begun and data != COMMIT)
                if self.to_lose and (data == COMMIT or (data[:1] == BIND and not begun)):
                    self.to_lose -= 1
                    lost.set()
                    if self.held:
                        late = data
                        return
                requests.write(data)

        async def answer() -> None:
            while (data := await server.read(65536)) and not lost.is_set():
                answers.write(_renumbered(data) if self._pooler else data)

        both = [asyncio.ensure_future(forward()), asyncio.ensure_future(answer())]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        if late:
            self._late.append(asyncio.create_task(self._commit_late(server, requests, late)))
        for writer in (answers,) if late else (requests, answers):
            writer.transport.abort()


def _renumbered(answer: bytes) -> bytes:
    before, key, after = answer.partition(BACKEND_KEY)
    return before + key + bytes(byte ^ 1 for byte in after[:4]) + after[4:] if key else answer


@asynccontextmanager
async def losing_answers(url: str, *, pooler: bool = False) -> AsyncIterator[LossyProxy]:
    proxy = LossyProxy(url, pooler=pooler)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.listens(server.sockets[0].getsockname()[1])
    try:
        yield proxy
    finally:
        server.close()  # uvloop waits for ever to close a loop that still listens
