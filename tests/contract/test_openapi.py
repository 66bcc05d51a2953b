"""The service against its own document, with every check that schemathesis has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def examine(service: Service, *options: str) -> None:
    command = [str(SCHEMATHESIS), "run", f"{service.url}/openapi.json", "--checks", "all", "--seed", "1", "--no-color"]
    command += ["--max-examples", "20", "--continue-on-failure", "--generation-database", "none", *options]
    examined = subprocess.run(command, cwd=service.folder, capture_output=True, text=True, check=False)
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert service.ready() == 200
    assert '"level":"error"' not in service.log


def test_anyone_may_do_everything(service: Callable[..., Service]) -> None:
    examine(service())


def test_with_keys(service: Callable[..., Service], command: str) -> None:
    create = [command, "keys", "create", "--role", "admin", "--json"]
    made = json.loads(subprocess.run(create, check=True, capture_output=True, text=True).stdout)
    examine(service(security__api_keys=[made["hash"]]), "--header", f"Authorization: Bearer {made['key']}")
