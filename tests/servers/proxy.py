"""A TCP proxy between a client and a server, which can cut the connection. It runs in a thread of its own."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self

AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class Proxy:
    """Forwards ``port`` of 127.0.0.1 (0: a free one) to the port ``target``. Used by ``with``.

    Each call takes effect before it returns, and may be made from any thread.
    """

    url = ""

    def __init__(self, target: int, port: int = 0) -> None:
        self.port = port
        self._target = target
        self._delay_s = 0.0
        self._latest = time.monotonic()
        self._rate = 0.0  # in bytes a second; 0 for no limit
        self._listener: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._forgotten: set[asyncio.Task[None]] = set()
        self._runner = asyncio.Runner()
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)
        self._ready = threading.Event()

    def silent_s(self) -> float:
        """For how many seconds nothing has come from either side."""
        return time.monotonic() - self._latest

    def drop(self) -> None:
        """Silently hold back the data of both sides. They arrive after ``heal``."""
        self._call(self._drop)

    def forget(self) -> None:
        """Swallow for ever what the connections of now send, on both sides, and answer nothing: as a firewall does that
        has forgotten them. New ones work."""
        self._call(self._forget)

    def delay(self, ms: float) -> None:
        """Delay the data of both sides by so many milliseconds."""
        self._call(self._set_delay, ms / 1000)

    def throttle(self, bytes_per_s: float) -> None:
        """Let through no more than this on each side of each connection."""
        self._call(self._set_rate, bytes_per_s)

    def reset(self) -> None:
        """Reset every connection on both sides, and refuse new ones."""
        self._call(self._reset)

    def heal(self) -> None:
        """Forward everything at full speed again."""
        self._call(self._heal)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        self._call(self._heal)
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._reset)
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _call(self, action: Callable[..., Coroutine[Any, Any, None]], *arguments: float) -> None:
        asyncio.run_coroutine_threadsafe(action(*arguments), self._loop).result(10)

    def _serve(self) -> None:
        with self._runner as runner:
            runner.run(self._until_end())

    async def _until_end(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._flowing = asyncio.Event()
        self._ready.set()
        await self._end.wait()

    async def _drop(self) -> None:
        self._flowing.clear()

    async def _forget(self) -> None:
        self._forgotten |= self._connections.keys()

    async def _set_rate(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s

    async def _set_delay(self, seconds: float) -> None:
        self._delay_s = seconds

    async def _heal(self) -> None:
        self._delay_s = self._rate = 0.0
        self._flowing.set()
        if self._listener is None:
            self._listener = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def _reset(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        ending = dict(self._connections)
        for task, writers in ending.items():
            for writer in writers:
                with contextlib.suppress(OSError):  # closed already
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
                writer.transport.abort()
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers = self._connections[task] = [writer]
        try:
            await self._flowing.wait()
            there, beyond = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(beyond)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward(reader, beyond, task))
                both.create_task(self._forward(there, writer, task))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # when one side has ended, the other is ended too
        finally:
            del self._connections[task]
            self._forgotten.discard(task)
            for open_one in writers:
                open_one.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: asyncio.Task[None]
    ) -> None:
        while data := await reader.read(max(1, int(self._rate / 20)) if self._rate else 65536):
            self._latest = time.monotonic()
            await asyncio.sleep(self._delay_s + (len(data) / self._rate if self._rate else 0))
            await self._flowing.wait()
            if connection not in self._forgotten:
                writer.write(data)
                await writer.drain()
        if connection in self._forgotten:
            return
        await self._flowing.wait()
        with contextlib.suppress(OSError):
            writer.write_eof()
