"""`make sbom`: what is delivered, and nothing else, with its versions and licences."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import chargegate

ROOT = Path(__file__).parents[2]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.servers  # it needs the package registry, as provisioning does
def test_it_lists_what_is_delivered(tmp_path: Path) -> None:
    file = tmp_path / "sbom.cdx.json"
    done = subprocess.run(
        [ROOT / "scripts" / "sbom", Path(sys.prefix), file], capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    bill = json.loads(file.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "chargegate"
    assert bill["metadata"]["component"]["version"] == chargegate.__version__

    versions = {normal(part["name"]): part["version"] for part in bill["components"]}
    locked = dict(re.findall(r"^([\w.-]+)==([^ ;]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert versions.items() <= {normal(name): version for name, version in locked.items()}.items()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [*project["project"]["dependencies"]]
    needed += [one for extra in project["project"]["optional-dependencies"].values() for one in extra]
    names = {normal(re.split(r"[\[<>=~! ]", one)[0]) for one in needed}
    assert names <= versions.keys()
    tools = {normal(re.split(r"[\[<>=~! ]", one)[0]) for one in project["dependency-groups"]["dev"]}
    assert not (tools - names) & versions.keys()
    # Protobuf names its licence in a way that no identifier stands for.
    assert {part["name"] for part in bill["components"] if not part.get("licenses")} <= {"protobuf"}
    assert all(part["purl"].startswith("pkg:pypi/") for part in bill["components"])
    (own,) = [entry for entry in bill["dependencies"] if entry["ref"] == "root-component"]
    assert len(own["dependsOn"]) >= len(project["project"]["dependencies"])
