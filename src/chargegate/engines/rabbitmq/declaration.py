"""The queues and the exchange on the server, and what is asked of them on a channel."""

from typing import Any, Final

from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.channel import Channel
from pamqp.commands import Basic

DELIVERY_LIMIT: Final = 100
"""A message that came back so often is a dead letter; the end of a worker or a connection counts too."""


class Declaration:
    """A quorum queue with its bounds, ``<name>.dead`` for dead letters, and ``<name>.probe``."""

    def __init__(self, name: str, max_size: int) -> None:
        self.name = name
        self._bounds = {"x-delivery-limit": DELIVERY_LIMIT, "x-max-length": max_size}
        self._exists = False

    async def declare(self, channel: Channel) -> None:
        dead = f"{self.name}.dead"
        kind: dict[str, Any] = {"x-queue-type": "quorum"}
        await channel.exchange_declare(dead, exchange_type="fanout", durable=True)
        await channel.queue_declare(dead, durable=True, arguments=kind)
        await channel.queue_bind(dead, dead)
        await channel.queue_declare(f"{self.name}.probe", durable=True, arguments=kind | {"x-max-length": 1})
        fixed = {"x-overflow": "reject-publish", "x-dead-letter-strategy": "at-least-once"}
        arguments = kind | self._bounds | fixed | {"x-dead-letter-exchange": dead}
        try:
            await channel.queue_declare(self.name, durable=True, passive=self._exists, arguments=arguments)
        except ChannelNotFoundEntity:
            self._exists = False
            raise
        except ChannelPreconditionFailed as error:
            # A queue of the same kind keeps the bounds that it was made with; the server's answer names the difference.
            self._exists = any(f"'{bound}'" in str(error) for bound in self._bounds)
            raise

    async def probe(self, channel: Channel) -> None:
        """Have something stored: a server without room or without its majority still answers questions."""
        properties = Basic.Properties(delivery_mode=2)
        await channel.basic_publish(b"", routing_key=f"{self.name}.probe", properties=properties, mandatory=True)

    async def ready(self, channel: Channel) -> int:
        """How many messages wait on the server."""
        return (await channel.queue_declare(self.name, passive=True)).message_count or 0
