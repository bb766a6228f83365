"""Work that continues in smaller pieces when an allocation fails."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from factpatch.model.memory import at_most, free_memory, halves, in_pieces, out_of_memory


def limited(most: int) -> Any:
    """Work that takes at most so many items."""

    def work(items: Sequence[int]) -> list[int]:
        if len(items) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return [10 * item for item in items]

    return work


@pytest.mark.parametrize("most", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("count", [1, 2, 13])
def test_pieces_hold_every_item_once_in_order(count: int, most: int) -> None:
    pieces = list(in_pieces(limited(most), list(range(count))))
    assert [item for piece, _ in pieces for item in piece] == list(range(count))
    assert [item for _, result in pieces for item in result] == [10 * item for item in range(count)]
    # Nothing is divided further than it must be.
    assert len(pieces) <= max(1, 2 * count // most)


def test_what_fits_is_one_piece() -> None:
    assert len(list(in_pieces(limited(5), [1, 2, 3, 4, 5]))) == 1


def test_a_single_item_that_does_not_fit_says_what_to_do() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"single text of a fact.*bfloat16.*fewer facts"):
        list(in_pieces(limited(0), [1, 2], what="text of a fact"))


def test_other_errors_pass() -> None:
    def work(items: Sequence[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_pieces(work, [1, 2]))


def test_what_a_failed_attempt_has_allocated_is_free_before_the_next() -> None:
    left: list[Any] = []

    def work(items: Sequence[int]) -> None:
        assert not any(reference() is not None for reference in left)
        held = torch.zeros(len(items))
        left.append(weakref.ref(held))
        if len(items) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        del held

    assert len(list(in_pieces(work, [1, 2, 3, 4]))) == 4
    assert len(left) == 7


def test_the_allocator_of_the_cpu_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert not out_of_memory(ValueError("out of memory."))


def test_halves_cannot_halve_one() -> None:
    assert halves([1, 2, 3]) == [[1], [2, 3]]
    assert halves([1]) == []


def test_free_memory_of_the_machine() -> None:
    assert 0 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


def test_what_an_allocator_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SimpleNamespace(
        mem_get_info=lambda device: (100, 1000), memory_reserved=lambda device: 70, memory_allocated=lambda device: 50
    )
    monkeypatch.setattr(torch, "cuda", backend)
    assert free_memory(torch.device("cuda", 0)) == 120


def test_a_process_takes_for_free_what_is_left_of_what_it_may_take() -> None:
    cpu = torch.device("cpu")
    taken = psutil.Process().memory_info().rss
    before = free_memory(cpu)
    with at_most(taken + 50_000_000):
        assert 0 < free_memory(cpu) < 60_000_000
        with at_most(1):
            assert free_memory(cpu) == 0
        with at_most(None):
            assert free_memory(cpu) > before / 2
    assert free_memory(cpu) > before / 2
