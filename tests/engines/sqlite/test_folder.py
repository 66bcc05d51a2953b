"""What the engine offers: one file in a folder, which the parts of a process share."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from chargegate.engines import SQLITE, Place, QueueLimits
from chargegate.model import Decision
from chargegate.queues.base import Message
from chargegate.storage.unavailable import Unusable

LIMITS = QueueLimits(max_size=100, lease_ms=1000, prefetch=1)
ENGINE = SQLITE.load()


def run(folder: Path, scenario: Callable[[Place], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(asyncio.wait_for(scenario(Place(folder=folder, exclusive=True)), 20))


def test_the_parts_of_a_process_share_the_file_until_the_last_is_closed(
    tmp_path: Path, make_message: Callable[..., Message]
) -> None:
    async def scenario(place: Place) -> None:
        elsewhere = Place(folder=tmp_path, exclusive=True)
        queue = await ENGINE.open_queue("sqlite", place, LIMITS)
        database = await ENGINE.open_database("sqlite", place, None, needed=True)
        source = await ENGINE.source(place)
        for part in (queue, queue, source, source):
            await part.close()
            with pytest.raises(Unusable, match="uses this database already"):
                await ENGINE.open_queue("sqlite", elsewhere, LIMITS)
        await database.ledger.check()
        await database.close()
        await database.close()
        queue = await ENGINE.open_queue("sqlite", elsewhere, LIMITS)
        await queue.put(make_message())
        await queue.close()

    run(tmp_path, scenario)


def test_a_queue_that_cannot_be_opened_leaves_the_file_free(tmp_path: Path) -> None:
    (tmp_path / "chargegate.db").write_bytes(b"not a database at all\n" * 100)

    async def scenario(place: Place) -> None:
        for _ in range(2):
            with pytest.raises(Unusable, match="file is not a database"):
                await ENGINE.open_queue("sqlite", place, LIMITS)
        assert not place.opened

    run(tmp_path, scenario)


def test_the_folder_tells_what_waits_whether_the_file_is_open_or_not(
    tmp_path: Path, make_message: Callable[..., Message], decide: Callable[..., Decision]
) -> None:
    async def scenario(place: Place) -> None:
        assert await ENGINE.waiting_in_folder(place) == frozenset()
        assert await ENGINE.sealed_prefixes_in_folder(place, 2) == frozenset()
        assert not await asyncio.to_thread((tmp_path / "chargegate.db").exists)
        queue = await ENGINE.open_queue("sqlite", place, LIMITS)
        assert await ENGINE.waiting_in_folder(place, decided=True) == frozenset()
        messages = [make_message(body=body) for body in (b"ab1", b"ab2", b"cd3")]
        for message in messages:
            await queue.put(message)
        database = await ENGINE.open_database("sqlite", place, None, needed=True)
        await database.ledger.record(decide(request_id=messages[0].request_id), 1_000)
        for _ in range(2):
            assert await ENGINE.waiting_in_folder(place) == {message.request_id for message in messages}
            assert await ENGINE.waiting_in_folder(place, decided=True) == {messages[0].request_id}
            assert await ENGINE.sealed_prefixes_in_folder(place, 2) == {b"ab", b"cd"}
            await queue.close()
            await database.close()

    run(tmp_path, scenario)
