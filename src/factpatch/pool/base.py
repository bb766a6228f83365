"""The protocol: works and pools, and the error of workers that keep dying."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

S = TypeVar("S")
R = TypeVar("R")
S_contra = TypeVar("S_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Opened(Protocol[S_contra, R_co]):
    """What stays in a worker: the loaded model, say, and what is done with a shard."""

    def __call__(self, work: Any, shard: S_contra, /) -> R_co:
        """Return the result of a shard.

        Args:
            work: The work of the present `map`: of the key that was opened, but perhaps with other contents.
            shard: A part of what is mapped.
        """


class Work(Protocol[S_contra, R_co]):
    """What is done with every shard: a frozen dataclass that pickle can copy, of a module that workers can import."""

    @property
    def key(self) -> str:
        """Works of the same key can use what one of them opened."""

    def open(self) -> Opened[S_contra, R_co]:
        """Load what the shards need; called once in each worker that takes part."""


class WorkerDied(RuntimeError):  # noqa: N818 - it names what happened, as TimeoutExpired does
    """Three workers died of one shard, or before they were ready.

    Attributes:
        shard: The place of the shard in what was mapped, from 0; None if the workers did not get as far as a shard.
        exit_code: How the last worker ended; minus the signal if it was killed; None if unknown.
    """

    def __init__(self, message: str, shard: int | None = None, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.shard = shard
        self.exit_code = exit_code


class Pool(ABC):
    """Maps works over shards. A context manager, which closes it.

    Attributes:
        workers: How many shards are worked on at a time.
        threads: How many threads each worker takes.
    """

    workers: int = 1
    threads: int = 1
    _closed = False

    def map(
        self, work: Work[S, R], shards: Iterable[S], progress: Callable[[int], object] | None = None
    ) -> Iterator[R]:
        """Yield the result of each shard, in order, each as soon as it and all before it are there.

        Shards are read as they are needed, and work begins with the first result that is asked for. A pool serves one
        map at a time: the next one ends an unfinished one.

        Args:
            work: Sent to each worker once; opened there unless the worker has opened one of the same key before.
            shards: Sent one by one, each to whichever worker is free.
            progress: Called with the place of each shard that is done, in the order in which they are.

        Raises:
            WorkerDied: A shard ended three workers.
            RuntimeError: The pool is closed, or another map has begun.
            Exception: What `work` raised, as soon as it is known, with the worker's traceback as a note. The pool can
                map again: shards that were begun are finished and their results dropped, the others are not begun.
        """
        self._check_open()
        return self._map(work, shards, progress)

    @abstractmethod
    def _map(self, work: Work[S, R], shards: Iterable[S], progress: Callable[[int], object] | None) -> Iterator[R]: ...

    def close(self) -> None:
        """End the workers and drop what they opened. A closed pool stays closed, and may be closed again."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"this {type(self).__name__} pool is closed; make another one.")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def positive(name: str, number: int) -> int:
    """Return a number of workers or threads; ValueError unless it is a whole number from 1 on."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name}={number!r}: give a whole number from 1 on.")
    return number


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
