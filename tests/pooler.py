"""PgBouncer in transaction mode, before a PostgreSQL server: each transaction may get another session."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import urlsplit

import pytest

from ports import free_port
from servers.server import Server

LIMIT_S = 20


def answers(port: int) -> bool:
    with closing(socket.socket()) as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def pooled(server: Server) -> Iterator[str]:
    """The URL of the server through a pooler with two sessions."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("pgbouncer is not installed")
    there, port = urlsplit(server.url), free_port()
    with tempfile.TemporaryDirectory() as folder:
        user = "postgres" if os.getuid() == 0 else None  # it refuses root
        if user:
            shutil.chown(folder, user)
        settings = Path(folder) / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={there.port} user={there.username}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            "pool_mode = transaction\ndefault_pool_size = 2\nlogfile =\n"
        )
        with subprocess.Popen([program, "-q", settings], user=user, stderr=subprocess.DEVNULL) as process:
            try:
                end = monotonic() + LIMIT_S
                while not answers(port):
                    assert process.poll() is None
                    assert monotonic() < end
                    sleep(0.02)
                yield there._replace(netloc=f"{there.username}:secret@127.0.0.1:{port}").geturl()
            finally:
                process.kill()
