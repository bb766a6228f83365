"""How much memory is free, and work that continues in smaller pieces where it does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

FAILURES = (ArithmeticError, ValueError, torch.cuda.OutOfMemoryError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""What one of many edits may fail with while the next may succeed: a model that collapses, facts or settings that do
not fit, too little memory (on whatever device, see `in_pieces`), and a matrix that cannot be factored. PyTorch derives
the last two from RuntimeError, which also stands for mistakes of a program and is therefore not among them."""


_most: ContextVar[int | None] = ContextVar("most memory", default=None)


@contextmanager
def at_most(most: int | None) -> Iterator[None]:
    """Let `free_memory` answer as if this process may take so many bytes, on every device; None changes nothing.

    What is divided to fit into memory, such as the micro-batches of the value optimization, becomes smaller. The model
    itself, the statistics of its layers and the keys of earlier facts take what they take.
    """
    token = _most.set(most)
    try:
        yield
    finally:
        _most.reset(token)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, what its caching allocator holds unused included.

    A device whose module of PyTorch does not say is taken for one that shares the memory of the machine.
    """
    backend: Any = getattr(torch, device.type, None)
    most = _most.get()
    if hasattr(backend, "mem_get_info"):
        taken = backend.memory_allocated(device)
        held = backend.memory_reserved(device) - taken
        free = int(backend.mem_get_info(device)[0] + held)
    else:
        taken = psutil.Process().memory_info().rss
        free = int(psutil.virtual_memory().available)
    return free if most is None else max(0, min(free, most - taken))


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed, on whatever device."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, Exception) and bool(should_reduce_batch_size(error))
    )


def halves(items: Sequence[T]) -> list[Sequence[T]]:
    """Return both halves of a sequence, or nothing if it cannot be halved."""
    middle = len(items) // 2
    return [items[:middle], items[middle:]] if middle else []


def in_pieces(
    work: Callable[[T], R], whole: T, parts: Callable[[Any], Sequence[Any]] = halves, *, what: str = "text"
) -> Iterator[tuple[T, R]]:
    """Work on something as a whole if memory allows, else on parts of it, and so on.

    Args:
        work: Must leave nothing half done when an allocation fails.
        whole: What to work on.
        parts: Returns what to try instead, in order; nothing if it cannot be divided.
        what: The name of what cannot be divided, for the message of the OutOfMemoryError that is then raised.

    Yields:
        The pieces that were worked on, in order, each with its result.
    """
    waiting = [whole]
    while waiting:
        piece = waiting.pop()
        try:
            result = work(piece)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            smaller = parts(piece)
            if not smaller:
                raise torch.cuda.OutOfMemoryError(
                    f"memory does not suffice for a single {what}. Free some, load the model in 16 bits (dtype="
                    "'bfloat16'), spread it over devices (device='auto'), or give fewer facts at a time. The allocator "
                    f"said: {error}"
                ) from error
        else:
            yield piece, result
            continue
        # Only here, after the error and its traceback are gone, is what the failed attempt had allocated free again.
        clear_device_cache()
        logger.info("memory does not suffice for so many texts at once; continuing in smaller pieces")
        waiting.extend(reversed(smaller))
