"""What the queue and the ledger of one file change in one commit."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import astuple

from chargegate.engines.sqlite import queue, writes
from chargegate.engines.sqlite.batches import Operation
from chargegate.engines.sqlite.connection import SqliteStore, StorePart
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.queries import insert_new, run_many
from chargegate.engines.sqlite.queue import SqliteQueue
from chargegate.engines.sqlite.statements import LEDGER, QUEUE
from chargegate.ledger.records import AuditRow, Finished
from chargegate.model import Decision
from chargegate.queues.base import Delivery, Message, queue_unavailable
from chargegate.storage.group_commit import Then


class _Decided(msgspec.Struct, frozen=True, gc=False):
    message: Message
    entry: writes.Entry


class _Placed(msgspec.Struct, frozen=True, gc=False):
    """The numbers of the message and of the audit row."""

    row: int
    audit: AuditRow


class SqliteTogether:
    """Keeps the promises of ``together.Together``."""

    def __init__(self, store: SqliteStore, queue: SqliteQueue, ledger: SqliteLedger) -> None:
        self._store = StorePart(store, queue_unavailable)
        self._queue = queue
        self._put = Operation(
            _put,
            committed=lambda placed: ledger.tell([each.audit for each in placed]),
            landed=lambda placed: queue.skip([each.row for _, each in placed]),
        )

    @property
    def waiting(self) -> int:
        return self._queue.waiting

    def put_decided(
        self, message: Message, decision: Decision, client: str, done: Callable[[Delivery | Exception], None]
    ) -> None:
        def told(answer: _Placed | Exception) -> None:
            if isinstance(answer, Exception):
                done(self._store.as_raised(answer))
            else:
                done(Delivery(message, answer.row, fresh=True))

        entry = writes.Entry(decision, message.accepted_at, client)
        self._store.notify(self._put, _Decided(message, entry), told)

    def end(self, delivery: Delivery, finished: Finished, then: Then) -> None:
        self._store.post(_END, (delivery.handle, finished), then)


def _put(connection: sqlite3.Connection, items: list[_Decided]) -> Sequence[_Placed]:
    """The ids are new, so that no row can be there already."""
    rows = insert_new(connection, QUEUE["insert"], [queue.row_of(item.message) for item in items])
    decisions = [item.entry.decision for item in items]
    audit = insert_new(connection, LEDGER["insert_new_audit"], [astuple(decision) for decision in decisions])
    run_many(connection, LEDGER["insert_requests"], [writes.request_row(item.entry) for item in items])
    return [
        _Placed(row, AuditRow(sequence, decision))
        for row, sequence, decision in zip(rows, audit, decisions, strict=True)
    ]


def _end(connection: sqlite3.Connection, items: list[tuple[Any, Finished]]) -> None:
    writes.finish(connection, [finished for _, finished in items])
    queue.delete(connection, [row for row, _ in items])


_END: Final = Operation(_end)
