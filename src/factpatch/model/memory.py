"""How much memory is free, and work that goes on in smaller pieces where it does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, what its caching allocator holds unused included.

    A device whose module of PyTorch does not tell is taken for one that shares the memory of the machine.
    """
    backend: Any = getattr(torch, device.type, None)
    if hasattr(backend, "mem_get_info"):
        held = backend.memory_reserved(device) - backend.memory_allocated(device)
        return int(backend.mem_get_info(device)[0] + held)
    return int(psutil.virtual_memory().available)


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed, on whatever device."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, Exception) and bool(should_reduce_batch_size(error))
    )


def halves(items: Sequence[T]) -> list[Sequence[T]]:
    """Both halves of a sequence; nothing of what cannot be halved."""
    middle = len(items) // 2
    return [items[:middle], items[middle:]] if middle else []


def in_pieces(
    work: Callable[[T], R], whole: T, parts: Callable[[Any], Sequence[Any]] = halves, *, what: str = "text"
) -> Iterator[tuple[T, R]]:
    """Work on something as a whole if memory allows, else on parts of it, and so on.

    Args:
        work: must leave nothing half done when an allocation fails.
        parts: what to try instead, in order; none if it cannot be divided.
        what: the name of what cannot be divided, for the message.

    Yields:
        The pieces that were worked on, in order, each with its result.

    Raises:
        OutOfMemoryError: memory does not suffice for a piece that cannot be divided.
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
        # Only here, behind the error and its traceback, is what the failed attempt has allocated free again.
        clear_device_cache()
        logger.info("memory does not suffice for so many texts at once; going on in smaller pieces")
        waiting.extend(reversed(smaller))
