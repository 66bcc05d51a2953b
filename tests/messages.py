"""Messages for the tests of queues."""

from collections.abc import Callable

import pytest

from chargegate.model import new_request_id, now_ms
from chargegate.queues.base import Message

STATION = "123e4567-e89b-12d3-a456-426614174000"


def new_message(accepted_at: int | None = None, body: bytes = b"sealed") -> Message:
    return Message(new_request_id(), STATION, now_ms() if accepted_at is None else accepted_at, body)


@pytest.fixture(scope="session")
def make_message() -> Callable[..., Message]:
    return new_message
