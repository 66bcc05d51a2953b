"""The life of audit files while the disk is full, or the archive is slow, away, versioned, or holds something else."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import random
import subprocess
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import obstore
import pytest

import outside
from servers.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.contract.conftest import Service, Site

HEADER = "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms\n"
LIMIT_S = 120
PART_BYTES = 5 * 1024 * 1024  # from this size on an object is uploaded in parts


def unpacked(content: bytes) -> bytes:
    from backports import zstd

    return zstd.decompress(content)


def ids(content: bytes, name: str) -> list[str]:
    text = (unpacked(content) if name.endswith(".zst") else content).decode()
    assert text.endswith("\n"), name
    return [row[1] for row in list(csv.reader(text.splitlines(), strict=True))[1:]]


def everywhere(service: Service, bucket: Bucket | None = None) -> Counter[str]:
    """The request ids of all lines of the log, in all files."""
    found: Counter[str] = Counter()
    for file in service.folder.glob("authorization_audit*"):
        found.update(ids(file.read_bytes(), file.name))
    for key, content in (bucket.files() if bucket else {}).items():
        found.update(ids(content, key))
    return found


def large(folder: Path, rows: int, name: str = "authorization_audit.log.20250101T000000.000Z") -> set[str]:
    """A rotated file of so many rows, about 130 bytes each, of which a third remains when it is compressed."""
    made = [str(uuid.uuid4()) for _ in range(rows)]
    lines = (
        f"2025-01-01T00:{n // 1000 % 60:02}:00.000Z,{each},{uuid.uuid4()},{random.getrandbits(64):016x},allowed,,1\n"
        for n, each in enumerate(made)
    )
    (folder / name).write_text(HEADER + "".join(lines))
    return set(made)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of its own in a folder. Skips where this user may mount none; the other way of these tests to a
    full disk, a limit of the size of files, needs no rights."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_while_it_compresses_or_exports(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    """By a limit of the size of the files that the command may write."""
    running = service(audit__export_dir="exports")
    everything = running.decided(receiver, 2)
    exported = set(everything)
    audit(running, "rotate")
    everything |= large(running.folder, 20_000)
    before = sorted(path.name for path in running.folder.iterdir())
    audit(running, "compress", "--all", code=1, largest_file=100_000)
    assert sorted(path.name for path in running.folder.iterdir()) == before or everywhere(running) == Counter(
        everything
    )
    assert not list(running.folder.glob(".*.part"))
    audit(running, "export", "--all", code=1, largest_file=100)
    assert not list((running.folder / "exports").glob("*.zst"))
    assert not list((running.folder / "exports").glob(".*.draft"))
    audit(running, "compress", "--all")
    audit(running, "export", "--all")
    assert everywhere(running) == Counter(everything)
    files = (running.folder / "exports").glob("*.zst")
    assert Counter(each for file in files for each in ids(file.read_bytes(), file.name)) == Counter(exported)


def test_a_full_file_system_while_it_compresses_and_exports(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    """By a file system that is nearly full. The service goes on deciding, and says so; then there is room again."""
    with small_disk(tmp_path, 4_000_000):
        running = service(
            audit__csv_path=str(tmp_path / "authorization_audit.log"),
            audit__export_dir=str(tmp_path / "exports"),
            audit__compress_after_ms=1000,
        )
        made = large(tmp_path, 20_000)
        ballast = tmp_path / "ballast"
        room = 4_000_000 - sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        ballast.write_bytes(b"\0" * (room - 200_000))  # the compressed file needs more
        (rotated,) = tmp_path.glob("*.log.2025*")

        def state() -> dict[str, Any]:
            return running.client.get("/health").json()["components"]["audit"]

        outside.eventually(lambda: "life" in state()["details"], LIMIT_S)
        assert rotated.exists()
        everything = made | running.decided(receiver, 2)
        audit(running, "export", "--all", code=0)
        ballast.unlink()
        outside.eventually(lambda: not rotated.exists(), LIMIT_S)
        outside.eventually(lambda: state()["status"] == "UP", LIMIT_S)
        assert running.stop() == 0
        found = [each for file in tmp_path.glob("authorization_audit*") for each in ids(file.read_bytes(), file.name)]
        assert Counter(found) == Counter(everything)


def test_an_object_of_several_parts_is_what_was_sent(
    service: Callable[..., Service], s3_server: Any, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    bucket = Bucket(s3_server)
    running = service(environ=bucket.environ, audit__archive_url=bucket.url)
    made = large(running.folder, 160_000)
    (archived,) = audit(running, "archive", "--all")
    key = f"audit/{archived['to']}"
    head = obstore.head(bucket.store, key)
    assert head["size"] > PART_BYTES
    assert "-" in (head["e_tag"] or "")  # which names the number of the parts
    content = bucket.files()[key]
    attributes = obstore.get(bucket.store, key).attributes
    assert attributes["sha256"] == hashlib.sha256(content).hexdigest()
    assert int(attributes["rows"]) == len(made)
    assert set(ids(content, key)) == made
    assert not list(running.folder.glob("authorization_audit.log.*"))


def test_killed_in_the_middle_of_a_slow_upload(
    service: Callable[..., Service],
    s3_server: Any,
    command: str,
    audit: Callable[..., list[dict[str, Any]]],
) -> None:
    with s3_server.proxied() as proxy:
        bucket = Bucket(s3_server, proxy.url)
        running = service(environ=bucket.environ, audit__archive_url=bucket.url)
        made = large(running.folder, 160_000)
        audit(running, "compress", "--all")
        (file,) = running.folder.glob("*.zst")
        proxy.throttle(2_000_000)
        uploading = subprocess.Popen([command, "audit", "archive", "--all"], cwd=running.folder, env=running._environ)
        time.sleep(2.5)  # it is at the upload or before it, and no condition tells
        uploading.kill()
        uploading.wait()
        assert file.exists()
        proxy.throttle(20_000_000)  # slow, but it goes on
        audit(running, "archive", "--all")
        proxy.heal()
        assert not file.exists()
        assert Counter(each for key, content in bucket.files().items() for each in ids(content, key)) == Counter(made)


@pytest.mark.parametrize("how", ["killed", "paused", "cut off"])
def test_an_archive_goes_away_and_comes_back(
    service: Callable[..., Service], receiver: Site, s3_server: Any, how: str
) -> None:
    """The service goes on, says so, and archives what it has once the archive is back."""
    with s3_server.proxied() as proxy:
        bucket = Bucket(s3_server, proxy.url)
        times = {"audit__rotate_after_ms": 1000, "audit__compress_after_ms": 1000, "audit__archive_after_ms": 1500}
        running = service(environ=bucket.environ, audit__archive_url=bucket.url, **times)
        everything = running.decided(receiver, 3)
        outside.eventually(bucket.files, LIMIT_S)
        away = {"killed": s3_server.kill, "paused": s3_server.pause, "cut off": proxy.reset}[how]
        back = {"killed": s3_server.start, "paused": s3_server.resume, "cut off": proxy.heal}[how]
        away()
        everything |= running.decided(receiver, 3)
        outside.eventually(lambda: running.csv_file.exists() or list(running.folder.glob("*.log.*")), LIMIT_S)
        if how != "paused":  # where nobody answers, a request takes a minute to be given up

            def state() -> dict[str, Any]:
                return running.client.get("/health").json()["components"]["audit"]

            outside.eventually(lambda: state()["status"] == "DEGRADED", LIMIT_S)
        assert running.ready() == 200
        everything |= running.decided(receiver, 3)
        back()
        outside.eventually(lambda: sum(len(ids(content, key)) for key, content in bucket.files().items()) == 9, LIMIT_S)
        outside.eventually(lambda: everywhere(running, bucket) == Counter(everything), LIMIT_S)


def test_a_bucket_that_keeps_versions(
    service: Callable[..., Service], receiver: Site, s3_server: Any, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    bucket = Bucket(s3_server)
    body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    assert bucket.ask("PUT", "versioning", body).status_code == 200
    assert "Enabled" in bucket.ask("GET", "versioning").text
    running = service(environ=bucket.environ, audit__archive_url=bucket.url)
    everything = running.decided(receiver, 3)
    audit(running, "rotate")
    audit(running, "archive", "--all")
    everything |= running.decided(receiver, 2)
    audit(running, "rotate")
    audit(running, "archive", "--all")
    assert everywhere(running, bucket) == Counter(everything)
    assert Counter(row["request_id"] for row in audit(running, "restore")) == Counter(everything)
    gone = audit(running, "prune", "--at", "2126-01-01")[0]["files"]
    assert len(gone) == 2
    assert bucket.files() == {}
    assert audit(running, "archive", "list") == []
    assert bucket.ask("GET", "versions").text.count("<Version>") == 2  # a lifecycle rule deletes these


def test_an_object_that_has_the_name_is_not_overwritten(
    service: Callable[..., Service], receiver: Site, s3_server: Any, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    """It is another file with other content, or its metadata claim that it is this one."""
    bucket = Bucket(s3_server)
    running = service(environ=bucket.environ, audit__archive_url=bucket.url)
    everything = running.decided(receiver, 3)
    audit(running, "rotate")
    (compressed,) = audit(running, "compress", "--all")
    kept = (running.folder / compressed["to"]).read_bytes()
    (archived,) = audit(running, "archive", "--all")
    key = f"audit/{archived['to']}"
    obstore.put(bucket.store, key, b"of somebody else")
    (running.folder / compressed["to"]).write_bytes(kept)
    (again,) = audit(running, "archive", "--all")
    other = f"audit/{again['to']}"
    assert other != key
    found = bucket.files()
    assert found[key] == b"of somebody else"
    assert set(ids(found[other], other)) == everything
    assert not (running.folder / compressed["to"]).exists()
