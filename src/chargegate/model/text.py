"""Text from outside, made safe to print."""

import json


def one_line(text: str) -> str:
    """The text with every character that does not print escaped.

    So it stays on one line, and it cannot change a terminal's colours.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_json(text: str) -> str:
    """The same JSON, in which every character that does not print is escaped: control characters, also those beyond
    ASCII, and those that change the direction of writing or have no width."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] if c != "\x7f" else "\\u007f" for c in text)
