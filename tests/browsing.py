"""The distribution's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_MS = 10_000
expect.set_options(timeout=LIMIT_MS)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. A test without one is skipped, or fails where CI is set."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        lacking = pytest.fail if os.environ.get("CI") else pytest.skip
        lacking("chromium is missing; `make servers` provides it")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()
