"""The map that all pools with workers share: who gets which shard, in which order results leave, and who died.

A backend starts workers, sends them a work and a shard, and reports what happened to them. A worker has at most one
shard at a time:

    shards ──read──▶ todo ──give──▶ worker ──reply──▶ results ──in order──▶ yielded
                      ▲                │
                      └──── it died ───┘

No more than one shard a worker is read and not done, and no more than two a worker are read and not yielded.
"""

from __future__ import annotations

import heapq
import logging
import os
import pickle
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from factpatch.pool.base import Pool, R, S, Work, WorkerDied, positive
from factpatch.pool.worker import Record, Reply, unpacked, versions
from factpatch.support.words import counted, difference

logger = logging.getLogger(__name__)

DEATHS = 3
"""How many workers one shard may end, and how many may end one after another before they are ready."""
AHEAD = 2
"""How many shards a worker may be read beyond those whose results were yielded."""


class Task:
    """A shard on its way: its place, its pickle, and how many workers it ended."""

    def __init__(self, run: Run[Any, Any], index: int, shard: bytes) -> None:
        self.run = run
        self.index = index
        self.shard = shard
        self.deaths = 0

    def __lt__(self, other: Task) -> bool:
        return self.index < other.index


class Died(NamedTuple):
    """The end of a worker."""

    exit_code: int | None
    """Minus the signal if it was killed; None if unknown."""
    how: str
    """`was killed with SIGKILL (exit code -9)`"""
    advice: str = ""
    """What to do about it, if the way it ended says so."""
    output: str = ""
    """The last that it printed."""


SHORT_OF_MEMORY = "It may have been short of memory: take fewer workers or smaller shards."


class Worker(ABC):
    """The driver's side of a worker."""

    ready = False
    task: Task | None = None
    holds: Run[Any, Any] | None = None
    """The map whose work it has."""

    @abstractmethod
    def send(self, work: Any, shard: bytes) -> None:
        """Send a shard, after the work unless that is None. A worker that is gone is no error here."""

    @abstractmethod
    def stop(self) -> None:
        """Bring the worker to its end; do not wait for it."""

    def reap(self) -> None:  # noqa: B027 - for backends whose workers leave something
        """Wait for the worker's end, after `stop`."""


W = TypeVar("W", bound=Worker)


class Run(Generic[S, R]):
    """One map: its work as workers get it, its shards, and its results that wait for their turn."""

    def __init__(self, work: Any, shards: Iterable[S], progress: Callable[[int], object] | None) -> None:
        self.work = work
        self.todo: list[Task] = []
        self._shards = iter(shards)
        self._progress = progress
        self._results: dict[int, bytes] = {}
        self._read = self._done = self._yielded = 0
        self._all_read = False

    @property
    def undone(self) -> int:
        """How many shards are read and not done."""
        return self._read - self._done

    @property
    def has_next(self) -> bool:
        """Whether the next result in order is there."""
        return self._yielded in self._results

    @property
    def complete(self) -> bool:
        """Whether every result was yielded."""
        return self._all_read and self._yielded == self._read

    def read(self, workers: int) -> None:
        """Read as many shards as so many workers can take."""
        while not self._all_read and self.undone < workers and self._read - self._yielded < AHEAD * workers:
            try:
                shard = next(self._shards)
            except StopIteration:
                self._all_read = True
                return
            self._todo(Task(self, self._read, pickle.dumps(shard, pickle.HIGHEST_PROTOCOL)))
            self._read += 1

    def _todo(self, task: Task) -> None:
        heapq.heappush(self.todo, task)

    def again(self, task: Task, died: Died) -> None:
        """Put a shard back whose worker died.

        Raises:
            WorkerDied: It was not the first one.
        """
        task.deaths += 1
        if task.deaths == DEATHS:
            account = _account(died, "Map this shard without workers to see what happens in it.")
            raise WorkerDied(
                f"shard {task.index} ended {DEATHS} workers; the last {account}", task.index, died.exit_code
            )
        logger.warning("a worker %s in shard %d; another one repeats the shard", died.how, task.index)
        self._todo(task)

    def finish(self, task: Task, result: bytes) -> None:
        """Keep the result of a shard."""
        self._results[task.index] = result
        self._done += 1
        if self._progress is not None:
            self._progress(task.index)

    def end(self) -> None:
        """Let go of what may be big: workers that are not done with a shard of this map still hold it."""
        self.work = None
        self.todo.clear()
        self._results.clear()

    def next(self) -> R:
        """Return the next result in order."""
        result: R = pickle.loads(self._results.pop(self._yielded))
        self._yielded += 1
        return result


