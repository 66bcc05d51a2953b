"""The tests of this folder know the contract and nothing else."""

import ast
from pathlib import Path

import pytest

KNOW_THE_CODE = "kill_"
"""How the names of those begin that start the service with one place where it kills itself."""
FILES = sorted(Path(__file__).parent.glob("*.py"))


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_service_is_a_black_box(file: Path) -> None:
    assert ("chargegate" in imported(file)) == file.name.startswith(KNOW_THE_CODE)
