"""Finds the head of a request in what a connection received, and refuses early what cannot become one."""

import re
from typing import Final

MAX_HEAD: Final = 32 * 1024
NOT_HTTP: Final = "This is not valid HTTP/1.1."

_TOO_LARGE: Final = f"The request line and headers must be at most {MAX_HEAD} bytes."
_TOKEN: Final = rb"[!#-'*+.0-9A-Z^-z|~-]{1,32}"
_request_line = re.compile(_TOKEN + rb" [!-~]+ HTTP/1\.[01]\r\n").match
_line_so_far = re.compile(_TOKEN + rb"(?: [!-~]*(?: [!-~]*)?)?\r?").fullmatch


class HeadFinder:
    """Looks at each byte only a few times, also where a head comes byte by byte."""

    __slots__ = ("_check_at", "_line_ended", "_searched")

    def __init__(self) -> None:
        self._searched = 0  # there is no end of a head before this place
        self._line_ended = False
        self._check_at = 1  # an unfinished request line is looked at when it has so many bytes

    def take(self, received: bytearray) -> bytes | None:
        """The head, which is removed from what was received, or None while it is not whole. Raises ``ValueError`` with
        the rule that is broken."""
        end = received.find(b"\r\n\r\n", max(0, self._searched - 3))
        if end > MAX_HEAD - 4 or (end < 0 and len(received) > MAX_HEAD):
            raise ValueError(_TOO_LARGE)
        if not self._line_ended and not self._is_good_line(received):
            raise ValueError(NOT_HTTP)
        if end < 0:
            self._searched = len(received)
            return None
        head = bytes(received[: end + 4])
        del received[: end + 4]
        self._searched, self._line_ended, self._check_at = 0, False, 1
        return head

    def _is_good_line(self, received: bytearray) -> bool:
        if received.find(b"\r\n", max(0, self._searched - 1)) >= 0:
            self._line_ended = True
            return _request_line(received) is not None
        if len(received) < self._check_at:
            return True
        self._check_at = 2 * len(received)
        return _line_so_far(received) is not None
