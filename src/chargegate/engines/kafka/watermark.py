"""How far a partition is done when its messages are done in any order."""

import re
from collections import OrderedDict, deque
from typing import Final, Self

_NOTE: Final = re.compile(r"1;[0-9a-f]+,[0-9a-f]+(?:,[0-9a-f]+,[0-9a-f]+)*")


class Watermark:
    """Which offsets of one partition are done, in flight, or not handed out yet.

    Kafka keeps one position for a group and partition: all below it is done. What is done beyond would come again
    whenever the partition changes hands, so it is written into the note that Kafka keeps with the position.

    Offsets are taken in ascending order. Those that a log has not (markers, what retention removed) count as done.
    """

    __slots__ = ("_holes", "_next", "_open")

    def __init__(self, position: int) -> None:
        self._next = position
        self._open: OrderedDict[int, None] = OrderedDict()  # a dict is slow to tell its first key after many removals
        self._holes: deque[int] = deque()  # open before this owner came, and not handed out by it yet

    @classmethod
    def restored(cls, position: int, note: str, end: int) -> Self:
        """As ``position`` and ``note`` tell. A note that is not ours, or tells of offsets past the log's ``end``
        (a log that lost data), is ignored: that costs repeats, and believing it could skip messages."""
        watermark = cls(position)
        runs = [int(run, 16) for run in note[2:].split(",")] if _NOTE.fullmatch(note) else []
        if position + sum(runs) <= end:
            for waiting, done in zip(runs[::2], runs[1::2], strict=True):
                watermark._holes.extend(range(watermark._next, watermark._next + waiting))
                watermark._next += waiting + done
            watermark._open.update(dict.fromkeys(watermark._holes))
        return watermark

    @property
    def position(self) -> int:
        """Everything below is done."""
        return next(iter(self._open), self._next)

    @property
    def head(self) -> int:
        """The next offset to hand out."""
        return self._holes[0] if self._holes else self._next

    @property
    def in_flight(self) -> int:
        """How many were taken and are not done."""
        return len(self._open) - len(self._holes)

    def waiting(self, end: int) -> int:
        """How many offsets below ``end`` nobody has taken."""
        return len(self._holes) + max(0, end - self._next)

    def take(self, offset: int) -> bool:
        """Hand this offset out. False if it was done before."""
        while self._holes and self._holes[0] < offset:
            del self._open[self._holes.popleft()]
        if self._holes and self._holes[0] == offset:
            self._holes.popleft()
            return True
        if offset < self._next:
            return False
        self._open[offset] = None
        self._next = offset + 1
        return True

    def done(self, offset: int) -> None:
        self._open.pop(offset, None)

    def note(self, limit: int) -> str:
        """What is done beyond ``position``, in at most ``limit`` characters: lengths of runs in hexadecimal, of open
        offsets and of done ones in turn. What does not fit is left out from the far end."""
        text = "1;"
        start = at = self.position
        for offset in [*self._open, self._next]:
            if offset > at:
                pair = f"{at - start:x},{offset - at:x},"
                if len(text) + len(pair) > limit + 1:
                    break
                text += pair
                start = offset
            at = offset + 1
        return text[:-1] if text.endswith(",") else ""
