"""Makes docs/dashboard*.png: the pages of a real service under traffic, in a real browser. Run it by ``make pictures``.

The decisions of the day before are made up, because nobody wants to wait a day for a picture. What is shown of the last
minute happened.
"""

import argparse
import contextlib
import http.client
import json
import math
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
COMMAND = str(Path(sys.executable).with_name("chargegate"))
PORT = 18080
TRAFFIC_S = 40
STATIONS = [str(uuid.UUID(int=number**9 * 2**60, version=4)) for number in range(1, 13)]
VIEWS = {
    "dashboard": ("/dashboard", "light", 1280, 900),
    "dashboard-dark": ("/dashboard?range=day", "dark", 1280, 900),
    "dashboard-request": ("{request}", "light", 1280, 900),
    "dashboard-dead-letters": ("/dashboard/dead-letters", "light", 1280, 900),
    "dashboard-phone": ("/dashboard", "light", 360, 780),
}


class Receiver(BaseHTTPRequestHandler):
    """Takes callbacks; every path that begins with /broken is answered 500."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer a callback."""
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(random.uniform(0.001, 0.05))
        self.send_response(500 if self.path.startswith("/broken") else 204)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        """Nothing is printed."""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[None]:
    """The service, in a folder with a day of decisions."""
    settings = {
        "server.port": PORT,
        "authorization.backend": "simulated",
        "authorization.simulated_error_share": 0.02,
        "authorization.max_retries": 0,
        "callback.allowed_networks": ["127.0.0.0/8"],
        "callback.retry_delay_ms": 300,
        "logging.level": "error",
    }
    (folder / "chargegate.toml").write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    )
    for history in (False, True):
        process = subprocess.Popen([COMMAND, "serve"], cwd=folder)
        try:
            wait_until_ready()
            if history:
                yield
        finally:
            process.terminate()
            process.wait(60)
        if not history:
            make_history(folder / "data" / "chargegate.db")


def make_history(path: Path) -> None:
    """Decisions of the last day, by the hours that people drive in."""
    now = int(time.time() * 1000)
    rows = []
    for minute in range(24 * 60, 0, -1):
        wave = 1 + math.sin(minute / 1440 * 2 * math.pi)
        for _ in range(int(40 + 90 * wave + random.uniform(0, 40))):
            status = random.choices(("allowed", "not_allowed", "unknown", "invalid"), (86, 11, 2.5, 0.5))[0]
            reason = {"not_allowed": "driver_not_in_acl", "unknown": "authorization_timeout"}.get(status, "")
            at = now - minute * 60_000 + random.randrange(60_000)
            station = random.choices(STATIONS, range(1, len(STATIONS) + 1))[0]
            rows.append((at, str(uuid.uuid4()), station, f"{random.randrange(16**16):016x}", status, reason, 60))
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.executemany(
            "INSERT INTO authorization_audit (timestamp, request_id, station_id, driver_token_hash, status, reason,"
            " processing_time_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
            sorted(rows),
        )


def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """A call of the service."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, json.dumps(body) if body else None, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")


def wait_until_ready() -> None:
    """Wait for the service."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if ask("GET", "/health/ready")[0] == 200:
                return
        time.sleep(0.05)
    raise SystemExit("the service is not ready")


def traffic(receiver: str, ended: threading.Event) -> list[str]:
    """Requests until it is to end; the ids of those whose callbacks fail."""
    tokens = [f"driver-{number:04d}-{uuid.uuid4().hex}" for number in range(40)]
    for token in tokens[:32]:
        ask("PUT", "/api/v1/acl", {"driver_token": token, "note": f"depot {random.randrange(1, 9)}"})
    broken = []
    while not ended.is_set():
        fails = random.random() < 0.04
        body = {
            "station_id": random.choices(STATIONS, range(1, len(STATIONS) + 1))[0],
            "driver_token": random.choice(tokens),
            "callback_url": f"{receiver}/{'broken' if fails else 'ok'}",
        }
        status, answer = ask("POST", "/api/v1/charging-session", body)
        if fails and status == 202:
            broken.append(answer["request_id"])
        time.sleep(random.expovariate(3))
    return broken


def open_browser(playwright: Any) -> Browser:
    """The distribution's Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise SystemExit("chromium is missing; `make servers` provides it")
    browser: Browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
    return browser


def take(page: Page, address: str, path: Path) -> None:
    """One picture, once the page shows its data."""
    page.goto(f"http://127.0.0.1:{PORT}{address}")
    page.wait_for_selector(".tile, table, ol.timeline")
    page.wait_for_load_state("networkidle")
    page.screenshot(path=path)


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=HERE)
    to = parser.parse_args().to
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)), sync_playwright() as playwright:
        ended, found = threading.Event(), []
        client = threading.Thread(
            target=lambda: found.extend(traffic(f"http://127.0.0.1:{server.server_port}", ended)), daemon=True
        )
        client.start()
        time.sleep(TRAFFIC_S)
        browser = open_browser(playwright)
        for name, (place, scheme, width, height) in VIEWS.items():
            address = place
            if place == "{request}":
                ended.set()
                client.join()
                _, letters = ask("GET", "/api/v1/dead-letters?limit=1")
                address = f"/dashboard/requests/{letters['items'][0]['request_id']}"
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
            take(context.new_page(), address, to / f"{name}.png")
            context.close()
        browser.close()
    server.shutdown()


if __name__ == "__main__":
    main()
