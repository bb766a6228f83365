"""The progress of long work: bars on a terminal, lines in the log elsewhere, or told to whoever watches; and times."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import wraps
from typing import ParamSpec, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

LINE_SECONDS = 20.0
"""How often a line reports the progress of long work where there is no terminal for a bar."""
_last_line = time.monotonic()  # of any bar: hundreds of short ones may follow each other


class Watcher(Protocol):
    """Follows long work. What it raises ends the work, as an interruption does: what is half done is undone."""

    def begin(self, description: str, total: int | None) -> None:
        """A bar begins."""

    def advance(self, steps: int) -> None:
        """So many steps of the bar that began last are done."""

    def settle(self, done: int, of: int) -> None:
        """So many of the facts that the bar is about are done."""


_watcher: ContextVar[Watcher | None] = ContextVar("_watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Let a watcher follow all bars that this thread opens in the block, instead of a terminal."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def settle(done: int, of: int) -> None:
    """Tell whoever watches how many of the facts that the present bar is about are done."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher.settle(done, of)


@contextmanager
def bar(description: str, total: int | None, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show the progress of work while the context is open; the yielded function advances it.

    On a terminal this is a bar on stderr; elsewhere a line in the log every `LINE_SECONDS`. Inside `watched`, the
    watcher alone hears of it.

    Args:
        total: How many steps there are; None if unknown.
    """
    if (watcher := _watcher.get()) is not None:
        watcher.begin(description, total)
        yield watcher.advance
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task(description, total=total)
        start = time.monotonic()
        done = 0

        def advance(steps: int) -> None:
            global _last_line
            nonlocal done
            done += steps
            progress.update(task, advance=steps)
            now = time.monotonic()
            if shown and not console.is_terminal and now - _last_line >= LINE_SECONDS:
                _last_line = now
                logger.info("%s: %s", description, how_far(done, total, now - start))

        yield advance


def how_far(done: int, total: int | None, seconds: float) -> str:
    """Return such as `30 of 120 (25 %), 0:00:40 elapsed, 0:02:00 left`."""
    elapsed = f"{timedelta(seconds=round(seconds))} elapsed"
    if total is None or done <= 0:
        return f"{done} done, {elapsed}"
    left = timedelta(seconds=round(seconds * max(total - done, 0) / done))
    return f"{done} of {total} ({100 * done / total:.0f} %), {elapsed}, {left} left"


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall time of the block to a stage, less that of stages within it."""
    start, before = time.perf_counter(), sum(seconds.values())
    try:
        yield
    finally:
        within = sum(seconds.values()) - before
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start - within


P = ParamSpec("P")
R = TypeVar("R")


def staged(stage: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add the wall time of a method's calls to a stage of its object's `_seconds`."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @wraps(method)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            seconds: dict[str, float] = getattr(args[0], "_seconds")  # noqa: B009
            with timed(seconds, stage):
                return method(*args, **kwargs)

        return run

    return decorate
