"""An estimate of the time that the rest of a run takes."""

from __future__ import annotations

import time
from collections.abc import Sequence


class Pace:
    """Follows how long batches take, the measurements included.

    Args:
        batches: How many each line of the table has.
        of: What the estimate is of, if it is not the run.
    """

    def __init__(self, batches: Sequence[int], of: str = "") -> None:
        self._later = list(batches)
        """Of the lines that have not begun."""
        self._pending = self._done = 0
        self._of = f" of {of}" if of else ""
        self._start = time.monotonic()

    def begin(self) -> None:
        """Note that the next line begins."""
        self._pending = self._later.pop(0)

    def skip(self, batches: int) -> None:
        """Note that some of its batches were edited before."""
        self._pending -= batches

    def advance(self) -> None:
        """Note that one more batch is edited."""
        self._pending -= 1
        self._done += 1

    def give_up(self) -> None:
        """Note that the rest of this line will not be edited."""
        self._pending = 0

    def left(self) -> str:
        """The time that is left, in words."""
        if not self._done:
            return "time left unknown"
        spent = time.monotonic() - self._start
        return f"about {in_words(spent / self._done * (self._pending + sum(self._later)))}{self._of} left"


def in_words(seconds: float) -> str:
    """As `1 h 20 min`, `5 min` or `40 s`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
