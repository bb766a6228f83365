"""In a worker: what it keeps from shard to shard, what it answers, and when it leaves.

PyTorch is left to the works, so that a worker starts in a moment.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import platform
import select
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from factpatch.pool.base import Opened, Work
from factpatch.support.versions import library_versions

_LOOKS_AFTER_SECONDS = 1.0
_GRACE_SECONDS = 2.0

Record = tuple[str, int, str]
"""What was logged: the logger's name, the level and the text."""


class Reply(NamedTuple):
    """What a worker answers: once when it is ready, and once to each shard."""

    kind: str
    """`ready`, `result` or `error`"""
    payload: bytes
    """A pickle: the worker's versions, a result, or an error as `packed` makes it."""
    records: list[Record]
    """What was logged since the last reply."""


class Runner:
    """Opens works and runs them on shards. One lives in each worker.

    Args:
        threads: How many threads PyTorch takes for one operation.
    """

    def __init__(self, threads: int) -> None:
        # Before PyTorch is imported, which reads them then; Ray sets them to the CPUs that its actor asks for.
        os.environ.update(thread_limits(threads))
        self._threads = threads
        self._work: Work[Any, Any] | None = None
        self._key: str | None = None
        self._opened: Opened[Any, Any] | None = None
        self._records = _collected_records()
        self.busy = False

    def ready(self) -> Reply:
        """Answer which versions are here."""
        return self._reply("ready", pickle.dumps(versions()))

    def answer(self, work: bytes | None, shard: bytes) -> Reply:
        """Return the result of a shard, or the error that it raised.

        Args:
            work: The pickled work of a new map; None if it is still the one before.
            shard: The pickled shard.
        """
        self.busy = True
        try:
            if work is not None:
                self._take(_read(work, "work"))
            assert self._work is not None
            assert self._opened is not None
            result = self._opened(self._work, _read(shard, "shard"))
            return self._reply("result", pickle.dumps(result, pickle.HIGHEST_PROTOCOL))
        except BaseException as error:
            return self._reply("error", packed(error))
        finally:
            self.busy = False

    def _take(self, work: Work[Any, Any]) -> None:
        """Make a work the present one, and open it unless one of the same key is open."""
        self._work = work
        self._limit_threads()
        if self._opened is not None and self._key == work.key:
            return
        self._key = self._opened = None
        gc.collect()  # two models at a time may be one too many
        self._opened = work.open()
        self._key = work.key
        self._limit_threads()

    def _limit_threads(self) -> None:
        """Limit PyTorch's threads, once it is there: another library may have changed what its environment says."""
        if "torch" in sys.modules:
            import torch

            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)

    def _reply(self, kind: str, payload: bytes) -> Reply:
        records = self._records[:]
        del self._records[: len(records)]  # other threads may add some in between
        return Reply(kind, payload, records)


class Actor(Runner):
    """A runner on Ray, which ends with the process of Ray that started it.

    Where a driver is killed together with the Ray that it started, Ray itself leaves a busy worker running.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        _watch(self, os.getppid())


def _read(pickled: bytes, what: str) -> Any:
    try:
        return pickle.loads(pickled)
    except (AttributeError, ImportError) as error:
        raise ValueError(
            f"a worker cannot read the {what}: {error}. Define its class, and whatever else it holds, in a module that "
            "can be imported: workers do not run the script or the session that started them."
        ) from error


def thread_limits(threads: int) -> dict[str, str]:
    """The environment that limits PyTorch and the libraries beneath it to so many threads."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def versions() -> dict[str, str]:
    """The versions that driver and workers must share: of what numbers depend on, and of Python up to its minor one."""
    return {**library_versions(), "python": ".".join(platform.python_version_tuple()[:2])}


def packed(error: BaseException) -> bytes:
    """Pickle an error as three things: its own pickle, if that gives it back; what it says; and its traceback."""
    said = "".join(traceback.format_exception_only(error)).strip()
    own: bytes | None = None
    with suppress(Exception):
        copy = pickle.loads(pickle.dumps(error))
        # Not what would end the driver; and an error may come back from its pickle as another one, or as a wreck.
        if isinstance(error, Exception) and type(copy) is type(error) and str(copy) == str(error):
            own = pickle.dumps(error)
    return pickle.dumps((own, said, "".join(traceback.format_exception(error))))


def unpacked(payload: bytes, index: int) -> Exception:
    """Return a worker's error, with its traceback as a note; a RuntimeError if only its text could be sent."""
    own, said, trace = pickle.loads(payload)
    error: Exception = RuntimeError(said)
    if own is not None:
        with suppress(Exception):
            error = pickle.loads(own)
    note = f"Raised in a worker, in shard {index}:\n{trace.rstrip()}"
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:  # Python 3.10 prints causes, but no notes
        error.__cause__ = RuntimeError(note)
    return error


def _collected_records() -> list[Record]:
    """Collect what is logged from now on at the level of warnings or above, by whatever logger; each text once.

    A handler would miss the libraries that keep their records from the root logger.
    """
    records: list[Record] = []
    said: set[Record] = set()
    make = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.levelno >= logging.WARNING:
            with suppress(Exception):  # arguments that do not fit their format are the handlers' business
                entry = (record.name, record.levelno, logging.Formatter().format(record))
                if entry not in said:
                    said.add(entry)
                    records.append(entry)
        return record

    logging.setLogRecordFactory(factory)
    logging.captureWarnings(True)
    return records


def receive(connection: Connection) -> Reply:
    """Receive a reply, in the driver."""
    kind, records = pickle.loads(connection.recv_bytes())
    return Reply(kind, connection.recv_bytes(), records)


def _send(connection: Connection, reply: Reply) -> None:
    # Not `Connection.send`: PyTorch teaches it to send tensors as shared memory, which would end with the worker.
    connection.send_bytes(pickle.dumps((reply.kind, reply.records)))
    connection.send_bytes(reply.payload)


def main(descriptor: int, parent: int, threads: int) -> None:
    """Answer the shards that come through a pipe until it ends.

    Args:
        descriptor: The worker's end of the pipe.
        parent: The process id of the driver.
        threads: See `Runner`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the driver says what follows
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    runner = Runner(threads)
    _watch(runner, parent, descriptor)
    with suppress(EOFError, ConnectionError):
        _send(connection, runner.ready())
        while True:
            work, shard = connection.recv_bytes(), connection.recv_bytes()
            _send(connection, runner.answer(work or None, shard))


def _watch(runner: Runner, parent: int, descriptor: int | None = None) -> None:
    """End this process when its parent is gone or the pipe ends, also in the middle of a computation.

    A driver that is killed closes the pipe, unless a process that it forked still holds the other end.
    """
    pipe = select.poll()
    if descriptor is not None:
        pipe.register(descriptor, 0)  # the end of the pipe alone; what comes through it is the main thread's

    def leave() -> None:
        while not pipe.poll(1000 * _LOOKS_AFTER_SECONDS) and os.getppid() == parent:
            pass
        if not runner.busy:
            time.sleep(_GRACE_SECONDS)  # the main thread ends in order
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
