"""Which metrics an expression of Prometheus names."""

from __future__ import annotations

import re

_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"|' + r"'(?:[^'\\]|\\.)*'")
_LABELS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME = re.compile(r"(?<![\w:.])[A-Za-z_:][\w:]*(?!\s*\(|[\w:])")
_WORDS = {"and", "or", "unless", "offset", "bool", "by", "without", "on", "ignoring", "group_left", "group_right"}


def metrics_in(expression: str) -> set[str]:
    """The names of the metrics, without functions, labels and words of the language."""
    bare = _LABELS.sub(" ", _TEXT.sub('""', expression))
    return set(_NAME.findall(bare)) - _WORDS - {"inf", "nan", "Inf", "NaN"}
