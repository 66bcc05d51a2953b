"""What the documents and the packaging say about the code and its interpreters is true."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chargegate.config import SECRET_KEYS, URL_KEYS, Settings, check_url

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def test_configuration_lists_every_key_with_its_default() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| `(.+?)` \|", (DOCS / "configuration.md").read_text(), re.MULTILINE)
    assert {key: json.loads(default) for key, default in rows} == flat(msgspec.to_builtins(Settings()))


def test_configuration_lists_every_key_that_may_be_in_a_file() -> None:
    text = (DOCS / "configuration.md").read_text()
    listed = text.partition("A secret can also be in a file")[2].partition("The file must")[0]
    assert set(re.findall(r"`([a-z]+\.[a-z_]+)`", listed)) == SECRET_KEYS | URL_KEYS


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_no_row_of_a_table_is_without_its_head(path: Path) -> None:
    """A blank line within a table ends it, and what follows is shown as text."""
    for block in re.split(r"\n\s*\n", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert not rows or any(re.fullmatch(r"\|[ :|-]+\|", line) for line in rows), rows[0]


def test_the_promised_interpreters_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.MULTILINE)
    assert project["requires-python"] == f">={promised[0]}"
    images = re.findall(r"^FROM python:(\d+\.\d+)\.\d+-slim", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(images) == {promised[-1]}
    for name in ("README.md", "CONTRIBUTING.md"):
        assert f"Python {promised[0]} " in (ROOT / name).read_text()


@pytest.mark.parametrize("name", ["compose.yaml", "Dockerfile"])
def test_what_containers_are_told_are_keys_of_the_settings(name: str) -> None:
    named = re.findall(r"^ +CHARGEGATE_([A-Z_]+)[:=]", (ROOT / name).read_text(), re.MULTILINE)
    assert named
    keys = {key.upper().replace(".", "__") for key in flat(msgspec.to_builtins(Settings()))}
    assert set(named) <= keys


def test_every_form_of_a_url_is_one_that_the_settings_take() -> None:
    forms = re.findall(
        r"`([a-z+]+://[^`]+)`", (DOCS / "scaling.md").read_text().partition("## URLs")[2].partition("## ")[0]
    )
    assert len(forms) >= 6
    for form in forms:
        check_url("queue.url", form)
