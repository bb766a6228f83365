"""Work that takes a model: one job at a time, in the order of arrival; how far each is, and how it is ended."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from factpatch.support.progress import watched

logger = logging.getLogger(__name__)
T = TypeVar("T")


class State(Enum):
    """What has become of a job."""

    WAITING = "waiting"
    AT_WORK = "at work"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Cancelled(BaseException):
    """Somebody has ended the job. Like an interruption, it undoes what is half done on its way out."""


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    stage: str
    """What is being done, as the library calls it."""
    share: float | None
    """Of the stage, from 0 to 1; None if that is unknown."""
    facts: tuple[int, int] | None
    """How many facts of the stage are learned, and of how many."""
    elapsed: float
    """Seconds since the job began."""
    left: float | None
    """Seconds that the stage will take at the present pace; None if that is unknown."""


class Job(Generic[T]):
    """A piece of work, and what is known of it. It watches the library's progress, and ends it by raising there.

    Args:
        what: What it does, for people.
        run: The work. It may call `check` where the library reports no progress.
        seconds: How long it may take; after that it is cancelled.
    """

    def __init__(self, what: str, run: Callable[[Job[T]], T], seconds: float) -> None:
        self.what, self.seconds = what, seconds
        self.state = State.WAITING
        self.result: T | None = None
        self.error = ""
        """Why it failed or was cancelled, in words."""
        self.over = threading.Event()
        """Set when it has ended in any way."""
        self._run: Callable[[Job[T]], T] | None = run
        self._cancelled = ""
        self._began = time.monotonic()
        self._stage, self._done, self._since = "", 0, self._began
        self._total: int | None = None
        self._facts: tuple[int, int] | None = None
        self.took: float | None = None
        """Seconds that it took, once it is over."""

    # --- for whoever waits for it

    @property
    def progress(self) -> Progress:
        """How far it is now."""
        now = time.monotonic()
        share = min(self._done / self._total, 1.0) if self._total else None
        left = (now - self._since) * (1 - share) / share if share else None
        return Progress(self._stage, share, self._facts, now - self._began, left)

    def cancel(self, why: str = "Cancelled.") -> None:
        """End it at the next opportunity, or before it begins."""
        self._cancelled = self._cancelled or why

    # --- for the library, as `factpatch.support.progress.Watcher`

    def begin(self, description: str, total: int | None) -> None:
        self.check()
        self._stage, self._total, self._done, self._facts = description, total, 0, None
        self._since = time.monotonic()

    def advance(self, steps: int) -> None:
        self.check()
        self._done += steps

    def settle(self, done: int, of: int) -> None:
        self.check()
        self._facts = done, of

    def check(self) -> None:
        """Raise Cancelled if it was cancelled, or has taken too long."""
        if not self._cancelled and time.monotonic() - self._began > self.seconds:
            self.cancel(f"It took longer than the {self.seconds:.0f} s that this server allows; give fewer facts.")
        if self._cancelled:
            raise Cancelled(self._cancelled)

    # --- for the worker

    def work(self) -> None:
        """Do it, in the present thread; what goes wrong becomes its state and its error."""
        self._began = self._since = time.monotonic()
        try:
            self.check()
            self.state = State.AT_WORK
            assert self._run is not None
            with watched(self):
                self.result = self._run(self)
            self.state = State.DONE
        except Cancelled as cancelled:
            self.state, self.error = State.CANCELLED, str(cancelled)
        except Exception as error:
            self.state, self.error = State.FAILED, said(error)
            if not isinstance(error, EXPECTED):
                logger.exception("%s failed", self.what)
        finally:
            self.took = time.monotonic() - self._began
            self._run = None  # what it holds on to, such as a model, can be freed
            self.over.set()


EXPECTED = (ValueError, OSError, ArithmeticError, ImportError)
"""Errors whose message is meant for people."""


def said(error: Exception) -> str:
    """An error in words for the page, which shows no traceback."""
    if isinstance(error, EXPECTED) and str(error):
        return str(error)
    if isinstance(error, MemoryError):
        return "The server's memory does not suffice; give fewer facts."
    return f"{type(error).__name__}: {error} (the server's log shows where)"


class Worker:
    """The one thread in which all models run, and the jobs that wait for it.

    One thread, since what PyTorch computes in several at once is slower on the same cores, and since the edits of a
    session must round alike, which a thread of its own with its own pool need not.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()  # type: ignore[type-arg]
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="factpatch-page", daemon=True).start()

    def submit(self, job: Job[T]) -> Job[T]:
        """Let a job wait for its turn."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job

    def before(self, job: Job[T]) -> int:
        """How many jobs come before one that waits; 0 if it does not."""
        with self._changed:
            return next((place for place, one in enumerate(self._jobs) if one is job), 0)

    @property
    def length(self) -> int:
        """How many jobs wait or are at work."""
        with self._changed:
            return len(self._jobs)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                job = self._jobs[0]  # it stays the first until it is over
            job.work()
            with self._changed:
                self._jobs.remove(job)
            del job
