"""The history of some weights: whole entries or nothing, in order, back to any of them, shown as a read-out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import factpatch.patch.history as history_module
from factpatch.facts import Fact
from factpatch.model.weights import content_hash
from factpatch.patch.batch import Batch, first_states, last_states, states
from factpatch.patch.history import History
from factpatch.patch.shift import Dense, Shift

FACT = Fact("{} is in", "The tower", "Rome")


@dataclass(frozen=True)
class One:
    """An entry of one batch."""

    batch: Batch

    @property
    def batches(self) -> tuple[Batch, ...]:
        return (self.batch,)


def make(read_out: Any = None) -> tuple[dict[int, Tensor], History[One]]:
    weights = {layer: torch.randn(3, 4, generator=torch.Generator().manual_seed(layer)) for layer in (1, 2)}
    return weights, History(lambda layers: {layer: weights[layer] for layer in layers}, torch.float32, read_out)


def add(history: History[One], seed: int, fail: type[BaseException] | None = None) -> None:
    with history.open([1, 2], "edit") as draft:
        generator = torch.Generator().manual_seed(100 + seed)
        shifts: dict[int, Shift] = {layer: Dense(torch.randn(3, 4, generator=generator)) for layer in (1, 2)}
        draft.write(shifts)
        draft.keep(One(draft.batch([FACT], shifts)))
        if fail is not None:
            raise fail


def held(weights: Mapping[int, Tensor]) -> dict[int, str]:
    return {layer: content_hash(weight) for layer, weight in weights.items()}


def halved(shifts: Mapping[int, Shift], unedited: Mapping[int, Tensor]) -> dict[int, Shift]:
    return {layer: Dense(shift.matrix() / 2) for layer, shift in shifts.items()}


@pytest.mark.parametrize("read_out", [None, halved], ids=["sum", "read out"])
def test_every_state_is_reached_again_to_the_bit(read_out: Any) -> None:
    weights, history = make(read_out)
    seen = [held(weights)]
    for seed in range(3):
        add(history, seed)
        seen.append(held(weights))
    assert len(set(map(str, seen))) == 4
    for to in (2, 1, 0):
        history.take_back(to, "undo")
        assert held(weights) == seen[to]
        assert len(history.entries) == to
    for seed in range(3):
        add(history, seed)
    assert held(weights) == seen[3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
@pytest.mark.parametrize("read_out", [None, halved], ids=["sum", "read out"])
def test_an_entry_that_fails_leaves_no_trace(read_out: Any, error: type[BaseException]) -> None:
    weights, history = make(read_out)
    add(history, 0)
    before, entries, shown = held(weights), history.entries, history.shown
    with pytest.raises(error):
        add(history, 1, error)
    assert held(weights) == before
    assert history.entries is entries
    assert history.shown is shown
    add(history, 1)
    other_weights, other = make(read_out)
    add(other, 0)
    add(other, 1)
    assert held(weights) == held(other_weights)


def test_a_read_out_is_shown_and_later_batches_begin_at_the_full_sum() -> None:
    plain, shown = make(), make(halved)
    for weights, history in (plain, shown):
        add(history, 0)
        add(history, 1)
        del weights
    full, base = plain[0], make()[0]
    for layer, weight in shown[0].items():
        torch.testing.assert_close(weight, (full[layer] + base[layer]) / 2)
    assert shown[1].shown is not None
    assert shown[1].shown.after == held(shown[0])
    assert states(plain[1].batches) == states(shown[1].batches)
    assert first_states(plain[1].batches) == held(base)
    assert last_states(plain[1].batches) == held(full)


def test_weights_that_somebody_else_changed_are_left_alone() -> None:
    weights, history = make()
    add(history, 0)
    weights[2][0, 0] += 1
    changed = held(weights)
    for act in (lambda: add(history, 1), lambda: history.take_back(0, "undo")):
        with pytest.raises(ValueError, match=r"layer 2 were changed outside this editor"):
            act()
        assert held(weights) == changed


def test_a_batch_is_replayed_to_its_bits_or_not_at_all() -> None:
    weights, history = make()
    add(history, 0)
    batch, edited = history.batches[0], held(weights)
    weights, history = make()
    with history.open([1, 2], "replay") as draft:
        draft.replay(batch)
        draft.keep(One(batch))
    assert held(weights) == edited
    weights, history = make()
    before = held(weights)
    other = Batch(batch.facts, batch.shifts, batch.before, dict.fromkeys(batch.after, "0" * 64))
    with pytest.raises(RuntimeError, match="rounds the shifts differently"), history.open([1, 2], "replay") as draft:
        draft.replay(other)
    assert held(weights) == before


def at_every_line(work: Callable[[], object]) -> Iterator[int]:
    """Do some work again and again, interrupted at the first, the second, ... of its lines in the project's files."""
    ours = str(Path(history_module.__file__).parents[1])
    for moment in count(1):
        seen = 0

        def trace(frame: FrameType, event: str, argument: object, moment: int = moment) -> Any:
            nonlocal seen
            inside = frame.f_code.co_filename.startswith(ours) or frame.f_code.co_filename.endswith("contextlib.py")
            if event == "line" and inside:
                seen += 1
                if seen == moment:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            work()
            return
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        yield moment  # only now: what was interrupted between two context managers is closed with its frames


@pytest.mark.parametrize("read_out", [None, halved], ids=["sum", "read out"])
@pytest.mark.parametrize("act", ["add", "take back"])
def test_after_an_interruption_at_any_line_weights_and_entries_agree(act: str, read_out: Any) -> None:
    weights, history = make(read_out)
    expected = [held(weights)]
    for seed in range(3):
        add(history, seed)
        expected.append(held(weights))
    history.take_back(2, "undo")
    work = (lambda: add(history, 2)) if act == "add" else (lambda: history.take_back(0, "reset"))
    moments = 0
    for _ in at_every_line(work):
        moments += 1
        assert held(weights) == expected[len(history.entries)]
        if len(history.entries) != 2:  # done, and interrupted on the way out
            history.take_back(0, "reset")
            add(history, 0)
            add(history, 1)
    assert moments > 50
