"""A map over workers, event by event, as `pool.dispatch` hands shards out; and how far more workers pay."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

COUNTS = (1, 2, 4, 8, 16, 32, 64)
PAYS = 0.1
"""Twice as many workers pay if they save at least this share of the time."""


def map_seconds(
    shards: Sequence[float], workers: int, send: float = 0.0, latency: float = 0.0, reply: float = 0.0
) -> float:
    """Seconds from the beginning of a map to its last result.

    The driver has one link: it sends the work to one worker after another, and takes one result after the other. A
    worker waits until its result is taken, and has one shard at a time.

    Args:
        shards: Seconds of work of each shard, in order.
        workers: How many, if there are shards for them.
        send: Seconds to send the work to one worker.
        latency: Seconds before each shard begins.
        reply: Seconds to take one result.
    """
    left = list(reversed(shards))
    busy: list[float] = []
    for place in range(min(workers, len(left))):
        heapq.heappush(busy, send * (place + 1) + latency + left.pop())
    link = send * len(busy)
    while busy:
        link = max(link, heapq.heappop(busy)) + reply
        if left:
            heapq.heappush(busy, link + latency + left.pop())
    return link


@dataclass(frozen=True)
class Point:
    """So many workers, and what they take."""

    workers: int
    seconds: float
    speedup: float
    """Over one worker's seconds."""


def sweep(seconds: Callable[[int], float], counts: Iterable[int] = COUNTS) -> list[Point]:
    """The time by the number of workers.

    Args:
        seconds: Of so many workers.
        counts: Ascending, each twice the one before.
    """
    one = seconds(1)
    return [Point(count, took, one / took) for count in counts for took in (seconds(count),)]


def last_that_pays(points: Sequence[Point]) -> Point:
    """The point from which twice as many workers save less than `PAYS` of the time."""
    for point, twice in pairwise(points):
        if twice.seconds > (1 - PAYS) * point.seconds:
            return point
    return points[-1]
