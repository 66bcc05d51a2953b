"""What a process's own metrics say is wrong, in sentences for people: what no component of its health tells."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal

import msgspec

from chargegate.model import one_line

COMPONENTS: Final = "/dashboard#components"

_LEAST_FREE: Final = 0.1
_CERTIFICATE_S: Final = 14 * 24 * 3600
_LATELY_S: Final = 3600

Sampled = Callable[[str, str], Mapping[str, float]]
"""The values of a metric, by one of its labels."""


class Problem(msgspec.Struct, frozen=True):
    """``subject`` is a component's name, or what else it is about. ``page``: the path of the page that shows more."""

    severity: Literal["critical", "warning"]
    subject: str
    text: str
    page: str


class Troubles:
    """Looks at the metrics of one process again and again. What was lost is told for an hour."""

    def __init__(
        self,
        *,
        from_start: bool,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``from_start``: losses are those since the process's start, else those since the first look. ``clock`` is
        monotonic, ``now`` Unix time, both in seconds."""
        self._from_zero = from_start
        self._clock = clock
        self._now = now
        self._lost: dict[tuple[str, str], deque[tuple[float, float]]] = {}

    def found(self, sampled: Sampled) -> list[Problem]:
        """What is wrong now."""
        found = [*self._disks(sampled), *self._certificate(sampled), *self._losses(sampled)]
        self._from_zero = True
        return found

    def _disks(self, sampled: Sampled) -> Iterator[Problem]:
        sizes = sampled("disk_size_bytes", "folder")
        for folder, free in sampled("disk_free_bytes", "folder").items():
            size = sizes.get(folder, 0)
            if size and free / size < _LEAST_FREE:
                text = f"The disk of the folder {one_line(folder)} fills up: {100 * free / size:.0f} % are free."
                yield Problem("warning", "disk", text, COMPONENTS)

    def _certificate(self, sampled: Sampled) -> Iterator[Problem]:
        for end in sampled("tls_certificate_expiration_timestamp_seconds", "").values():
            left = end - self._now()
            if left < _CERTIFICATE_S:
                when = "has expired" if left <= 0 else f"expires in {_long(left)}"
                yield Problem("warning", "certificate", f"The TLS certificate {when}.", COMPONENTS)

    def _losses(self, sampled: Sampled) -> Iterator[Problem]:
        for sink, count in self._lately("audit_sink_refused_total", "sink", sampled):
            lacks = "a decision" if count == 1 else f"{count} decisions"
            text = f"The audit sink {one_line(sink)} lacks {lacks} of the last hour: its server refuses them for good."
            yield Problem("warning", "audit", text, COMPONENTS)
        for reason, count in self._lately("dead_letters_dropped_total", "reason", sampled):
            letters = "A dead letter was" if count == 1 else f"{count} dead letters were"
            why = {"age": "it was too old" if count == 1 else "they were too old", "number": "there were too many"}
            text = f"{letters} dropped in the last hour, because {why.get(reason, one_line(reason))}."
            yield Problem("warning", "dead_letters", text, "/dashboard/dead-letters")

    def _lately(self, name: str, label: str, sampled: Sampled) -> Iterator[tuple[str, int]]:
        """By how much a counter has grown within the last hour, where it has."""
        now = self._clock()
        for value, count in sampled(name, label).items():
            counts = self._lost.setdefault((name, value), deque([(now, 0.0 if self._from_zero else count)]))
            if count != counts[-1][1]:
                counts.append((now, count))
            while len(counts) > 1 and counts[1][0] <= now - _LATELY_S:
                counts.popleft()
            if (more := round(counts[-1][1] - counts[0][1])) > 0:
                yield value, more


def _long(seconds: float) -> str:
    days, hours = int(seconds // 86_400), int(seconds // 3600)
    return f"{days} days" if days > 1 else f"{hours} hours" if hours > 1 else "less than two hours"
