"""The tools that check what lies in `deploy/`: real ones, which `scripts/provision` installs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _tool(name: str, *folders: Path) -> str:
    """The path of a tool. A test without it is skipped, or fails where CI is set."""
    found = shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ["PATH"]]))
    if found is None:
        lacking = pytest.fail if os.environ.get("CI") else pytest.skip
        lacking(f"{name} is not installed; `make servers` provides it")
    return found


@pytest.fixture(scope="session")
def helm() -> str:
    version = (ROOT / "scripts" / "helm.version").read_text().strip()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return _tool("helm", Path(os.environ.get("CHARGEGATE_HELM") or cache / f"chargegate/helm-{version}"))


@pytest.fixture(scope="session")
def promtool() -> str:
    return _tool("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return _tool("prometheus")


@pytest.fixture(scope="session")
def systemd_analyze() -> str:
    return _tool("systemd-analyze")
