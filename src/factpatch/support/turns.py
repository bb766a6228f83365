"""Work that one process does while others that need it wait."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


@contextmanager
def one_at_a_time(lock: Path, what: str) -> Iterator[None]:
    """Run the block while no other process runs one with this lock.

    The system releases the lock of a process that dies. Where no lock can be made, on a disk that cannot be written to,
    the block runs without one: what others compute meanwhile is computed twice, and nothing is lost.

    Args:
        lock: A file, made if necessary, in a folder that exists.
        what: What the block computes, for the log.
    """
    held = FileLock(lock)
    try:
        try:
            held.acquire(timeout=0)
        except Timeout:
            logger.info("another process computes %s; waiting for it", what)
            held.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        held.release()
