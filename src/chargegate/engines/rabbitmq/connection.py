"""A connection to RabbitMQ that is rebuilt whole, whatever broke it.

It stands in for aio-pika's ``connect_robust``, which makes a publish wait while it reconnects (its issue 636), has come
back without its consumer (231), and restores only what it knows to be lost.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar, cast

from aio_pika import Connection
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError, PublishError
from aiormq.channel import Channel
from aiormq.exceptions import InvalidFrameError
from yarl import URL

from chargegate.observe import log
from chargegate.queues.base import QueueFull, QueueUnavailable
from chargegate.storage.budget import EXCHANGE_S
from chargegate.storage.tasks import observed

T = TypeVar("T")

_SILENCE_S: Final = 4.0  # a server that answers nothing for so long is taken for dead
_CHECK_S: Final = 0.5
_CLOSE_S: Final = 1.0
_PAUSES_S: Final = (0.1, 0.2, 0.5, 1.0)

logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # a lost connection is logged here, once


class RebuiltConnection:
    """A connection with one channel. When it breaks, or the server does not answer for a few seconds, all of it is
    built anew, until ``close``.

    ``prepare`` makes a new channel ready for use. ``check`` has the server answer something, twice a second.
    ``on_lost`` is called each time the connection ended. ``channel`` is None while there is none.
    """

    def __init__(
        self,
        name: str,
        url: URL,
        prepare: Callable[[Channel], Awaitable[None]],
        check: Callable[[Channel], Awaitable[None]],
        on_lost: Callable[[], None],
    ) -> None:
        self.channel: Channel | None = None
        self._name = name
        self._url = url
        self._prepare = prepare
        self._check = check
        self._on_lost = on_lost
        self._connection: AbstractConnection | None = None
        self._trouble = "not connected: no sign of life"
        self._ready = asyncio.Event()
        self._check_due = asyncio.Event()
        self._answered_at = 0.0
        self._session: asyncio.Future[None] | None = None
        self._supervising = asyncio.create_task(self._supervise())

    async def _supervise(self) -> None:
        failures, logged = 0, ""
        while True:
            session = self._session = observed(asyncio.ensure_future(self._run()))
            self._answered_at = _now()
            while not session.done() and (left := self._answered_at + _SILENCE_S - _now()) > 0:
                await asyncio.wait({session}, timeout=left)
            reason = _end_of(session)
            failures, logged = (0, "") if self._ready.is_set() else (failures + 1, logged)
            await self._tear_down()
            if reason != logged:
                log.warning("no connection to RabbitMQ", to=self._name, why=reason)
            logged, self._trouble = reason, f"not connected: {reason}"
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])

    async def _run(self) -> None:
        # Not aio_pika.connect: a connection that it could not finish, nobody could close.
        self._connection = Connection(self._url, client_properties={"connection_name": f"chargegate {self._name}"})
        await self._connection.connect()
        self._answered_at = _now()
        pika = await self._connection.channel(on_return_raises=True)
        pika.close_callbacks.add(lambda *_: self._check_due.set())
        channel = cast(Channel, await pika.get_underlay_channel())
        await self._prepare(channel)
        self.channel = channel
        self._ready.set()
        log.info("connected to RabbitMQ", to=self._name)
        while True:
            self._answered_at = _now()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_S):
                    await self._check_due.wait()
            self._check_due.clear()
            await self._check(channel)

    async def _tear_down(self) -> None:
        self.channel = None
        self._ready.clear()
        self._on_lost()
        if self._session is not None:
            self._session.cancel()
        if self._connection is not None:
            # This also ends a call of the library in the session that ignores its cancellation.
            closing = observed(asyncio.ensure_future(self._connection.close()))
            await asyncio.wait({closing}, timeout=_CLOSE_S)
            self._connection = None
        if self._session is not None:
            await asyncio.wait({self._session}, timeout=_CLOSE_S)

    async def wait(self) -> None:
        """Wait until it is ready, or a few seconds have passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SILENCE_S):
                await self._ready.wait()

    def check_now(self) -> None:
        self._check_due.set()

    async def ask(self, question: Callable[[Channel], Coroutine[Any, Any, T]]) -> T:
        """Raises ``QueueUnavailable``."""
        channel = self.channel
        if channel is None:
            raise QueueUnavailable(self._trouble)
        answer = observed(asyncio.ensure_future(question(channel)))
        with self.raising_queue_errors(channel):
            async with asyncio.timeout(EXCHANGE_S):
                return await asyncio.shield(answer)  # a call that is cancelled would close its channel

    @contextlib.contextmanager
    def raising_queue_errors(self, channel: Channel) -> Iterator[None]:
        """Turn failures into ``QueueFull`` and ``QueueUnavailable``; a channel that failed is not used again."""
        try:
            yield
        except (AMQPError, OSError, RuntimeError, TimeoutError, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise  # the caller was cancelled; otherwise aiormq says so that the connection is lost
            if isinstance(error, DeliveryError) and not isinstance(error, PublishError):
                raise QueueFull from None
            if self.channel is channel and self._session is not None:
                self.channel = None
                self._session.cancel()
            raise QueueUnavailable(_reason(error)) from None

    async def close(self) -> None:
        self._supervising.cancel()
        await asyncio.gather(self._supervising, return_exceptions=True)
        await self._tear_down()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _end_of(session: "asyncio.Future[None]") -> str:
    if not session.done():
        return "no sign of life"
    return _reason(None if session.cancelled() else session.exception())


def _reason(error: BaseException | None) -> str:
    if isinstance(error, PublishError):
        return "the queue is gone, and will be declared again"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, InvalidFrameError):  # its own text is an object's address
        return "the server did not let us in; is there such a virtual host, and is it open to the user?"
    return "connection lost" if isinstance(error, ChannelInvalidStateError) else str(error or "connection lost")
