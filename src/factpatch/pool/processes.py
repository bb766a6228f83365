"""Workers in processes of their own, on this machine.

Each is a new interpreter that is told by its command line to answer at one end of a pipe. It does not run the main
module again, as `multiprocessing` does, so that a script needs no guard and may come from a pipe itself; and it has
the environment that it needs from its first moment. Nothing is written to disk but what a worker prints.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait as wait_for
from multiprocessing.spawn import get_executable
from typing import Any

from factpatch.pool.base import cores, positive
from factpatch.pool.dispatch import SHORT_OF_MEMORY, Died, Worker, WorkerPool
from factpatch.pool.worker import Reply, receive, thread_limits
from factpatch.support.words import steerless

_LAUNCH = (
    "import sys; sys.path[:] = sys.argv[4:]; from factpatch.pool.worker import main; main(*map(int, sys.argv[1:4]))"
)
_LOOK_SECONDS = 1.0
_LEAVE_SECONDS = 5.0
_LAST_OUTPUT = 2000
_MOST_OUTPUT = 1_000_000


class Processes(WorkerPool["_Process"]):
    """Maps in spawned processes.

    Args:
        workers: How many. Each opens the work for itself: a model is loaded so many times.
        threads: How many threads each takes; by default an equal share of the cores.

    Raises:
        ValueError: One of them is not a whole number from 1 on.
        RuntimeError: The system is Windows.
    """

    def __init__(self, workers: int, threads: int | None = None) -> None:
        if os.name != "posix":
            raise RuntimeError("workers in processes of their own need Linux or macOS; leave out `workers` here.")
        share = max(1, cores() // positive("workers", workers))
        super().__init__(workers, share if threads is None else threads)

    def _start(self) -> _Process:
        return _Process(self.threads)

    def _events(self, wait: bool) -> Iterator[tuple[_Process, Reply | Died]]:
        processes: dict[Any, _Process] = {process.connection: process for process in self._crew}
        ready = wait_for(list(processes), _LOOK_SECONDS if wait else 0)
        for connection, process in processes.items():
            # A process that the worker forked may hold its end of the pipe, which then does not end with the worker.
            if connection in ready or process.is_gone():
                yield process, process.reply()


class _Process(Worker):
    def __init__(self, threads: int) -> None:
        self.connection, there = Pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the worker
        arguments = (there.fileno(), os.getpid(), threads, *sys.path)
        try:
            self._process = subprocess.Popen(
                [os.fsdecode(get_executable()), "-X", "faulthandler", "-c", _LAUNCH, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=(there.fileno(),),
                env={**os.environ, **thread_limits(threads)},
            )
        finally:
            there.close()

    def send(self, work: bytes | None, shard: bytes) -> None:
        if os.fstat(self._output.fileno()).st_size > _MOST_OUTPUT:
            os.truncate(self._output.fileno(), 0)  # what follows goes where it would have gone, after a hole
        with suppress(ConnectionError), self._whole():
            self.connection.send_bytes(work or b"")
            self.connection.send_bytes(shard)

    def is_gone(self) -> bool:
        """Whether the process has ended and left nothing to receive."""
        return self._process.poll() is not None and not self.connection.poll()

    def reply(self) -> Reply | Died:
        """Receive a reply, or say how the process ended."""
        try:
            if not self.is_gone():
                with self._whole():
                    return receive(self.connection)
        except (EOFError, OSError):
            pass
        return self._death()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """End the process when an interrupt leaves a part of a message in the pipe."""
        try:
            yield
        except (EOFError, OSError):
            raise
        except BaseException:
            self._process.kill()
            raise

    def _death(self) -> Died:
        self._wait()
        code = self._process.returncode
        how = f"ended with exit code {code}"
        if code < 0:
            names = {each.value: each.name for each in signal.Signals}
            how = f"was killed with {names.get(-code, 'a signal')} (exit code {code})"
        size = os.fstat(self._output.fileno()).st_size
        output = os.pread(self._output.fileno(), _LAST_OUTPUT, max(0, size - _LAST_OUTPUT))
        advice = SHORT_OF_MEMORY if code == -signal.SIGKILL else ""
        return Died(code, how, advice, steerless(output.decode(errors="replace")).strip())

    def stop(self) -> None:
        self.connection.close()  # a worker that waits for a shard leaves in order
        if self.task is not None or not self.ready:
            self._process.terminate()

    def reap(self) -> None:
        self._wait()
        self._output.close()

    def _wait(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVE_SECONDS)
        self._process.kill()
        self._process.wait()
