"""Connections to Redis, and commands on them."""

import asyncio
import contextlib
from functools import cache
from typing import Any, Final

from hiredis import pack_command
from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MasterDownError, ReadOnlyError, RedisClusterException, RedisError, ResponseError

from chargegate.engines.redis.address import RedisAddress, parse
from chargegate.storage.files import read_text
from chargegate.storage.unavailable import Unavailable

_LOST: Final = {"NOGROUP", "UNBLOCKED"}  # codes of the server's errors


_TRUSTED_S: Final = 0.25
"""A connection that was idle for longer is asked before its use: a firewall may have dropped it without a word."""


class StreamLost(Unavailable):
    """The server is well, but the stream or its group is gone: it lost its data."""


class RedisServer:
    """Sends each command once, ``at_once`` of them at a time, and waits for an answer for at most ``timeout_s``.

    ``connections`` counts those made so far. Where one command runs at a time, a change of it tells that the server
    may have been restarted or replaced. It is None on a Cluster, whose client does not tell.
    """

    def __init__(self, url: str, *, timeout_s: float, at_once: int) -> None:
        """It connects with the first command. Raises ``ValueError`` for a URL that is none of Redis."""
        self.connections: int | None = 0
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(at_once)
        self._sentinels: list[Any] = []
        self._pool: Any = None  # makes the connections; a Cluster's client makes its own
        self._idle: list[tuple[Any, float]] = []  # connections, and since when they are idle by the event loop's clock
        self._closed = False
        self._client = self._connect(parse(url))

    async def run(self, script: str, keys: tuple[str, ...], *arguments: Any) -> Any:
        """Run the script of the file ``<script>.lua``; its keys must share a hash tag. Raises as ``command`` does."""
        # EVAL, not EVALSHA: no script must be loaded again after a restart, a failover or a resharding.
        return await self.command("EVAL", _text(script), len(keys), *keys, *arguments)

    async def command(self, *words: Any) -> Any:
        """Raises ``Unavailable`` where Redis did not do it, or did not say so in time: it may have been done. That is
        ``StreamLost`` where the server lost a stream."""
        try:
            async with asyncio.timeout(self._timeout_s), self._free:
                if self._pool is None:
                    return await self._client.execute_command(*words)
                return await self._exchange(await self._connection(), words)
        except TimeoutError:
            raise Unavailable("Redis did not answer in time") from None
        except Exception as error:  # noqa: BLE001 - the client has no one kind: its own, the system's, uvloop's, a parser's
            if isinstance(error, (ReadOnlyError, MasterDownError)):
                await self._close_idle()  # connected anew, the same name may lead to the new master
            raise _fault(error) from None

    # The client's own way to a connection and back, with its locks, timers and checks, takes longer than the command.

    async def _exchange(self, connection: Any, words: tuple[Any, ...]) -> Any:
        try:
            await connection.send_packed_command(pack_command(words))
            answer = await self._client.parse_response(connection, words[0])
        except BaseException as error:
            await self._put_back(connection, usable=isinstance(error, ResponseError))  # which is an answer
            raise
        await self._put_back(connection, usable=True)
        return answer

    async def _put_back(self, connection: Any, *, usable: bool) -> None:
        if usable and not self._closed:
            self._idle.append((connection, _now()))
        else:
            await _close(connection)

    async def _connection(self) -> Any:
        while self._idle:
            connection, since = self._idle.pop()
            if _now() - since > _TRUSTED_S:
                if await self._answers(connection):
                    return self._idle.pop()[0]
                await self._close_idle()
            elif await _is_quiet(connection):
                return connection
        connection = self._pool.make_connection()
        try:
            await connection.connect()
        except BaseException:
            await _close(connection)
            raise
        return connection

    async def _answers(self, connection: Any) -> bool:
        """Whether one that was idle still does; it is closed if not, which costs a quarter of the time."""
        try:
            async with asyncio.timeout(self._timeout_s / 4):
                await self._exchange(connection, ("PING",))
        except ResponseError:
            return True
        except Exception:  # noqa: BLE001 - see above; whether the server is well is seen with the command itself
            return False
        return True

    async def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            await _close(connection)

    async def close(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(connection.disconnect() for connection, _ in idle), return_exceptions=True)
        await asyncio.gather(*(client.aclose() for client in (self._client, *self._sentinels)))

    # Any: redis-py annotates its asynchronous commands with the synchronous ones' types.
    def _connect(self, where: RedisAddress) -> Any:
        options = where.options | {
            # RESP2: the same answers from every version of redis-py, and no push messages.
            "protocol": 2,
            # A command that was sent may have run: the caller decides whether to send it again.
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": self._timeout_s,
        }
        if where.kind == "cluster":
            self.connections = None
            options["socket_timeout"] = self._timeout_s
            return RedisCluster(startup_nodes=[ClusterNode(*node) for node in where.nodes], ssl=where.tls, **options)
        options["socket_timeout"] = None  # the whole command has its time
        options["redis_connect_func"] = self._connected
        if where.kind == "sentinel":
            # They are asked one after the other: all but the last may be silent.
            each = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), self._timeout_s / (len(where.nodes) + 1))
            asking = each | {"protocol": 2, "retry": Retry(NoBackoff(), 0)}
            sentinel = Sentinel(where.nodes, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]  # redis-py's omission
            self._sentinels = sentinel.sentinels
            master = sentinel.master_for(where.service, ssl=where.tls, **options)
            self._pool = master.connection_pool
            return master
        ((options["host"], options["port"]),) = where.nodes
        if where.tls:
            options["connection_class"] = SSLConnection
        self._pool = ConnectionPool(**options)
        return Redis.from_pool(self._pool)

    async def _connected(self, connection: Any) -> None:
        await connection.on_connect()
        if self.connections is not None:
            self.connections += 1


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _is_quiet(connection: Any) -> bool:
    """Whether nothing came in on an idle connection. What comes can only be its end; else it is closed."""
    can_read = getattr(connection, "can_read", None) or connection.can_read_destructive  # its name before redis-py 8
    with contextlib.suppress(Exception):
        if not await can_read():
            return True
    await _close(connection)
    return False


async def _close(connection: Any) -> None:
    with contextlib.suppress(Exception):
        await connection.disconnect(nowait=True)


@cache
def _text(script: str) -> str:
    return read_text("chargegate.engines.redis", f"{script}.lua")


def _fault(error: Exception) -> Unavailable:
    said = str(error) if isinstance(error, (RedisError, RedisClusterException, OSError, RuntimeError)) else ""
    kind = StreamLost if said.partition(" ")[0] in _LOST else Unavailable
    return kind(said.partition("\n")[0][:200] or type(error).__name__)
