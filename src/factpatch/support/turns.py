"""Work that one process does while others that need it wait."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


@contextmanager
def one_at_a_time(lock: Path, what: str) -> Iterator[bool]:
    """Run the block while no other process runs one with this lock; yield whether it had to wait.

    The block then looks for what the other process has left, before it computes that again. The system releases the
    lock of a process that dies. Where no lock can be made, on a disk that cannot be written to, the block runs without
    one: what others compute meanwhile is computed twice, and nothing is lost.

    Args:
        lock: A file, which is there only meanwhile, in a folder that exists.
        what: What the block computes, for the log.
    """
    held, waited = FileLock(lock), False
    try:
        try:
            held.acquire(timeout=0)
        except Timeout:
            logger.info("another process computes %s; waiting for it", what)
            waited = True
            held.acquire()
    except (OSError, NotImplementedError):
        yield waited
        return
    try:
        yield waited
    finally:
        with suppress(OSError):  # whoever waits for this very file finds the outcome; whoever comes later, too
            lock.unlink()
        held.release()
