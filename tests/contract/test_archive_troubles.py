"""What is said where the archive refuses, has no such bucket, knows no such keys, or is away."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import outside
from servers.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

LIMIT_S = 120


def failed(service: Service, command: str, *arguments: str, **environ: str) -> str:
    """What a command says that fails; an empty variable is none."""
    env = {name: value for name, value in {**service._environ, **environ}.items() if value}
    done = subprocess.run(
        [command, "audit", *arguments],
        cwd=service.folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    assert "audit.archive_url" in done.stderr
    assert "audit.csv_path" not in done.stderr
    assert not re.search(r"\d ?(ms|µs)\b|<\?xml", done.stderr)
    return done.stderr


@pytest.fixture
def rotated(service: Callable[..., Service], s3_server: Any, receiver: Site, command: str) -> tuple[Service, Bucket]:
    """A service that has stopped, and that has a file to archive."""
    bucket = Bucket(s3_server)
    running = service(environ=bucket.environ, audit__archive_url=bucket.url)
    running.finished(running.ask(receiver.url()))
    assert running.stop() == 0
    done = subprocess.run(
        [command, "audit", "rotate"], cwd=running.folder, env=running._environ, capture_output=True, check=False
    )
    assert done.returncode == 0
    return running, bucket


def test_refusals_say_s3_s_own_word_for_it_and_what_to_do(
    rotated: tuple[Service, Bucket], s3_server: Any, command: str
) -> None:
    service, bucket = rotated
    commands = (("archive", "--all"), ("archive", "list"), ("prune",), ("restore",), ("backfill", "--sink", "csv"))
    for arguments in commands:
        said = failed(service, command, *arguments, AWS_SECRET_ACCESS_KEY="wrong")
        assert "SignatureDoesNotMatch" in said, arguments
        assert "AWS_SECRET_ACCESS_KEY" in said
        assert "InvalidAccessKeyId" in failed(service, command, *arguments, AWS_ACCESS_KEY_ID="NOBODY"), arguments
    reader = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), s3_server.reader, strict=True))
    assert "AccessDenied" in failed(service, command, "archive", "--all", **reader)
    service.configure(**{"audit.archive_url": bucket.url.replace(bucket.name, "nobody")})
    for arguments in commands[1:]:
        assert "NoSuchBucket" in failed(service, command, *arguments), arguments
    service.configure(**{"audit.archive_url": bucket.url.replace("http:", "https:")})
    assert "does not answer" in failed(service, command, "archive", "list")


def test_an_archive_that_is_away_is_told_once(service: Callable[..., Service], s3_server: Any, receiver: Site) -> None:
    """In each turn the request takes another time, and the text stays the same."""
    with s3_server.proxied() as proxy:
        bucket = Bucket(s3_server, proxy.url)
        times = {"audit__rotate_after_ms": 1000, "audit__compress_after_ms": 1000, "audit__archive_after_ms": 1000}
        running = service(environ=bucket.environ, audit__archive_url=bucket.url, audit__retention_ms=10**9, **times)
        running.finished(running.ask(receiver.url()))
        proxy.reset()

        def tries() -> float:
            found = running.metrics()
            return sum(number for name, number in found.items() if "audit_life" in name and '"failed"' in name)

        def told() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in running.log.splitlines() if line.startswith("{")]
            return [line for line in lines if "does not go on" in line["event"]]

        before = tries()
        outside.eventually(lambda: tries() >= before + 4, LIMIT_S)
        lines = told()
        assert 1 <= len({line["step"] for line in lines}) == len(lines), lines
        assert all("audit.archive_url" in line["error"] for line in lines)
        proxy.heal()
