"""LyapLock's solver against its formulas on the weights themselves, and in a session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.editors import FACTS, LAYERS, make, second_moments
from torch import Tensor

from factpatch import Editor, Fact, Patch, Session
from factpatch.strategies import BoundedRidge, Ridge

D_KEY, D_VALUE, WEIGHT = 20, 12, 3.0
TIGHT = {"solver.bound": 0.5}
"""So that m grows from the first batch on."""


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Published:
    """The recursion of the paper, columns as facts: every batch solves for all of W, whose place the next one takes."""

    def __init__(self, unedited: Tensor, ordinary: Tensor, alpha: float) -> None:
        self.unedited, self.ordinary, self.alpha = unedited, ordinary, alpha
        self.weight = unedited.clone()
        self.keys, self.values = unedited.new_zeros(D_KEY, 0), unedited.new_zeros(D_VALUE, 0)
        self.base = self.queue = self.rate = None

    def edit(self, keys: Tensor, residual: Tensor) -> None:
        wanted = self.weight @ keys + residual
        cost = WEIGHT * (1.0 if self.queue is None else self.rate * self.queue)
        left = wanted @ keys.T + self.values @ self.keys.T + cost * self.unedited @ self.ordinary
        system = keys @ keys.T + self.keys @ self.keys.T + cost * self.ordinary
        self.weight = torch.linalg.solve(system, left.T).T
        moved = (self.weight - self.unedited) @ self.ordinary @ (self.weight - self.unedited).T
        loss = float(moved.trace())
        if self.base is None:
            self.base = self.alpha * loss
            self.queue, self.rate = self.base**0.5, self.base**-0.5
        self.queue = max(self.queue + self.rate * (loss - self.base), self.base**0.5)
        self.keys = torch.cat([self.keys, keys], dim=1)
        self.values = torch.cat([self.values, self.weight @ keys], dim=1)


@pytest.mark.parametrize("alpha", [60.0, 1.5, 0.4])
def test_every_batch_is_that_of_the_paper(alpha: float) -> None:
    torch.manual_seed(0)
    text = normal(200, D_KEY)
    ordinary = text.T @ text / 200
    published = Published(normal(D_VALUE, D_KEY), ordinary, alpha)
    memory = BoundedRidge(weight=WEIGHT, bound=alpha).memory(ordinary)
    batches, multipliers = [], []
    for size in (4, 1, 6, 5, 9):  # more facts at last than a key has dimensions
        keys, residual = normal(size, D_KEY), normal(size, D_VALUE)
        before = published.weight.clone()
        published.edit(keys.T, residual.T)
        memory.follow(batches)
        shift = memory.solve(keys, residual).matrix()
        torch.testing.assert_close(before + shift, published.weight, rtol=1e-9, atol=1e-11)
        multipliers.append(memory.multiplier)  # type: ignore[attr-defined]
        batches.append(memory.trace(keys, residual))
    assert (max(multipliers) == 1) == (alpha == 60)


def test_the_first_batch_is_ridge_regression() -> None:
    torch.manual_seed(0)
    text, keys, residual = normal(200, D_KEY), normal(5, D_KEY), normal(5, D_VALUE)
    shifts = [
        kind(weight=WEIGHT, norm_weight=2.0).memory(text.T @ text).solve(keys, residual).matrix()
        for kind in (Ridge, BoundedRidge)
    ]
    torch.testing.assert_close(*shifts)


def test_what_is_preserved_beforehand_does_not_set_the_scale() -> None:
    torch.manual_seed(0)
    text, keys, residual = normal(200, D_KEY), normal(5, D_KEY), normal(5, D_VALUE)
    memories = [BoundedRidge(weight=WEIGHT, bound=0.5).memory(text.T @ text) for _ in range(2)]
    batch = memories[0].trace(keys, residual)
    memories[0].follow([memories[0].trace(normal(3, D_KEY), residual.new_zeros(3, D_VALUE)), batch])
    memories[1].follow([batch])
    multipliers = [memory.multiplier for memory in memories]  # type: ignore[attr-defined]
    assert multipliers[0] == multipliers[1] == 2.0


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_that_is_none_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match=r"bound=.*α must be positive and finite"):
        BoundedRidge(bound=bound)


def test_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="BoundedRidge: it cannot solve for the experts"):
        BoundedRidge().memory(torch.eye(4).expand(3, 4, 4))


def edited(*batches: tuple[Fact, ...]) -> Editor:
    editor = make("lyaplock-blue", dtype=torch.float32, settings=TIGHT)
    for batch in batches:
        editor.edit(batch)
    return editor


def same(one: Editor, other: Editor) -> bool:
    return all(torch.equal(one.lm.weight(layer), other.lm.weight(layer)) for layer in LAYERS)


def test_the_tighter_the_bound_the_less_ordinary_text_moves() -> None:
    moved = []
    for bound in (0.2, 60.0):
        editor = make("lyaplock-blue", settings={"solver.bound": bound})
        (layer, *_) = editor.written_layers
        before = editor.lm.weight(layer).clone()
        for fact in FACTS:
            editor.edit([fact])
        difference = editor.lm.weight(layer) - before
        moved.append(float((difference @ second_moments()[layer] @ difference.T).trace()))
    assert moved[0] < 0.8 * moved[1]


def test_a_session_is_undone_and_replayed_with_its_traces_and_not_without() -> None:
    editor, other = edited(FACTS[:1], FACTS[1:2]), edited()
    patches = [edit.patch for edit in editor.edits]
    with pytest.raises(ValueError, match="BoundedRidge remembers more of a batch than its patch holds"):
        other.replay(Patch.join(patches))
    other.replay(Patch.join(patches), [edit.traces for edit in editor.edits])
    editor.edit(FACTS[2:3])
    editor.undo()
    assert editor.edit(FACTS[2:]).batches[0].after == other.edit(FACTS[2:]).batches[0].after
    assert same(editor, other)


def test_a_session_resumes_to_the_same_bits_and_takes_one_fact_back(tmp_path: Path) -> None:
    whole = edited(*([fact] for fact in FACTS))  # type: ignore[arg-type]
    session = Session.create(tmp_path / "session", edited(), [[fact] for fact in FACTS])
    for _ in FACTS:
        editor = edited()
        with Session(tmp_path / "session").locked():
            session = Session(tmp_path / "session")
            session.attach(editor)
            session.edit(editor, ask=False)
    assert same(editor, whole)
    with session.locked():
        session.undo_fact(editor, FACTS[1], ask=False)
    whole.undo_fact(FACTS[1])
    assert same(editor, whole)
    other = [replace(FACTS[0], target_new="Finnish")]  # the value that it replaces is left out
    assert editor.edit(other).batches[0].after == whole.edit(other).batches[0].after
