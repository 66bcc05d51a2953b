"""Settings change, processes are killed and files move on in any order. After each step every decision is in the log
once, `restore` gives it once, and `verify` accuses nobody."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import outside
from servers.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

    Audit = Callable[..., list[dict[str, Any]]]

pytestmark = pytest.mark.soak

COMMANDS = (
    ("rotate",),
    ("compress", "--all"),
    ("archive", "--all"),
    ("export", "--all"),
    ("backfill", "--sink", "csv"),
)


class Machine:
    """A service with an archive and daily exports, and what is known of it from outside."""

    def __init__(
        self, service: Callable[..., Service], receiver: Site, bucket: Bucket, audit: Audit, command: str, seed: int
    ) -> None:
        self.random = random.Random(seed)
        self.bucket, self.audit, self.command, self.receiver = bucket, audit, command, receiver
        self.settings = {"audit.archive_url": bucket.url, "audit.export_dir": "exports"}
        self.running = service(environ=bucket.environ, started=False)
        self.ids: set[str] = set()
        self.deleted: set[str] = set()
        self.done: list[str] = []
        self.switch()

    def step(self) -> None:
        often = ("ask", "ask", "switch", "kill", "carry_out", "carry_out", "kill_command")
        name = self.random.choice((*often, "rename", "without_log", "delete"))
        chosen: Callable[[], None] = getattr(self, name)
        self.done.append(name)
        chosen()
        self.check()

    def ask(self) -> None:
        asked = [self.running.ask(self.receiver.url()) for _ in range(self.random.randint(1, 5))]
        self.ids |= {each.request_id for each in asked if self.running.finished(each)}

    def switch(self, **settings: str) -> None:
        """Another number of files, or the chain on or off."""
        self.end()
        chosen = {"audit.chain": self.random.random() < 0.6, "audit.csv_shards": self.random.choice([1, 2, 3])}
        self.running.configure(**self.settings, **chosen, **settings)
        self.running.start()
        outside.eventually(lambda: "behind" not in self.running.client.get("/health").text, 60)

    def end(self) -> None:
        if self.running.process is not None:
            if self.random.random() < 0.5:
                self.running.stop()
            else:
                self.running.kill()

    def kill(self) -> None:
        self.ask()
        self.running.kill()
        self.running.start()

    def carry_out(self) -> None:
        self.audit(self.running, *self.random.choice(COMMANDS))
        self.deleted -= set(self.lines())  # a backfill brings back what the database still has

    def kill_command(self) -> None:
        chosen = self.random.choice(COMMANDS)
        running = subprocess.Popen(
            [self.command, "audit", *chosen],
            cwd=self.running.folder,
            env=self.running._environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(self.random.uniform(0.2, 1.2))  # at any moment, also before it begins and after it ended
        running.kill()
        running.wait()
        self.audit(self.running, *chosen)
        self.deleted -= set(self.lines())

    def rename(self) -> None:
        """An outside rotation."""
        for file in self.running.folder.glob("authorization_audit*.log"):
            file.rename(file.with_name(f"{file.name}.{len(self.done)}"))
        self.ask()

    def without_log(self) -> None:
        self.switch(**{"audit.csv_path": ""})
        self.ask()
        self.switch()

    def delete(self) -> None:
        """All that was rotated and exported, as old."""
        self.audit(self.running, "export", "--all")
        self.audit(self.running, "prune", "--at", "2126-01-01")
        assert not self.bucket.files()
        self.deleted = self.ids - set(self.lines())

    def lines(self) -> list[str]:
        from backports import zstd

        found = {path.name: path.read_bytes() for path in self.running.folder.glob("authorization_audit*")}
        found |= {key: content for key, content in self.bucket.files().items() if "audit_rows" not in key}
        texts = [zstd.decompress(content) if name.endswith(".zst") else content for name, content in found.items()]
        lines = [line for text in texts for line in text.decode().splitlines() if line[0].isdigit()]
        return [line.split(",")[1] for line in lines]

    def check(self) -> None:
        kept = Counter(self.ids - self.deleted)
        outside.eventually(lambda: Counter(self.lines()) == kept, 30, f"{self.done}: lines are missing or doubled")
        assert self.audit(self.running, "verify")[0]["problems"] == [], self.done
        restored = self.audit(self.running, "restore")
        assert Counter(row["request_id"] for row in restored) == kept, self.done


@pytest.mark.parametrize("seed", range(12))
def test_each_decision_is_there_once_and_nobody_is_accused(
    service: Callable[..., Service], receiver: Site, s3_server: Any, audit: Audit, command: str, seed: int
) -> None:
    machine = Machine(service, receiver, Bucket(s3_server), audit, command, seed)
    for _ in range(16):
        machine.step()
