"""What the documents show of the benchmark is what was measured."""

import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import picture
import report

FIGURES: dict[str, Any] = json.loads(report.FIGURES.read_text())


@pytest.mark.parametrize("path", report.DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_are_those_of_the_figures(path: Any) -> None:
    text = path.read_text()
    assert report.MARKED.search(text)
    assert report.filled(text, report.shown(FIGURES)) == text


@pytest.mark.parametrize("path", report.PICTURES, ids=lambda path: path.name)
def test_the_pictures_are_those_of_the_figures(path: Any) -> None:
    assert path.read_text() == picture.draw(FIGURES["entries"], report.PICTURES[path])
    ET.fromstring(path.read_text())


def test_every_table_stands_in_a_document() -> None:
    marks = {match[2] for path in report.DOCUMENTS for match in report.MARKED.finditer(path.read_text())}
    assert marks == set(report.BLOCKS)


def test_a_table_that_was_not_measured_stays() -> None:
    document = "<!-- bench: growth -->\n| old |\n<!-- end -->\n"
    assert report.filled(document, {}) == document
    growth = {
        "1000": {"us": 100.0, "ratio": 1.0, "peak_mib": 70.0},
        "1000000": {"us": 110.0, "ratio": 1.1, "peak_mib": 90.0},
    }
    new = report.filled(document, {"growth": growth})
    assert "| 1,000,000 | 110 µs | 1.10 | 90 MiB |" in new
    assert report.filled(new, {"growth": growth}) == new


@pytest.mark.parametrize("entries", [{}, {"peer": {"peer_us": 4000.0, "peer_servers_us": 500.0}}])
def test_a_picture_of_few_figures_is_still_one(entries: dict[str, Any]) -> None:
    ET.fromstring(picture.draw(entries, picture.DARK))
