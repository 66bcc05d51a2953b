"""Fixtures for the tests of the audit: decisions, and a reader of the CSV log."""

import csv
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from chargegate.model import Decision, Status, new_request_id

STATION = "123e4567-e89b-12d3-a456-426614174000"


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Make writes fail that would make a file larger than this, like on a full disk."""
    before = resource.prlimit(0, resource.RLIMIT_FSIZE)
    resource.prlimit(0, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(0, resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def no_file_beyond() -> Callable[[int], AbstractContextManager[None]]:
    return limited


@pytest.fixture(scope="session")
def decide() -> Callable[..., Decision]:
    def made(
        request_id: str = "", *, station: str = STATION, reason: str = "", timestamp: int = 1_767_225_600_123
    ) -> Decision:
        return Decision(
            request_id or new_request_id(), station, "0123456789abcdef", Status.NOT_ALLOWED, reason, 12, timestamp
        )

    return made


@pytest.fixture(scope="session")
def read_log() -> Callable[[Path], list[list[str]]]:
    """The records below the header. Every line must be complete."""

    def read(path: Path) -> list[list[str]]:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
            assert text.endswith("\n")
            file.seek(0)
            header, *records = csv.reader(file, strict=True)
        expected = "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms"
        assert ",".join(header) == expected
        assert all(len(record) == 7 for record in records)
        return records

    return read
