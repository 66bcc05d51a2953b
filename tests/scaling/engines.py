"""The servers that can carry the queue, and what is theirs alone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from typing import TYPE_CHECKING

import asyncpg
import redis

if TYPE_CHECKING:
    from collections.abc import Callable

    from servers.server import Server

ENGINES = ("kafka", "postgres", "rabbitmq", "redis")
numbers = itertools.count(1)


class Engine:
    """What carries the queue."""

    def __init__(self, name: str, server: Server, new_database: Callable[[], str]) -> None:
        self.name = name
        self.server = server
        self._new_database = new_database

    def new_queue(self, url: str = "") -> str:
        """The URL of a queue that is not there yet; ``url``: of the server, as a proxy has it."""
        base, name = url or self.server.url, f"q{uuid.uuid4().hex[:12]}"
        if self.name == "kafka":
            return f"{base}/{name}?create=1&partitions=4&replication=1"
        if self.name == "rabbitmq":
            return f"{base}?queue={name}"
        if self.name == "redis":
            return empty_redis(base)
        return f"{base.rpartition('/')[0]}/{self._new_database().rpartition('/')[2]}"

    def restore(self, queue_url: str) -> None:
        """What whoever lost a server's data must do: a database is not made by those who use it."""
        if self.name == "postgres":
            name = queue_url.rpartition("/")[2]
            asyncio.run(execute(self.server.url, f"CREATE DATABASE {name}"))


def empty_redis(url: str) -> str:
    """The URL of one of the server's databases, with nothing in it."""
    url = f"{url.rpartition('/')[0]}/{next(numbers) % 15 + 1}"
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        client.flushdb()
    return url


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
