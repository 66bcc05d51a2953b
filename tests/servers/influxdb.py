"""InfluxDB 1.8, built by ``scripts/provision`` from its Go module, or Debian's 1.6 where there is no Go."""

import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from ports import free_port
from servers.server import Server

VERSION = "1.8.10"
USER, PASSWORD = "gate", "let-me-in"  # of a server that asks for a password


def program() -> str | None:
    """The server's program; the one that was built answers at more paths."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = Path(os.environ.get("CHARGEGATE_INFLUXDB") or cache / f"chargegate/influxdb-{VERSION}") / "influxd"
    return str(built) if built.exists() else shutil.which("influxd")


class Influxdb(Server):
    """InfluxDB with its write-ahead log synced before each answer, which is its default."""

    name = "influxdb"
    asks_for_password = False

    def __init__(self) -> None:
        super().__init__()
        self._backups = free_port()

    @classmethod
    def missing(cls) -> str:
        return "" if program() else "influxd is not installed"

    def url_at(self, port: int) -> str:
        return f"http://127.0.0.1:{port}"

    def prepare(self) -> None:
        self.data.mkdir()

    def environment(self) -> dict[str, str]:
        """There is no configuration file: what is not said here has its default."""
        values = {
            "REPORTING_DISABLED": "true",
            "BIND_ADDRESS": f"127.0.0.1:{self._backups}",
            "META_DIR": str(self.data / "meta"),
            "DATA_DIR": str(self.data / "data"),
            "DATA_WAL_DIR": str(self.data / "wal"),
            "DATA_QUERY_LOG_ENABLED": "false",
            "DATA_MAX_CONCURRENT_COMPACTIONS": "1",
            "HTTP_BIND_ADDRESS": f"127.0.0.1:{self.port}",
            "HTTP_LOG_ENABLED": "false",
            "HTTP_AUTH_ENABLED": str(self.asks_for_password).lower(),
            "MONITOR_STORE_ENABLED": "false",
            "SUBSCRIBER_ENABLED": "false",
            "CONTINUOUS_QUERIES_ENABLED": "false",
        }
        return {f"INFLUXDB_{name}": value for name, value in values.items()}

    def command(self) -> list[str]:
        return [program() or "influxd", "run", "-config", "/dev/null"]

    def ready(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/ping", timeout=1) as answer:
            return answer.status == 204
        return False


class PasswordInfluxdb(Influxdb):
    """InfluxDB that asks for a password."""

    asks_for_password = True

    def start(self) -> None:
        new = not self.data.exists()
        super().start()
        if new:
            statement = f"CREATE USER \"{USER}\" WITH PASSWORD '{PASSWORD}' WITH ALL PRIVILEGES"
            query(self.url, statement)


def query(url: str, statement: str, database: str = "", user: str = "", epoch: str = "ns") -> list[dict[str, Any]]:
    """The rows that a statement of InfluxQL gives, each by its columns' names, tags of a group among them."""
    parameters = {"q": statement, "db": database, "epoch": epoch}
    signed = "?" + urllib.parse.urlencode({"u": user, "p": PASSWORD}) if user else ""
    request = urllib.request.Request(f"{url}/query{signed}", urllib.parse.urlencode(parameters).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        (result,) = json.load(answer)["results"]
    if "error" in result:
        raise RuntimeError(result["error"])
    return [
        dict(zip(series["columns"], values, strict=True)) | series.get("tags", {})
        for series in result.get("series", [])
        for values in series.get("values", [])
    ]
