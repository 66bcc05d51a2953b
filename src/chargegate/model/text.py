"""Text from outside, made safe to print."""


def one_line(text: str) -> str:
    """The text with every character that does not print escaped.

    So it stays on one line, and it cannot change a terminal's colours.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
