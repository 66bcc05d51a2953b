"""A connection to RabbitMQ that is rebuilt whole, whatever broke it.

Instead of aio-pika's ``connect_robust``, which makes a publish wait while it reconnects (its issue 636), has come back
without its consumer (231), and restores only what it knows to be lost.
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

T = TypeVar("T")

LIMIT_S: Final = 1.5  # for an answer to a caller
_PATIENCE_S: Final = 4.0  # for a sign of life
_LOOK_S: Final = 0.5
_CLOSE_S: Final = 1.0
_PAUSES_S: Final = (0.1, 0.2, 0.5, 1.0)

logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # a lost connection is logged here, once


class Link:
    """A connection with one channel, for ever: when it breaks, or gives no sign of life for a few seconds, all of it
    is built anew.

    ``build`` makes a new channel ready for use; ``look`` has the server answer something, twice a second; ``lost`` is
    told of each end.
    """

    def __init__(
        self,
        name: str,
        url: URL,
        build: Callable[[Channel], Awaitable[None]],
        look: Callable[[Channel], Awaitable[None]],
        lost: Callable[[], None],
    ) -> None:
        self.channel: Channel | None = None
        self._name = name
        self._url = url
        self._build = build
        self._look = look
        self._lost = lost
        self._connection: AbstractConnection | None = None
        self._trouble = "not connected: no sign of life"
        self._up = asyncio.Event()
        self._wake = asyncio.Event()
        self._alive = 0.0
        self._session: asyncio.Future[None] | None = None
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        failures, told = 0, ""
        while True:
            session = self._session = _observed(self._use())
            self._alive = _now()
            while not session.done() and (left := self._alive + _PATIENCE_S - _now()) > 0:
                await asyncio.wait({session}, timeout=left)
            why = _why(session)
            failures, told = (0, "") if self._up.is_set() else (failures + 1, told)
            await self._tear_down()
            if why != told:
                log.warning("no connection to RabbitMQ", to=self._name, why=why)
            told, self._trouble = why, f"not connected: {why}"
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])

    async def _use(self) -> None:
        # Not aio_pika.connect: what that could not connect, nobody could close.
        self._connection = Connection(self._url, client_properties={"connection_name": f"chargegate {self._name}"})
        await self._connection.connect()
        self._alive = _now()
        pika = await self._connection.channel(on_return_raises=True)
        pika.close_callbacks.add(lambda *_: self._wake.set())
        channel = cast(Channel, await pika.get_underlay_channel())
        await self._build(channel)
        self.channel = channel
        self._up.set()
        log.info("connected to RabbitMQ", to=self._name)
        while True:
            self._alive = _now()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()
            self._wake.clear()
            await self._look(channel)

    async def _tear_down(self) -> None:
        self.channel = None
        self._up.clear()
        self._lost()
        if self._session is not None:
            self._session.cancel()
        if self._connection is not None:
            # This also ends a call in the session that waits on and does not heed being cancelled.
            await asyncio.wait({_observed(self._connection.close())}, timeout=_CLOSE_S)
            self._connection = None
        if self._session is not None:
            await asyncio.wait({self._session}, timeout=_CLOSE_S)

    async def wait(self) -> None:
        """Until it is up, or for as long as a sign of life may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._up.wait()

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    async def ask(self, question: Callable[[Channel], Coroutine[Any, Any, T]]) -> T:
        """Raises ``QueueUnavailable``."""
        channel = self.channel
        if channel is None:
            raise QueueUnavailable(self._trouble)
        answer = _observed(question(channel))
        with self.guarded(channel):
            async with asyncio.timeout(LIMIT_S):
                return await asyncio.shield(answer)  # a call that is cancelled would close its channel

    @contextlib.contextmanager
    def guarded(self, channel: Channel) -> Iterator[None]:
        """Turn failures into ``QueueFull`` and ``QueueUnavailable``; a channel that failed is done with."""
        try:
            yield
        except (AMQPError, OSError, RuntimeError, TimeoutError, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise  # the caller's; else aiormq's way to say that the connection is lost
            if isinstance(error, DeliveryError) and not isinstance(error, PublishError):
                raise QueueFull from None
            if self.channel is channel and self._session is not None:
                self.channel = None
                self._session.cancel()
            raise QueueUnavailable(_in_words(error)) from None

    async def close(self) -> None:
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        await self._tear_down()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _observed(work: Coroutine[Any, Any, T]) -> "asyncio.Future[T]":
    """A task whose failure nobody need ask for."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def _why(session: "asyncio.Future[None]") -> str:
    if not session.done():
        return "no sign of life"
    return _in_words(None if session.cancelled() else session.exception())


def _in_words(error: BaseException | None) -> str:
    if isinstance(error, PublishError):
        return "the queue is gone, and will be declared again"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, InvalidFrameError):  # in its words, an object's address
        return "the server did not let us in; is there such a virtual host, and is it open to the user?"
    return "connection lost" if isinstance(error, ChannelInvalidStateError) else str(error or "connection lost")
