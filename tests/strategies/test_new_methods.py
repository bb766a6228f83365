"""Methods of kinds that the package does not have yet fit in as strategies alone: no loop and no descent is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.editors import CONTEXTS, EXACT, FACTS, LAYERS, make
from tests.models import tiny
from torch import Tensor

from factpatch import METHODS, Editor, HiddenState, Method, Patch, Session
from factpatch.journal import SessionError
from factpatch.patch.shift import Dense, Shift
from factpatch.strategies.memory import Memory, Traces
from factpatch.strategies.solver import Solver
from factpatch.strategies.target import Found, Problem


@dataclass(frozen=True)
class Anchored(HiddenState):
    """Rescale a value whose norm is far from an anchor to the anchor."""

    anchor: float = 1.0
    """The norm that values are rescaled to, in units of the activation."""
    tolerance: float = 0.0
    """How far from the anchor a norm may be, as a share of the anchor."""

    def settle(self, present: Tensor, delta: Tensor) -> Tensor:
        value = (present + delta)[:, -1]
        norm = value.norm(dim=-1, keepdim=True)
        far = (norm - self.anchor).abs() > self.tolerance * self.anchor
        return torch.where(far, value * self.anchor / norm, value) - present[:, -1]


@dataclass(frozen=True)
class OneGradient(HiddenState):
    """One step against the gradient of the loss at δ = 0, without a descent."""

    rate: float = 1.0
    """Length of the step, in units of the activation squared per nat."""

    def search(self, problem: Problem, descend: Callable[[], Found]) -> Found:
        found = problem.evaluate(torch.zeros_like(problem.present), self.begin(problem.present))
        return Found(-self.rate * found.gradient, torch.ones_like(found.loss, dtype=torch.long), found.loss)


class Running(Memory):
    """Mean and spread of the keys of all batches so far, and how many residuals came with them."""

    rereads: ClassVar[bool] = False

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.forget()

    def forget(self) -> None:
        self.count, self.sums, self.squares = 0, 0.0, 0.0

    def trace(self, keys: Tensor, residual: Tensor | None) -> Traces:
        assert residual is not None
        return {"keys": keys, "length": residual.norm(dim=1)}

    def remember(self, traces: Traces) -> None:
        weighted = traces["keys"].double() * traces["length"].double()[:, None]
        self.count += len(weighted)
        self.sums = self.sums + weighted.sum(dim=0)
        self.squares = self.squares + weighted.square().sum(dim=0)

    def fresh(self) -> Running:
        return Running(self.weight)

    def solve(self, keys: Tensor, residual: Tensor) -> Shift:
        keys = keys.double()
        if self.count:
            mean = self.sums / self.count
            keys = (keys - mean) / (self.squares / self.count - mean**2).clamp_min(1e-6).sqrt()
        system = keys.T @ keys + self.weight * torch.eye(keys.shape[1], dtype=torch.float64)
        return Dense(torch.linalg.solve(system, keys.T @ residual.double()).T)


@dataclass(frozen=True)
class Whitened(Solver):
    """Ridge regression on keys whitened by what earlier batches had; it needs no ordinary text."""

    reads_corpus: ClassVar[bool] = False

    weight: float = 1.0
    """Weight of the penalty, in squared key units."""

    def memory(self, second_moment: Tensor | None) -> Running:
        assert second_moment is None
        return Running(self.weight)


def edited(target: HiddenState, **options: Any) -> Editor:
    editor = make(replace(METHODS["memit-blue"], name="new", target=target), **options)
    editor.edit(FACTS)
    return editor


def test_a_target_can_rescale_its_result_against_an_anchor() -> None:
    far, free = edited(Anchored(anchor=2.5)), edited(Anchored(anchor=2.5, tolerance=1e9))
    values = far.edits[0].targets[LAYERS[0]]
    torch.testing.assert_close(values.values.norm(dim=1), torch.full((len(FACTS),), 2.5, dtype=EXACT))
    plain = edited(HiddenState()).edits[0].targets[LAYERS[0]].values
    torch.testing.assert_close(free.edits[0].targets[LAYERS[0]].values, plain)
    # The direction is what the descent found, and δ is what leads there.
    torch.testing.assert_close(values.values / 2.5, plain / plain.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_target_can_do_with_one_gradient(family: str) -> None:
    found = edited(OneGradient(rate=0.1), family=family).edits[0].targets
    (first, _) = found.values()
    assert first.evaluations.tolist() == [1] * len(FACTS)
    assert first.updates.tolist() == [0] * len(FACTS)
    # Adam's first step goes along the signs of the same gradient.
    step = edited(HiddenState(), family=family, settings={"target.steps": 2, "target.clamp": 1e6})
    descended = step.edits[0].targets[LAYERS[0]].delta
    assert torch.equal(first.delta.sign(), descended.sign())


WHITENED = Method("whitened", HiddenState(), METHODS["memit-blue"].spread, Whitened())


def whitened() -> Editor:
    return make(WHITENED, second_moments=None, dtype=torch.float32)


def weights(editor: Editor) -> list[Tensor]:
    return [editor.lm.weight(layer).clone() for layer in LAYERS]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def test_running_statistics_see_every_earlier_batch_and_undo_restores_them() -> None:
    editor, fresh = whitened(), whitened()
    editor.edit(FACTS[:2])
    second = editor.edit(FACTS[2:])
    alone = fresh.edit(FACTS[2:])
    assert not torch.equal(*(patch.batches[0].shifts[LAYERS[0]].matrix() for patch in (second, alone)))
    kept = weights(editor)
    editor.undo()
    again = editor.edit(FACTS[2:])
    assert equal(weights(editor), kept)
    assert again.batches[0].after == second.batches[0].after
    editor.reset()
    assert editor.edit(FACTS[2:]).batches[0].after == alone.batches[0].after


def test_running_statistics_are_replayed_with_their_traces_and_not_without() -> None:
    editor, other = whitened(), whitened()
    patches = [editor.edit(FACTS[:1]), editor.edit(FACTS[1:2])]
    with pytest.raises(ValueError, match="Whitened remembers more of a batch than its patch holds"):
        other.replay(Patch.join(patches))
    other.replay(Patch.join(patches), [edit.traces for edit in editor.edits])
    assert editor.edit(FACTS[2:]).batches[0].after == other.edit(FACTS[2:]).batches[0].after


def test_a_memory_is_told_what_is_left_of_a_batch_of_which_a_fact_was_replaced() -> None:
    editor = whitened()
    other = replace(FACTS[0], target_new="Finnish")
    for batch in (FACTS[:2], [other], FACTS[2:3]):
        editor.edit(batch)
    assert all(editor.prepared.memory(layer).count == 2 for layer in (LAYERS[0], LAYERS[-1]))  # type: ignore[attr-defined]
    memory, keys = Running(1.0), torch.arange(6.0).view(3, 2)
    assert memory.without({"keys": keys}, [0, 2])["keys"].tolist() == [[0.0, 1.0], [4.0, 5.0]]
    sums = {"keys": keys, "sum": keys.sum(dim=0)}
    assert memory.without(sums, [0, 2]) is sums  # who keeps sums has to say how a fact leaves them


def test_facts_of_a_method_with_running_statistics_are_taken_back(tmp_path: Path) -> None:
    whole, session = whitened(), Session.create(tmp_path / "session", whitened(), [[fact] for fact in FACTS])
    for fact in FACTS:
        whole.edit([fact])
    editor = whitened()
    with session.locked():
        session.attach(editor)
        while session.waiting:
            session.edit(editor, ask=False)
        session.undo_fact(editor, FACTS[1], ask=False)
    whole.undo_fact(FACTS[1])
    resumed = whitened()
    Session(tmp_path / "session").attach(resumed)
    assert equal(weights(resumed), weights(whole))
    last = [replace(FACTS[1], target_new="football")]
    assert whole.edit(last).batches[0].after == resumed.edit(last).batches[0].after


def test_a_session_saves_running_statistics_and_resumes_with_the_same_bits(tmp_path: Path) -> None:
    whole = whitened()
    expected = [whole.edit([fact]).batches[0].after for fact in FACTS]
    session = Session.create(tmp_path / "session", whitened(), [[fact] for fact in FACTS])
    for _ in FACTS:  # a new process for every batch
        session, editor = Session(tmp_path / "session"), whitened()
        with session.locked():
            session.attach(editor)
            session.edit(editor, ask=False)
    assert [patch.batches[0].after for patch in session.patches()] == expected
    with session.locked():
        session.undo(to=1)
        session.plan([[FACTS[1]]])
    session, editor = Session(tmp_path / "session"), whitened()
    with session.locked():
        session.attach(editor)
        assert session.edit(editor, ask=False).batches[0].after == expected[1]


def test_a_solver_without_a_second_moment_needs_no_corpus_on_a_model_without_a_preset() -> None:
    editor = Editor(tiny("llama"), method=WHITENED, contexts=CONTEXTS, settings={"target.steps": 2})
    assert editor.preset.assumed
    editor.edit(FACTS[:1])


@pytest.mark.parametrize("change", ["cut short", "swapped", "missing"])
def test_traces_that_were_altered_are_refused_with_the_way_back(change: str, tmp_path: Path) -> None:
    session, editor = Session.create(tmp_path / "session", whitened(), [[fact] for fact in FACTS[:2]]), whitened()
    with session.locked():
        session.attach(editor)
        while session.waiting:
            session.edit(editor, ask=False)
    first, second = sorted((tmp_path / "session" / "traces").iterdir())
    if change == "missing":
        second.unlink()
    else:
        second.write_bytes(second.read_bytes()[:50] if change == "cut short" else first.read_bytes())
    fresh = whitened()
    with pytest.raises(SessionError, match=r"traces of batch 2 are missing or were altered.*--to 1"):
        Session(tmp_path / "session").attach(fresh)
    assert not fresh.edits


@dataclass(frozen=True)
class Checked(HiddenState):
    """Descend, halve δ, and look at the loss of the whole batch again."""

    def search(self, problem: Problem, descend: Callable[[], Found]) -> Found:
        found = descend()
        halved = replace(found, delta=found.delta / 2)
        again = problem.evaluate(halved.delta, self.begin(problem.present), gradient=False)
        return replace(halved, loss=again.loss)


def test_a_target_may_evaluate_the_batch_after_the_descent() -> None:
    settings = {"target.stop_loss": 5.0}  # some facts leave before others
    found, plain = (edited(target, settings=settings).edits[0].targets for target in (Checked(), HiddenState()))
    torch.testing.assert_close(found[LAYERS[0]].delta, plain[LAYERS[0]].delta / 2)
    assert not torch.equal(found[LAYERS[0]].loss, plain[LAYERS[0]].loss)
