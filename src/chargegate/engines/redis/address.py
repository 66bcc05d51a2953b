"""Redis by URL: one server, the master behind Sentinels, or a Cluster.

``redis://[user:password@]host[:port][/db]`` · ``redis+sentinel://…@host[:port],…/service[/db]`` ·
``redis+cluster://…@host[:port],…``; ``rediss`` for TLS. After ``?``: ``ssl_ca_certs``, ``ssl_certfile``,
``ssl_keyfile``, ``ssl_cert_reqs``, ``ssl_check_hostname``, as redis-py names them.
"""

from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from redis.asyncio.connection import parse_url

_PORTS: Final = {"": 6379, "cluster": 6379, "sentinel": 26379}
_OPTIONS: Final = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}


class RedisAddress(NamedTuple):
    """``kind`` is ``sentinel``, ``cluster`` or empty. ``options`` are what redis-py wants to connect."""

    kind: str
    tls: bool
    nodes: list[tuple[str, int]]
    service: str
    options: dict[str, Any]


def parse(url: str) -> RedisAddress:
    """Raises ``ValueError`` for a URL that is not one of the above, without a password."""
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
    return RedisAddress(kind, scheme == "rediss", nodes, service, options)


def _node(text: str, default_port: int) -> tuple[str, int]:
    node = urlsplit(f"//{text}")
    try:
        port = node.port or default_port
    except ValueError:  # whose message could show a part of a password that was not escaped
        raise ValueError("a port is not a number, or a password is not percent-encoded") from None
    if not node.hostname:
        raise ValueError("a host is missing")
    return node.hostname, port
