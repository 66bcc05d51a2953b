"""What the tests use outside of the service: sites that it calls, and a way to wait for what it does."""

import asyncio
import base64
import contextlib
import json
import re
import ssl
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""``verify`` for the clients of the tests that speak no TLS. Without it, httpx would read the certificates of all known
authorities for each client, and for each request that is made without one: 17 ms of processor time."""


def eventually(
    condition: Callable[[], T], limit_s: float = 20, why: str | Callable[[], str] = "it did not happen in time"
) -> T:
    """Wait until the condition is true, and return what it gave. What takes longer is looked at less often, because
    most conditions ask a process that is short of processor time."""
    start = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - start
        assert waited < limit_s, why if isinstance(why, str) else why()
        time.sleep(min(0.01 + waited / 20, 0.1))
    return value


@dataclass(frozen=True)
class Call:
    """A request that a site received. ``at`` is in Unix seconds; ``head`` is its first line and headers as sent."""

    at: float
    path: str
    headers: dict[str, str]
    body: bytes
    head: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """How a site answers.

    ``held``: the answer waits for ``release``. ``dripped``: one byte follows another slowly, and the answer never ends.
    ``cut``: the connection ends without an answer. ``raw``: these bytes are sent as they are, also before a cut.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    how: Literal["at_once", "held", "dripped", "cut"] = "at_once"
    raw: bytes | None = None

    def content(self) -> bytes:
        if self.raw is not None or self.how == "cut":
            return self.raw or b""
        named = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        length = 10_000 if self.how == "dripped" else len(self.body)
        return f"HTTP/1.1 {self.status} X\r\ncontent-length: {length}\r\n{named}\r\n".encode() + self.body


def verdict(status: str, reason: str = "", **reply: Any) -> Reply:
    """An authorizer's answer."""
    return Reply(200, json.dumps({"status": status, "reason": reason}).encode(), **reply)


class Site:
    """A real HTTP server in a thread, which records every request.

    A request has a ``key``, by default its path. It gets the next of the replies that were planned for the key, and the
    last of them is repeated. A request without a plan gets ``otherwise``.
    """

    def __init__(
        self,
        otherwise: Callable[[Call], Reply] = lambda _call: Reply(),
        key: Callable[[Call], str] = lambda call: call.path,
    ) -> None:
        self.calls: list[Call] = []
        self.connected = self.most_connected = 0
        self.port = 0
        self._otherwise = otherwise
        self._key = key
        self._plans: dict[str, list[Reply]] = {}
        self._gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.up()

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        """An address of this site; without a path, one that no other test uses."""
        return f"http://{host}:{self.port}{path or '/' + uuid.uuid4().hex}"

    def plan(self, key: str, *replies: Reply) -> None:
        self._plans[_path_of(key)] = list(replies)

    def planned(self, *replies: Reply) -> str:
        """A new address that gives these replies."""
        url = self.url()
        self.plan(url, *replies)
        return url

    def release(self, key: str) -> None:
        """Send the replies that are held for this key, and hold none of the later ones."""
        self._in_loop(self._release(_path_of(key)))

    def hold(self, key: str) -> None:
        """Hold later replies for this key again."""
        self._in_loop(self._hold(_path_of(key)))

    def calls_to(self, key: str) -> list[Call]:
        path = _path_of(key)
        return [call for call in list(self.calls) if self._key(call) == path]

    def up(self) -> None:
        """Listen on the same port as before."""
        self._in_loop(self._up())

    def down(self) -> None:
        """Refuse connections, and end the open ones."""
        self._in_loop(self._down())

    def close(self) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(20)

    async def _release(self, path: str) -> None:
        self._gates[path].set()

    async def _hold(self, path: str) -> None:
        self._gates.pop(path, None)

    async def _up(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1000)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connected += 1
        self.most_connected = max(self.most_connected, self.connected)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the caller left, or the site was told to go down
        finally:
            self.connected -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        call = Call(time.time(), first.split(" ")[1], headers, body, head)
        self.calls.append(call)
        key = self._key(call)
        plan = self._plans.get(key)
        reply = self._otherwise(call) if plan is None else plan.pop(0) if len(plan) > 1 else plan[0]
        if reply.how == "held":
            await self._gates[key].wait()
        writer.write(reply.content())
        while reply.how == "dripped":
            await asyncio.sleep(0.05)
            writer.write(b"x")
            await writer.drain()
        await writer.drain()
        if reply.how == "cut":
            writer.close()
            await writer.wait_closed()
        return reply.how != "cut"


def _path_of(key: str) -> str:
    return re.sub(r"https?://[^/]+", "", key)


@contextlib.contextmanager
def sites() -> Iterator[Callable[..., Site]]:
    """Makes sites, and closes them at the end."""
    made: list[Site] = []

    def make(*arguments: Any) -> Site:
        made.append(Site(*arguments))
        return made[-1]

    try:
        yield make
    finally:
        for site in made:
            site.close()


def leaks(text: bytes, secret: str) -> list[bytes]:
    """The encodings of a secret that a text contains. The secret's length is a multiple of three."""
    return [form for form in _forms(secret.encode()) if form in text]


def _forms(secret: bytes) -> Iterator[bytes]:
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield secret[::-1]
    whole = len(secret) // 3 * 4
    for shift in range(3):
        # Base64 of a secret within a longer text: its first and last characters depend on what stands beside it.
        yield base64.b64encode(b"x" * shift + secret)[4 if shift else 0 : whole]
