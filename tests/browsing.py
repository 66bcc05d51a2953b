"""The distribution's Chromium, driven by Playwright, and what every page must be."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.conftest import Service

AXE = Path(__file__).parent / "contract" / "axe" / "axe.min.js"
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
DESK = {"width": 1280, "height": 900}
LIMIT_MS = 10_000
PLAIN_HOST = "gate.test"  # a name of this machine that the browser trusts no more than any other
# A graphics card that is computed costs more than to paint without one.
OPTIONS = [
    *("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-software-rasterizer"),
    f"--host-resolver-rules=MAP {PLAIN_HOST} 127.0.0.1",
]
expect.set_options(timeout=LIMIT_MS)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. A test without one is skipped, or fails where CI is set."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        lacking = pytest.fail if os.environ.get("CI") else pytest.skip
        lacking("chromium is missing; `make servers` provides it")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield opened
        opened.close()


class Visit:
    """A browser window on a service, which must load nothing from elsewhere and meet no fault of its own."""

    def __init__(self, browser: Browser, service: Service, **options: Any) -> None:
        self.context: BrowserContext = browser.new_context(
            base_url=service.url, **{"viewport": DESK, "permissions": ["clipboard-read", "clipboard-write"], **options}
        )
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(LIMIT_MS)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self._service = service

    def _console(self, message: Any) -> None:
        # A refused request is shown by the page, and noted by the browser, as is a header that plain HTTP cannot have.
        noted = ("Failed to load resource", "Cross-Origin-Opener-Policy header has been ignored")
        if message.type == "error" and not any(each in message.text for each in noted):
            self.faults.append(message.text)

    def close(self) -> None:
        self.context.close()
        assert self.faults == []
        assert [url for url in self.requests if not url.startswith(self._service.url)] == []


def accessible(page: Page) -> None:
    """The rules of axe-core find nothing serious, and nothing is wider than the window."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE.read_text())  # by hand, because each page that is opened would read it
    found = page.evaluate("async (rules) => (await axe.run(document, rules)).violations", RULES)
    serious = [
        (one["id"], one["help"], [node["html"][:200] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == [], json.dumps(serious, indent=1)
    wide = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, f"{page.url} is {wide} px too wide"


def heading(page: Page, text: str) -> None:
    expect(page.get_by_role("heading", level=1, name=text)).to_be_visible()


def keys(command: str) -> dict[str, tuple[str, str]]:
    """The access key and the hash of an administrator, "ops", and of a client, "north"."""
    made = {}
    for role, name in (("admin", "ops"), ("client", "north")):
        line = [command, "keys", "create", "--role", role, "--name", name, "--json"]
        printed = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
        made[name] = (printed["key"], printed["hash"])
    return made
