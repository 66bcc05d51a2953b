"""The guard's comparison, and what it reads of callgrind's file."""

from pathlib import Path

import pytest

import instructions
import load


@pytest.mark.parametrize(
    ("measured", "good", "word"),
    [
        (10.0, True, "1.000"),
        (10.99, True, "1.099"),
        (11.01, False, "over a tenth more"),
        (9.01, True, "0.901"),
        (8.99, True, "--write"),
    ],
)
def test_a_figure_may_be_a_tenth_above_the_committed_one(measured: float, good: bool, word: str) -> None:
    found, line = instructions.verdict(measured, 10.0)
    assert found is good
    assert word in line


def test_the_total_is_read_from_the_only_dump(tmp_path: Path) -> None:
    (tmp_path / "count.1").write_text("version: 1\nevents: Ir\nsummary: 12\n\nfn=(1)\n0 12\n\ntotals: 934001\n")
    assert instructions.total(tmp_path) == 934_001


def test_a_dump_without_a_total_is_no_figure(tmp_path: Path) -> None:
    (tmp_path / "count.1").write_text("version: 1\nevents: Ir\n")
    with pytest.raises(load.Failed):
        instructions.total(tmp_path)
