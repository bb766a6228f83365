"""Works for the tests of pools, in a module that workers can import without PyTorch."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import factpatch

loaded = 0
"""How many works with a payload this process has unpickled."""


class Payload:
    """Counts how often it is pickled, in the driver, and unpickled, in a worker."""

    def __init__(self, size: int = 0) -> None:
        self.content = b"x" * size
        self.pickled = 0

    def __getstate__(self) -> dict[str, Any]:
        self.pickled += 1
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        global loaded
        loaded += 1
        self.__dict__ = state


class StrangeError(Exception):
    """Cannot come back from its own pickle."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


@dataclass(frozen=True)
class Square:
    """Squares what it gets, and adds what the present work says."""

    key: str
    plus: int = 0

    def open(self) -> OpenedSquare:
        return OpenedSquare(self.plus)


class OpenedSquare:
    def __init__(self, opened_with: int) -> None:
        self.opened_with = opened_with
        self.calls = 0

    def __call__(self, work: Square, shard: int) -> tuple[int, int, tuple[int, int]]:
        """The result; what the work was opened with; and the process with how often what it opened was called."""
        self.calls += 1
        return shard * shard + work.plus, self.opened_with, (os.getpid(), self.calls)


@dataclass(frozen=True)
class Calls:
    """Calls the function that a shard names, with the work and what else the shard holds."""

    key: str = "calls"
    directory: Path = Path()
    opening: tuple[Any, ...] | None = None
    payload: Any = None

    def open(self) -> Callable[[Calls, tuple[Any, ...]], Any]:
        if self.opening is not None:
            call(self, self.opening)
        return call


def call(work: Calls, shard: tuple[Any, ...]) -> Any:
    name, *arguments = shard
    return globals()[name](work, *arguments)


def echo(work: Calls, value: Any) -> Any:
    return value


def pid(work: Calls) -> int:
    return os.getpid()


def fail(work: Calls, said: str) -> None:
    raise KeyError(said)


def fail_strangely(work: Calls) -> None:
    raise StrangeError("this", "that")


def leave(work: Calls, code: int) -> None:
    sys.exit(code)


def quit_at_once(work: Calls, code: int) -> None:
    os._exit(code)


def missing(work: Calls) -> None:
    raise FileNotFoundError(2, "no such model", "gpt-5")


def function(work: Calls) -> Any:
    return lambda: None


def sleep(work: Calls, seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def say(work: Calls, text: str) -> None:
    """Say it in all ways but one: as a warning, to a logger that is heard, to one that keeps it, and as an aside."""
    warnings.warn(text, UserWarning, stacklevel=1)
    logging.getLogger("heard").warning("%s heard", text)
    logging.getLogger("heard").info("%s not of interest", text)
    logging.getLogger("alone").propagate = False
    logging.getLogger("alone").error("%s alone", text)
    print(text, "printed", flush=True)
    print(text, "printed", file=sys.stderr, flush=True)


def kill(work: Calls, times: int) -> str:
    """Kill the worker unless so many were killed already, as the files in the directory say."""
    if len(list(work.directory.iterdir())) < times:
        (work.directory / str(os.getpid())).touch()
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def compute(work: Calls) -> None:
    """Show that this process works, and compute for a while."""
    (work.directory / str(os.getpid())).touch()
    end = time.monotonic() + 300
    while time.monotonic() < end:
        sum(range(10_000))


def environment(work: Calls) -> list[str | None]:
    return [os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]


def gpus(work: Calls, workers: int) -> str | None:
    """The GPUs that this worker sees, once so many are at work."""
    (work.directory / str(os.getpid())).touch()
    while len(list(work.directory.iterdir())) < workers:
        time.sleep(0.01)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def threads(work: Calls) -> int:
    import torch

    return torch.get_num_threads()


def restrict_threads(work: Calls) -> None:
    """Leave PyTorch with one thread, as another library may."""
    assert "torch" not in sys.modules
    import torch

    torch.set_num_threads(1)


def unpickled(work: Calls) -> tuple[int, int, int]:
    """This process, how many payloads it has unpickled, and the size of the one at hand."""
    time.sleep(0.01)
    return os.getpid(), loaded, len(work.payload.content)


def source(work: Calls) -> str:
    return str(factpatch.__file__)
