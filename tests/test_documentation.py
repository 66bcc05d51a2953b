"""The documents say what is true: every key of the settings, with its default."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from chargegate.config import Settings

DOCS = Path(__file__).parent.parent / "docs"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def test_configuration_lists_every_key_with_its_default() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| `(.+?)` \|", (DOCS / "configuration.md").read_text(), re.MULTILINE)
    assert {key: json.loads(default) for key, default in rows} == flat(msgspec.to_builtins(Settings()))
