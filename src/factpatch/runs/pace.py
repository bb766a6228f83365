"""How long the rest of a run will probably take."""

from __future__ import annotations

import time


class Pace:
    """Follows how long batches take, the measurements included.

    Args:
        batches: How many are left in all.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self._done = 0
        self._start = time.monotonic()

    def advance(self) -> None:
        """Note that one more batch is through."""
        self._done += 1

    def skip(self, batches: int) -> None:
        """Note that some are through already."""
        self.batches -= batches

    def left(self) -> str:
        """The time that is left, in words."""
        if not self._done:
            return "time left unknown"
        spent = time.monotonic() - self._start
        return f"about {in_words(spent / self._done * (self.batches - self._done))} left"


def in_words(seconds: float) -> str:
    """As `1 h 20 min`, `5 min` or `40 s`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
