"""Standard output, which may be a pipe that nobody reads any more, or a file on a full disk."""

import io
import os
import sys
from pathlib import Path
from typing import Any


class OutputClosed(Exception):
    """Nobody reads standard output any more."""


class OutputFailed(Exception):
    """Standard output takes nothing more. The message is one line."""


class _Output(io.FileIO):
    """Its errors are no ``OSError``, so that no command takes them for those of its own files."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise OutputClosed from None
        except OSError as error:
            raise OutputFailed(f"standard output: {error.strerror}") from None


def open_standard_output() -> None:
    """Make writing to standard output raise ``OutputClosed`` and ``OutputFailed``. Where the process was started
    without one, what is written there is dropped: otherwise the next file that is opened would get its number."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    elif sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        output = io.BufferedWriter(_Output(sys.stdout.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(
            output, sys.stdout.encoding, "backslashreplace", line_buffering=sys.stdout.line_buffering
        )


def give_up_standard_output() -> None:
    """Drop what is still to be written there, so that nothing tries again when the process ends."""
    sys.stdout = None
