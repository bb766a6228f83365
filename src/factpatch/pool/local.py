"""The pool without workers: this process maps one shard after another, and copies nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from factpatch.pool.base import Opened, Pool, R, S, Work, positive


class Local(Pool):
    """Maps in this process: a shard is read, and worked on, when its result is asked for."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = positive("threads", threads)
        self._key: str | None = None
        self._opened: Opened[Any, Any] | None = None

    def _map(self, work: Work[S, R], shards: Iterable[S], progress: Callable[[int], object] | None) -> Iterator[R]:
        opened: Opened[S, R] | None = None
        for index, shard in enumerate(shards):
            if opened is None:
                opened = self._open(work)
            result = opened(work, shard)
            if progress is not None:
                progress(index)
            yield result

    def _open(self, work: Work[S, R]) -> Opened[S, R]:
        self._check_open()
        if self._opened is None or self._key != work.key:
            self._key = self._opened = None  # two models at a time may be one too many
            self._opened = work.open()
            self._key = work.key
        return self._opened

    def close(self) -> None:
        self._key = self._opened = None
        super().close()
