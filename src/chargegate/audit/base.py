"""The promises that audit sinks make. The ledger holds the decisions, and each sink copies them at its own pace."""

from collections.abc import Collection
from typing import Protocol

from chargegate.ledger.base import AuditSource
from chargegate.ledger.records import AuditRow


class EndLost(OSError):
    """A file of a sink has lost lines that were written into it. Nothing was written now; ``resume`` tells from which
    row on some are missing."""


class AuditSink(Protocol):
    """Files on this machine: a copy of the decisions, each once, in the ledger's order.

    One thread at a time calls the methods, except for ``sync``. Each of them may raise ``OSError``.
    """

    name: str

    def last_written(self) -> list[tuple[int, str]]:
        """The sequence and the request id of the newest row that the sink remembers to have written into each of its
        files. It is not asked for all that it remembers before the ledger has confirmed these rows."""
        ...

    def resume(self, saved: int = 0, confirmed: Collection[tuple[int, str]] = ()) -> int:
        """Prepare for the first ``write``, or for the next one after an ``EndLost``. Returns the sequence of the row
        after which rows may be missing.

        ``saved`` is the position that the ledger has. ``confirmed``: those that ``last_written`` told and the ledger
        has, so that the sink may go by what it remembers with them.
        """
        ...

    def held(self) -> frozenset[str]:
        """After ``resume``, the request ids of the newest rows that the sink holds already."""
        ...

    def write(self, rows: list[AuditRow]) -> None:
        """Write rows. After an ``OSError`` the caller tries the same rows again, and none of them is written twice.
        After an ``EndLost`` it resumes the sink first."""
        ...

    def sync(self) -> None:
        """Make what was written before this call survive a power cut. Another thread may write meanwhile."""
        ...

    def close(self) -> None: ...


class SinkUnavailable(Exception):
    """A sink's server did not take the rows; they can be given to it again. The message is one line, says why, and
    holds no secret. ``wait_s``: how long the server asks to be left alone, if it does."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class RemoteSink(Protocol):
    """A server that keeps a copy of the decisions, in which a row that is written again changes nothing.

    It may mistake two rows about one station, with one status and in one millisecond for one, unless one call has both.
    """

    name: str

    async def write(self, rows: list[AuditRow]) -> int:
        """Returns once the server has all rows but those that it will never take, with the number of these. Raises
        ``SinkUnavailable`` where it may have any part of them."""
        ...

    async def close(self) -> None: ...


class Feed(Protocol):
    """What brings one sink up to date with the ledger, and keeps it so."""

    @property
    def name(self) -> str: ...

    @property
    def failure(self) -> str | None:
        """Why the sink takes no rows at the moment, or None."""
        ...

    @property
    def lag_s(self) -> float:
        """The age in seconds of the oldest row that the sink has yet to write; 0 where it has all."""
        ...

    async def start(self, source: AuditSource) -> None:
        """Raises ``OSError`` if the sink cannot go on where it was."""
        ...

    def offer(self, rows: list[AuditRow]) -> None:
        """Rows were committed just now. The ledger's writing thread calls it. It raises nothing, and waits for no
        server."""
        ...

    async def close(self) -> None:
        """Save the position and close the sink."""
        ...
