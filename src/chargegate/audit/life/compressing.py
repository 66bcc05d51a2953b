"""Compression of a rotated file, and what is in a compressed one."""

import contextlib
import csv
import gzip
import hashlib
import io
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Final

import msgspec

from chargegate.audit.csv_lines import HEAD_BYTES, first_time
from chargegate.audit.life.files import COMPRESSED, PART, LogFile, open_regular, remove, sync_folder
from chargegate.audit.zst import MAGIC, zstd
from chargegate.model import from_iso

_Parameter = zstd.CompressionParameter
_GZIP: Final = b"\x1f\x8b"
_CHUNK: Final = 1024 * 1024
_LEVEL: Final = 3
"""Most of a line is random (ids and hashes), so that higher levels take longer and save little."""


class Stopped(Exception):
    """The process ends, and the work with it. What was not done is done by the next run."""


class Damaged(Exception):
    """A file does not hold what it should. The message names it."""


class Content(msgspec.Struct, frozen=True):
    """What is in a compressed file. ``sha256`` and ``size`` are of the file itself, ``first`` and ``last`` the times of
    its oldest and newest row (Unix ms), None where it has none."""

    sha256: str
    size: int
    rows: int
    first: int | None
    last: int | None


def compress(file: LogFile, stop: threading.Event) -> Path:
    """Replace a rotated file by a compressed one. The new file is written beside it, synced and read back; only then it
    gets its name, and only then the old one goes. Raises ``OSError``, ``Damaged`` and ``Stopped``."""
    target = file.path.with_name(file.path.name + COMPRESSED)
    part = file.path.with_name(f".{target.name}{PART}")
    descriptor = open_regular(file.path)
    with os.fdopen(descriptor, "rb") as source:
        status = os.fstat(descriptor)
        original = _copy(source, part, stop)
        try:
            os.chmod(part, status.st_mode & 0o777)  # noqa: PTH101 - beside the call below
            os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
            if _digest_of(part, stop) != original:
                raise Damaged(f"{part}: does not hold what was compressed")
            part.rename(target)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    sync_folder(target.parent)
    remove(file.path)
    return target


def _copy(source: IO[bytes], part: Path, stop: threading.Event) -> bytes:
    """Compress into a new file, which is on disk then. Returns the SHA-256 of what was read."""
    digest = hashlib.sha256()
    try:
        with packing(part) as packed:
            while chunk := source.read(_CHUNK):
                _unless(stop)
                digest.update(chunk)
                packed.write(chunk)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    return digest.digest()


@contextlib.contextmanager
def packing(path: Path) -> Iterator[IO[bytes]]:
    """A new file for what is written to be compressed, in place of one of this name. It is on disk at the end. Raises
    ``OSError``."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as raw:
        options = {int(_Parameter.compression_level): _LEVEL, int(_Parameter.checksum_flag): 1}
        with zstd.ZstdFile(raw, "wb", options=options) as packed:
            yield packed  # type: ignore[misc]  # it has all of it that is used
        raw.flush()
        os.fsync(descriptor)


def _digest_of(path: Path, stop: threading.Event) -> bytes:
    """The SHA-256 of what a compressed file holds."""
    digest = hashlib.sha256()
    with opened(path) as packed:
        while chunk := packed.read(_CHUNK):
            _unless(stop)
            digest.update(chunk)
    return digest.digest()


def opened(path: Path, name: str = "") -> AbstractContextManager[IO[bytes]]:
    """The lines of a file, compressed or not. ``name``: what messages call it, where the path tells people nothing.
    Raises ``OSError``, and ``Damaged`` where it cannot be unpacked."""
    return unpacked(open_regular(path), name or str(path))


@contextlib.contextmanager
def unpacked(descriptor: int, name: str) -> Iterator[IO[bytes]]:
    """As ``opened``, of an open file, which this closes."""
    with os.fdopen(descriptor, "rb") as raw:
        start = raw.peek(len(MAGIC))[: len(MAGIC)]
        try:
            if start == MAGIC:
                with zstd.ZstdFile(raw) as packed, io.BufferedReader(packed, _CHUNK) as lines:
                    yield lines
            elif start[: len(_GZIP)] == _GZIP:  # an outside rotation compressed it
                with gzip.GzipFile(fileobj=raw) as unzipped:
                    yield unzipped  # type: ignore[misc]  # it has all of it that is used
            else:
                yield raw
        except (zstd.ZstdError, zlib.error, gzip.BadGzipFile, EOFError) as error:
            raise Damaged(f"{name}: cannot be unpacked: {error}") from None


def begins_after(path: Path, limit: int) -> bool:
    """Whether the first row of a file was decided at this time (Unix ms) or later. Then its name says nothing of its
    age: it was rotated while the clock was behind, as after a start without a battery."""
    with contextlib.suppress(OSError, Damaged), opened(path) as lines:
        begun = first_time(lines.read(HEAD_BYTES))
        return begun is not None and begun >= limit
    return False


def content_of(path: Path, stop: threading.Event) -> Content:
    """Read a compressed file to its end. Raises ``OSError``, ``Damaged`` and ``Stopped``."""
    digest = hashlib.sha256()
    size = 0
    with os.fdopen(open_regular(path), "rb") as raw:
        while chunk := raw.read(_CHUNK):
            _unless(stop)
            digest.update(chunk)
            size += len(chunk)
    rows = 0
    first: str | None = None
    last: str | None = None
    with opened(path) as packed:
        for at in times(packed):
            if not rows % 10_000:
                _unless(stop)
            rows += 1
            first = at if first is None or at < first else first
            last = at if last is None or at > last else last
    return Content(digest.hexdigest(), size, rows, _moment(first), _moment(last))


def times(file: IO[bytes]) -> Iterator[str]:
    """The time of each row. A time in ISO 8601 has always the same form, and so its text sorts as it does."""
    for line in records(file):
        if line[0][:1].isdigit():
            yield line[0]


def records(file: IO[bytes]) -> Iterator[list[str]]:
    """Every line of a log with its fields, the header too. Others may have put anything between our lines."""
    for number, line in enumerate(io.TextIOWrapper(file, "utf-8", "replace", newline="")):
        fields = fields_of(line.rstrip("\r\n"))
        if len(fields) > 1 or not number:
            yield fields


def fields_of(line: str) -> list[str]:
    return next(csv.reader([line])) if '"' in line else line.split(",")


def _moment(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return from_iso(text)
    except ValueError:
        return None


def _unless(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped
