"""The real service in its own process, as an operator would start it."""

import asyncio
import http.client
import os
import signal
import socket
import sys
from pathlib import Path

from chargegate.config import PREFIX
from chargegate.demo.wire import send

_START_LIMIT_S = 20


class DemoError(Exception):
    """The demo cannot go on. The message is for a person."""


class Instance:
    """One service: its settings, its folder, and its process."""

    def __init__(self, folder: Path, settings: str) -> None:
        """Make ``folder``. ``settings`` are TOML; the port and the data folder are added."""
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.audit_log = folder / "authorization_audit.log"
        self._log = folder / "service.log"
        self._config = folder / "chargegate.toml"
        self._config.write_text(f'data_dir = "data"\nserver.port = {port}\n{settings}', encoding="utf-8")
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process and wait until it is ready."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "chargegate", "serve", "--config", self._config.name),
                cwd=self._config.parent,
                env={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C goes to the demo only, which then kills its services.
            )
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                while not await self._ready():
                    if self._process.returncode is not None:
                        raise DemoError(f"the service did not start: {self._last_line()}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise DemoError(f"the service was not ready within {_START_LIMIT_S} s: {self._last_line()}") from None

    async def end(self, number: signal.Signals) -> int:
        """Send a signal to the process, if it runs, and wait for its end. Returns the exit code."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()

    async def _ready(self) -> bool:
        try:
            return (await send(self.url, "GET", "/health/ready")).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "it logged nothing"