class WorkerPool(Pool, Generic[W]):
    """A pool with workers, which are started when there are shards for them, and again when they die.

    Args:
        workers: How many at most.
        threads: How many threads each takes.
    """

    def __init__(self, workers: int, threads: int) -> None:
        self.workers = positive("workers", workers)
        self.threads = positive("threads", threads)
        self._crew: list[W] = []
        self._run: Run[Any, Any] | None = None
        self._failed_starts = 0
        self._said: set[Record] = set()
        # Also when the interpreter ends, or when nothing holds the pool any more.
        self._stop_crew = weakref.finalize(self, _stop, self._crew, os.getpid())

    @abstractmethod
    def _start(self) -> W:
        """Start a worker, without waiting for it."""

    @abstractmethod
    def _events(self, wait: bool) -> Iterator[tuple[W, Reply | Died]]:
        """Yield what has happened to workers; wait a second for the first event, if there is none.

        Each event is taken from its worker no sooner than it is yielded.
        """

    def _share(self, work: bytes) -> Any:
        """Return a pickled work as it is sent to each worker."""
        return work

    def _map(self, work: Work[S, R], shards: Iterable[S], progress: Callable[[int], object] | None) -> Iterator[R]:
        self._check_open()
        run: Run[S, R] = Run(self._share(pickle.dumps(work, pickle.HIGHEST_PROTOCOL)), shards, progress)
        self._run = run
        try:
            self._collect(run, wait=False)  # who died since the last map
            while not run.complete:
                self._hand_out(run)
                self._collect(run, wait=run.undone > 0 and not run.has_next)
                if run.has_next:
                    yield run.next()
                    self._check_open()
                    if self._run is not run:
                        raise RuntimeError("another map has begun in this pool, which ended this one.")
        except (KeyboardInterrupt, SystemExit):
            _stop(self._crew, os.getpid())
            raise
        finally:
            run.end()
            if self._run is run:
                self._run = None

    def _hand_out(self, run: Run[Any, Any]) -> None:
        """Read shards, start the workers that they need, and give each that is ready and free a shard."""
        run.read(self.workers)
        others = sum(worker.task is not None and worker.task.run is not run for worker in self._crew)
        while len(self._crew) < min(self.workers, run.undone + others):
            self._crew.append(self._start())
        for worker in self._crew:
            if run.todo and worker.ready and worker.task is None:
                task = heapq.heappop(run.todo)
                worker.send(None if worker.holds is run else run.work, task.shard)
                worker.task, worker.holds = task, run

    def _collect(self, run: Run[Any, Any], wait: bool) -> None:
        """Take what workers report. The replies of maps that have ended are dropped."""
        for worker, event in self._events(wait):
            if isinstance(event, Died):
                self._bury(worker, event, run)
                continue
            self._log(event.records)
            if event.kind == "ready":
                self._welcome(worker, event)
                continue
            task, worker.task = worker.task, None
            if task is None or task.run is not run:
                continue
            if event.kind == "error":
                raise unpacked(event.payload, task.index)
            run.finish(task, event.payload)

    def _welcome(self, worker: W, reply: Reply) -> None:
        """Let a started worker take part, if its versions are the driver's."""
        if differs := difference(pickle.loads(reply.payload), versions()):
            _stop(self._crew, os.getpid())
            raise RuntimeError(
                f"workers have other versions than this process: {differs}. Install the same in both, so that all "
                "shards are computed alike."
            )
        worker.ready = True
        self._failed_starts = 0

    def _bury(self, worker: W, died: Died, run: Run[Any, Any]) -> None:
        """Forget a worker that died, and put its shard back."""
        self._crew.remove(worker)
        worker.stop()
        worker.reap()
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts == DEATHS:
                self._failed_starts = 0
                raise WorkerDied(
                    f"{counted(DEATHS, 'worker')} ended before they were ready; the last {_account(died, '')}",
                    exit_code=died.exit_code,
                )
        elif worker.task is not None and worker.task.run is run:
            run.again(worker.task, died)

    def _log(self, records: list[Record]) -> None:
        """Log what workers logged, if none has logged the same before."""
        for name, level, text in records:
            if (name, level, text) not in self._said:
                self._said.add((name, level, text))
                logging.getLogger(name).log(level, "%s", text)

    def close(self) -> None:
        self._stop_crew()
        super().close()


def _stop(crew: list[W], owner: int) -> None:
    """End all workers, unless this process only inherited them from the one that it was forked from."""
    if os.getpid() != owner:
        return
    leaving, crew[:] = crew[:], []
    for worker in leaving:
        worker.stop()
    for worker in leaving:
        worker.reap()


def _account(died: Died, otherwise: str) -> str:
    """How a worker died, what to do, and its last words."""
    text = " ".join(filter(None, (f"{died.how}.", died.advice or otherwise)))
    return f"{text} Its last output:\n{died.output}" if died.output else text
