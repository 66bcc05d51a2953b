"""The CSV has one line for each decision, whatever others do to the file and whenever the process is killed."""

from __future__ import annotations

import csv
import gzip
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

HEADER = "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms"


def rename(file: Path) -> None:
    file.rename(file.with_name(f"{file.name}.{random.getrandbits(32)}"))


def copy_and_truncate(file: Path) -> None:
    shutil.copyfile(file, file.with_name(f"{file.name}.{random.getrandbits(32)}"))
    os.truncate(file, 0)


def compress(file: Path) -> None:
    """As ``gzip`` does it after a rename."""
    name = file.with_name(f"{file.name}.{random.getrandbits(32)}")
    file.rename(name)
    name.with_name(name.name + ".gz").write_bytes(gzip.compress(name.read_bytes()))
    name.unlink()


def move_away(file: Path) -> None:
    """Into another folder under another name; somebody else makes the new file."""
    (file.parent / "archive").mkdir(exist_ok=True)
    file.rename(file.parent / "archive" / f"{random.getrandbits(32)}.csv")
    file.touch()


def replace_with_a_header(file: Path) -> None:
    copied = file.with_name(f"{file.name}.{random.getrandbits(32)}")
    shutil.copyfile(file, copied)
    file.unlink()
    file.write_text(HEADER + "\n")


def copy_and_delete(file: Path) -> None:
    shutil.copyfile(file, file.with_name(f"old-{random.getrandbits(32)}.csv"))
    file.unlink()


ROTATIONS = [rename, copy_and_truncate, compress, move_away, replace_with_a_header, copy_and_delete]


def lines(folder: Path) -> Counter[str]:
    """The request ids in the log and in all that was ever made of it. Every line is whole."""
    found: Counter[str] = Counter()
    for file in folder.rglob("*"):
        data = file.is_file() and file.suffix not in (".db", ".toml") and "authorization" not in file.parent.name
        if not data or not (file.name.startswith("authorization_audit") or file.suffix == ".csv"):
            continue
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        for row in csv.reader(content.decode().splitlines(), strict=True):
            assert len(row) == 7, (file, row)
            if row != HEADER.split(","):
                found[row[1]] += 1
    return found


@pytest.mark.parametrize("rotate", ROTATIONS)
def test_rotation_then_a_kill(
    service: Callable[..., Service], receiver: Site, eventually: Callable[..., Any], rotate: Callable[[Path], None]
) -> None:
    """With lines before and after it, two rotations within the five seconds, and one while nobody runs."""
    running = service()
    everything = running.decided(receiver, 7)
    rotate(running.csv_file)
    everything |= running.decided(receiver, 6)
    rotate(running.csv_file)
    everything |= running.decided(receiver, 5)
    running.kill()
    rotate(running.csv_file)
    running.start()
    everything |= running.decided(receiver, 3)
    rotate(running.csv_file)
    running.kill()
    running.start()
    everything |= running.decided(receiver, 2)
    assert running.stop() == 0
    assert lines(running.folder) == Counter(everything)
    running.start()
    assert running.stop() == 0
    assert lines(running.folder) == Counter(everything)


def test_a_file_that_lost_its_end_with_the_kill(service: Callable[..., Service], receiver: Site) -> None:
    """Lines that are gone are written again, also beside a rotation; those in the renamed file are not."""
    running = service()
    everything = running.decided(receiver, 5)
    rename(running.csv_file)
    everything |= running.decided(receiver, 8)
    for garbage in (b"", b"\x00" * 5000, b"2026-01-01T00:00:00.000Z,half", b"\xff,,\n\x00\n,,,,,,\n"):
        running.kill()
        size = running.csv_file.stat().st_size
        os.truncate(running.csv_file, random.randrange(len(HEADER) + 40, size))
        with running.csv_file.open("ab") as file:
            file.write(garbage)
        running.start()
        everything |= running.decided(receiver, 2)
    assert running.stop() == 0
    assert lines(running.folder) == Counter(everything)


def test_a_pipe_in_the_place_of_the_log_holds_up_nothing(
    service: Callable[..., Service], receiver: Site, eventually: Callable[..., Any]
) -> None:
    running = service()
    everything = running.decided(receiver, 3)
    rename(running.csv_file)
    os.mkfifo(running.csv_file)
    everything |= running.decided(receiver, 3)
    assert running.client.get("/health").json()["components"]["audit"]["status"] == "DEGRADED"
    running.csv_file.unlink()
    eventually(lambda: running.client.get("/health").json()["components"]["audit"]["status"] == "UP")
    everything |= running.decided(receiver, 3)
    assert running.stop() == 0
    assert lines(running.folder) == Counter(everything)


def test_an_older_database_is_believed_more_than_the_notes(service: Callable[..., Service], receiver: Site) -> None:
    """A backup that is put back: its decisions are numbered again from there, and none of the new ones is left out."""
    running = service()
    before = running.decided(receiver, 3)
    assert running.stop() == 0
    shutil.copytree(running.data, running.folder / "backup")
    running.start()
    lost = running.decided(receiver, 9)
    running.kill()
    for file in running.data.glob("chargegate.db*"):
        file.unlink()
    for file in (running.folder / "backup").glob("chargegate.db*"):
        shutil.copyfile(file, running.data / file.name)
    running.start()
    after = running.decided(receiver, 4)
    assert running.stop() == 0
    assert lines(running.folder) == Counter(before | lost | after)
