"""Redis by URL: one server, the master behind Sentinels, or a Cluster.

``redis://[user:password@]host[:port][/db]`` · ``redis+sentinel://…@host[:port],…/service[/db]`` ·
``redis+cluster://…@host[:port],…``; ``rediss`` for TLS. After ``?``: ``ssl_ca_certs``, ``ssl_certfile``,
``ssl_keyfile``, ``ssl_cert_reqs``, ``ssl_check_hostname``, as redis-py names them.
"""

import asyncio
import contextlib
from functools import cache
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MasterDownError, ReadOnlyError, RedisClusterException, RedisError

from chargegate.storage.files import read_text
from chargegate.storage.unavailable import Unavailable

_PORTS: Final = {"": 6379, "cluster": 6379, "sentinel": 26379}
_OPTIONS: Final = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
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
        """It connects with the first command. Raises ``ValueError`` for a URL that is not one of the above."""
        self.connections: int | None = 0
        self._timeout_s = timeout_s
        self._answered_at = 0.0  # by the event loop's clock
        self._free = asyncio.Semaphore(at_once)
        self._sentinels: list[Any] = []
        self._pool: Any = None  # a Cluster's client has none
        self._client = self._connect(_address(url))

    async def run(self, script: str, keys: tuple[str, ...], *arguments: Any) -> Any:
        """Run the script of the file ``<script>.lua``; its keys must share a hash tag. Raises as ``command`` does."""
        # EVAL, not EVALSHA: no script must be loaded again after a restart, a failover or a resharding.
        return await self.command("EVAL", _text(script), len(keys), *keys, *arguments)

    async def command(self, *words: Any) -> Any:
        """Raises ``Unavailable`` where Redis did not do it, or did not say so in time: it may have been done. That is
        ``StreamLost`` where the server lost a stream."""
        try:
            async with asyncio.timeout(self._timeout_s), self._free:
                if self._pool is not None and _now() - self._answered_at > _TRUSTED_S:
                    await self._forget_the_dead()
                answer = await self._client.execute_command(*words)
                self._answered_at = _now()
                return answer
        except TimeoutError:
            raise Unavailable("Redis did not answer in time") from None
        except Exception as error:  # noqa: BLE001 - the client has no one kind: its own, the system's, uvloop's, a parser's
            if self._pool is not None and isinstance(error, (ReadOnlyError, MasterDownError)):
                with contextlib.suppress(Exception):  # connected anew, the same name may lead to the new master
                    await self._pool.disconnect(inuse_connections=False)
            raise _fault(error) from None

    async def _forget_the_dead(self) -> None:
        """Ask a connection that was idle before its use. Without an answer, which costs a quarter of the time, it and
        the other idle ones are closed, and the command gets a new one."""
        try:
            async with asyncio.timeout(self._timeout_s / 4):
                await self._client.execute_command("PING")
        except Exception:  # noqa: BLE001 - see above; whether the server is well is seen with the command itself
            with contextlib.suppress(Exception):
                await self._pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        await asyncio.gather(*(client.aclose() for client in (self._client, *self._sentinels)))

    # Any: redis-py annotates its asynchronous commands with the synchronous ones' types.
    def _connect(self, where: "_Address") -> Any:
        options = where.options | {
            # RESP2: the same answers from every version of redis-py, and no push messages.
            "protocol": 2,
            # A command that was sent may have run: the caller decides whether to send it again.
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": self._timeout_s,
            "socket_connect_timeout": self._timeout_s,
        }
        if where.kind == "cluster":
            self.connections = None
            return RedisCluster(startup_nodes=[ClusterNode(*node) for node in where.nodes], ssl=where.tls, **options)
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


@cache
def _text(script: str) -> str:
    return read_text("chargegate.engines.redis", f"{script}.lua")


def _fault(error: Exception) -> Unavailable:
    said = str(error) if isinstance(error, (RedisError, RedisClusterException, OSError, RuntimeError)) else ""
    kind = StreamLost if said.partition(" ")[0] in _LOST else Unavailable
    return kind(said.partition("\n")[0][:200] or type(error).__name__)


class _Address(NamedTuple):
    kind: str
    tls: bool
    nodes: list[tuple[str, int]]
    service: str
    options: dict[str, Any]


def _address(url: str) -> _Address:
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in {"redis", "rediss"} or kind not in _PORTS:
        raise ValueError("must begin with redis://, redis+sentinel:// or redis+cluster://, or rediss for TLS")
    credentials, at, hosts = parts.netloc.rpartition("@")
    nodes = [_node(text, _PORTS[kind]) for text in hosts.split(",")]
    if not kind and len(nodes) > 1:
        raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
    service, database = "", parts.path.strip("/")
    if kind == "sentinel":
        service, _, database = database.partition("/")
        if not service:
            raise ValueError("must name the service that the Sentinels watch: redis+sentinel://host/service")
    if database and (not database.isdigit() or kind == "cluster"):
        raise ValueError("the database must be a number, and a Cluster has none to choose from")
    options: dict[str, Any] = dict(parse_url(f"{scheme}://{credentials}{at}host/{database}?{parts.query}"))
    del options["host"]
    options.pop("connection_class", None)
    if unknown := options.keys() - _OPTIONS - {"username", "password", "db"}:
        raise ValueError(f"unknown option {min(unknown)!r}")
    return _Address(kind, scheme == "rediss", nodes, service, options)


def _node(text: str, default_port: int) -> tuple[str, int]:
    node = urlsplit(f"//{text}")
    try:
        port = node.port or default_port
    except ValueError:  # whose message could show a part of a password that was not escaped
        raise ValueError("a port is not a number, or a password is not percent-encoded") from None
    if not node.hostname:
        raise ValueError("a host is missing")
    return node.hostname, port
