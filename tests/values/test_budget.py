"""Micro-batches that follow the free memory, and that are divided where it does not suffice after all."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from tests.models import FAMILIES, tiny
from tests.values.test_optimize import CONTEXTS, FACTS, TARGET, TWO_SITES
from torch import Tensor

from factpatch import Fact
from factpatch.evaluation.generation import greedy_answers
from factpatch.evaluation.probabilities import score
from factpatch.model import decoding, packed, tree
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import packed_attention
from factpatch.model.precision import PRECISIONS, computing
from factpatch.strategies import HiddenState, Target
from factpatch.values import budget, frozen, micro_batch, optimize
from factpatch.values.frozen import Frozen, freeze
from factpatch.values.micro_batch import FrozenRows
from factpatch.values.optimize import TargetValues, optimize_values
from factpatch.values.reading import SubjectRows, read_keys
from factpatch.values.rows import optimization_rows

# Three facts of these five are finished at different evaluations.
EAGER = HiddenState(steps=8, learning_rate=0.5, clamp=8, stop_loss=6.0)


def frozen_rows(lm: LanguageModel, facts: tuple[Fact, ...] = FACTS) -> Frozen:
    return freeze(lm, optimization_rows(lm, facts, CONTEXTS), 1, 100)


def delta_of(lm: LanguageModel, facts: tuple[Fact, ...] = FACTS) -> Tensor:
    return torch.zeros(len(facts), 1, lm.d_value, dtype=lm.work_dtype)


def test_a_machine_with_memory_takes_the_most_that_pay() -> None:
    lm = tiny("llama")
    with lm.quiet(), packed_attention(lm):
        tokens = budget.tokens_that_fit(lm, frozen_rows(lm), [lm.block(1)], delta_of(lm))
    assert tokens == budget.MOST_TOKENS["cpu"]
    assert budget.tokens_to_freeze(lm, optimization_rows(lm, FACTS, CONTEXTS)) == budget.MOST_TOKENS_TO_FREEZE


def test_what_surely_fits_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, measured = tiny("llama"), list[int]()
    measure = budget._kept_per_token

    def counted(*about: Any) -> Any:
        measured.append(1)
        return measure(*about)

    monkeypatch.setattr(budget, "_kept_per_token", counted)
    with lm.quiet(), packed_attention(lm):
        rows = frozen_rows(lm)
        per_token = budget._kept_per_token(lm, rows, [lm.block(1)], delta_of(lm))[0]
        assert sum(per_token.values()) < budget.GENEROUS * lm.num_layers * (lm.d_key + lm.d_value) * 4
        measured.clear()
        for free, times in ((10**10, 0), (10**6, 1)):
            monkeypatch.setattr(budget, "free_memory", lambda device, free=free: free)
            budget.tokens_that_fit(lm, rows, [lm.block(1)], delta_of(lm))
            assert len(measured) == times


def test_what_is_measured_leaves_no_graph_that_holds_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_surely_fits", lambda *about: False)
    lm = tiny("llama")
    with lm.quiet(), packed_attention(lm), computing(lm, PRECISIONS["fast"]) as seen:
        rows = frozen_rows(seen)
        budget.tokens_that_fit(seen, rows, [lm.block(1)], delta_of(lm))
        casts = {id(one): weakref.ref(one) for one in _in_closures(lm.down_projection(2).forward)}
    gc.collect()
    assert casts
    assert not [cast for cast in casts.values() if cast() is not None]


def _in_closures(function: Any) -> list[Tensor]:
    """The tensors that a function holds, such as the copies of weights that `computing` makes."""
    held = (cell.cell_contents for cell in function.__closure__ or ())
    return [one for found in held if isinstance(found, tuple) for one in found if isinstance(one, Tensor)]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_token_keeps_is_known_from_one_row(family: str) -> None:
    """Lengths of prefixes differ, and with them what attention keeps; the estimate must be right within a third."""
    lm = tiny(family)
    delta = delta_of(lm)
    with lm.quiet(), packed_attention(lm):
        rows = frozen_rows(lm)
        ((device, per_token),) = budget._kept_per_token(lm, rows, [lm.block(1)], delta)[0].items()
        few, many = (rows.micro_batch([row for row in rows.rows if row.fact in facts]) for facts in ((0,), range(5)))
        kept = [budget._kept(lm, group, [lm.block(1)], delta)[0][device] for group in (few, many)]
    expected = (kept[1] - kept[0]) / (many.packing.tokens - few.packing.tokens)
    assert 0.66 < per_token / expected < 1.5


def test_less_free_memory_makes_smaller_micro_batches_and_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("gpt2", dtype=torch.float64)
    expected = optimize_values(lm, FACTS, 1, TARGET, CONTEXTS)
    sizes = []
    for free in (10**8, 2 * 10**6, 1):
        monkeypatch.setattr(budget, "free_memory", lambda device, free=free: free)
        with lm.quiet(), packed_attention(lm):
            rows = frozen_rows(lm)
            tokens = budget.tokens_that_fit(lm, rows, [lm.block(1)], delta_of(lm))
        sizes.append(max(group.packing.tokens for group in rows.micro_batches(tokens)))
        found = optimize_values(lm, FACTS, 1, TARGET, CONTEXTS)
        torch.testing.assert_close(found.values, expected.values, rtol=1e-10, atol=1e-12)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 2
    assert tokens == budget.LEAST_TOKENS


class Scarce:
    """Memory that suffices for passes of so many tokens only. An attempt fails when it has done its work.

    What it has allocated must be free when the next one begins.
    """

    def __init__(self, tokens: int, monkeypatch: pytest.MonkeyPatch, backward: bool = False) -> None:
        self.tokens, self.failures, self.last = tokens, 0, 0
        self.held: list[weakref.ref[Tensor]] = []
        run, grad = packed.run_packed, torch.autograd.grad

        def run_packed(lm: LanguageModel, packing: Any, *args: Any, **options: Any) -> Any:
            assert not any(reference() is not None for reference in self.held)
            self.last = packing.tokens
            try:
                result = run(lm, packing, *args, **options)
                if packing.tokens > self.tokens:
                    self.held.append(weakref.ref(result[0]))
                return result
            finally:  # also where a hook ends the pass, having what it wants
                if not backward:
                    self.check()

        def gradients(*args: Any, **options: Any) -> Any:
            result = grad(*args, **options)
            self.check()
            return result

        for module in (packed, tree, frozen, micro_batch, decoding):
            monkeypatch.setattr(module, "run_packed", run_packed)
        if backward:
            monkeypatch.setattr(torch.autograd, "grad", gradients)

    def check(self) -> None:
        if self.last > self.tokens:
            self.failures += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def same(found: TargetValues, expected: TargetValues) -> None:
    assert torch.equal(found.evaluations, expected.evaluations)
    for name in ("values", "delta", "loss"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("target", [EAGER, TWO_SITES], ids=lambda target: type(target).__name__)
def test_too_little_memory_changes_nothing_beyond_rounding(
    target: Target, backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("llama", dtype=torch.float64)
    expected = optimize_values(lm, FACTS, 1, target, CONTEXTS)
    memory = Scarce(40, monkeypatch, backward)
    same(optimize_values(lm, FACTS, 1, target, CONTEXTS), expected)
    # What had to be divided stays so: no failure at every evaluation.
    assert 0 < memory.failures < 2 * len(FACTS) * len(CONTEXTS)


def test_memory_that_runs_short_in_the_middle_changes_nothing_beyond_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """By then the micro-batches have their reference for the KL, and some facts have left."""
    lm = tiny("llama", dtype=torch.float64)
    expected = optimize_values(lm, FACTS, 1, EAGER, CONTEXTS)
    memory = Scarce(10**6, monkeypatch)

    def progress(finished: int) -> None:
        memory.tokens = max(memory.tokens // 40, 25)

    same(optimize_values(lm, FACTS, 1, EAGER, CONTEXTS, progress), expected)
    assert memory.failures > 0


def test_keys_scores_and_answers_come_through_with_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("gpt2", dtype=torch.float64)
    subjects = SubjectRows.of(lm, FACTS, CONTEXTS)
    requests = [(fact.text, fact.target_new) for fact in FACTS]
    keys, scores = read_keys(lm, subjects, 1), score(lm, requests)
    prompts = [prompt for prompt, _ in requests]
    answers = greedy_answers(lm, prompts, 4)
    memory = Scarce(30, monkeypatch)
    torch.testing.assert_close(read_keys(lm, subjects, 1), keys, rtol=1e-10, atol=1e-12)
    failures = memory.failures
    assert failures > 0
    finished: list[int] = []
    assert [one.nll for one in score(lm, requests, finished.append)] == pytest.approx([one.nll for one in scores])
    assert sum(finished) == len(requests)
    assert memory.failures > failures
    failures = memory.failures
    assert greedy_answers(lm, prompts, 4) == answers
    assert memory.failures > failures


def test_a_row_that_does_not_fit_says_what_to_do_and_leaves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    monkeypatch.setattr(optimize, "read_last", lambda lm, rows, *where: torch.ones(len(rows), lm.d_value))
    Scarce(0, monkeypatch)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"single text.*bfloat16"):
        optimize_values(lm, FACTS, 1, TARGET, CONTEXTS)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert not any("forward" in block.__dict__ for block in lm.blocks)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_halves_are_the_whole(family: str) -> None:
    torch.manual_seed(0)
    lm = tiny(family, dtype=torch.float64)
    delta = delta_of(lm)
    with torch.no_grad(), lm.quiet(), packed_attention(lm):
        whole = frozen_rows(lm).micro_batches(1000)[0]
        whole.losses(lm, [lm.block(1)], delta, TARGET)
        delta = torch.randn_like(delta)
        expected = whole.losses(lm, [lm.block(1)], delta, TARGET)
        pieces: list[FrozenRows] = [quarter for half in whole.halves() for quarter in half.halves()]
        found = [piece.losses(lm, [lm.block(1)], delta, TARGET) for piece in pieces]
    for name in ("nll", "kl", "missed"):
        total = sum(getattr(part, name) for part in found)
        torch.testing.assert_close(total, getattr(expected, name), rtol=1e-10, atol=1e-12)
    assert bool((expected.kl > 0).all())
