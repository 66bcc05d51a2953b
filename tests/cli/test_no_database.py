"""A folder without a database: only what fills one makes one, and says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

ID = "018d5c1e-7f00-7000-8000-000000000001"


@pytest.mark.parametrize(
    "arguments",
    [
        ("acl", "list"),
        ("acl", "remove", "-"),
        ("audit", "list"),
        ("audit", "timeouts"),
        ("audit", "stats"),
        ("dead-letters", "list"),
        ("dead-letters", "replay", ID),
        ("dead-letters", "discard", ID),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("there", [True, False])
def test_what_reads_makes_none(run: Run, folder: Path, token: str, arguments: tuple[str, ...], there: bool) -> None:
    if there:
        (folder / "data").mkdir()
    result = run(*arguments, stdin=token)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("chargegate: data_dir: data has no database")
    assert result.err.count("\n") == 1
    assert [path.name for path in folder.rglob("*")] == (["data"] if there else [])


@pytest.mark.parametrize("arguments", [("add", "-"), ("import", "drivers.csv")], ids=" ".join)
def test_what_fills_one_says_that_it_made_it(run: Run, folder: Path, token: str, arguments: tuple[str, ...]) -> None:
    (folder / "drivers.csv").write_text(f"driver_token\n{token}\n")
    first, second = (run("acl", *arguments, stdin=token) for _ in range(2))
    assert (first.code, first.err) == (0, "chargegate: made a new database in data (data_dir)\n")
    assert (second.code, second.err) == (0, "")
    assert first.out == second.out
    assert len(run("acl", "list", "--json").lines()) == 1
