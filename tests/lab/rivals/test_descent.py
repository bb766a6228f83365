"""The loop of fine-tuning, against what transformers and autograd give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.editors import FACTS
from tests.models import tiny
from torch import nn

from factpatch.evaluation.generation import greedy_answers
from factpatch.evaluation.probabilities import Request, score
from factpatch.lab.rivals import descent
from factpatch.lab.rivals.descent import descend, lessons
from factpatch.lab.rivals.rival import FineTuning
from factpatch.model.language_model import LanguageModel
from factpatch.model.weights import model_hash

EXACT = torch.float64


def weight_of(lm: LanguageModel, layer: int = 2) -> nn.Parameter:
    weight = lm.down_projection(layer).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def trained(lm: LanguageModel, **settings: Any) -> float:
    rival = FineTuning(**settings)
    return descend(lm, [weight_of(lm)], lessons(lm, FACTS, rival.end_token), rival, seed=0)


def test_the_loss_is_the_mean_nll_of_all_target_tokens() -> None:
    lm = tiny("llama", dtype=EXACT)
    scores = score(lm, [Request(fact.text, fact.target_new) for fact in FACTS])
    total = sum(one.nll * len(one.matched) for one in scores)
    loss = trained(lm, epochs=1, end_token=False)
    assert loss == pytest.approx(total / sum(len(one.matched) for one in scores), rel=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_first_step_is_adams_on_the_gradient_of_the_cross_entropy(family: str) -> None:
    lm = tiny(family, dtype=EXACT)
    before = weight_of(lm).detach().clone()
    taught = lessons(lm, FACTS[:1], end_token=True)
    ids = torch.tensor([taught[0].ids])
    logits = lm.model(input_ids=ids).logits[0, taught[0].start - 1 : -1]
    loss = nn.functional.cross_entropy(logits, ids[0, taught[0].start :])
    (gradient,) = torch.autograd.grad(loss, weight_of(lm))
    assert ids[0, -1] == lm.tokenizer.eos_token_id

    descend(lm, [weight_of(lm)], taught, FineTuning(epochs=1, learning_rate=0.01), seed=0)
    # Adam's first step, its moments corrected for their beginning at zero: g / (|g| + ε).
    torch.testing.assert_close(
        weight_of(lm).detach(), before - 0.01 * gradient / (gradient.abs() + 1e-8), rtol=1e-8, atol=1e-10
    )


def test_every_epoch_visits_every_fact_once_in_mini_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, seen = tiny("llama"), []
    gradients = descent._gradients

    def watched(lm: Any, parameters: Any, some: Any) -> Any:
        seen.append([tuple(lesson.ids) for lesson in some])
        return gradients(lm, parameters, some)

    monkeypatch.setattr(descent, "_gradients", watched)
    trained(lm, epochs=2, batch_size=3)
    assert [len(some) for some in seen] == [3, 1, 3, 1]
    every = {tuple(lesson.ids) for lesson in lessons(lm, FACTS, True)}
    assert set(seen[0] + seen[1]) == set(seen[2] + seen[3]) == every
    assert seen[0] != seen[2]  # drawn anew


def test_pieces_that_fit_into_memory_give_the_gradient_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tiny("llama", dtype=EXACT), tiny("llama", dtype=EXACT)
    trained(one, epochs=3)
    monkeypatch.setattr(descent, "batches", lambda lengths: [[row] for row in range(len(lengths))])
    trained(other, epochs=3)
    torch.testing.assert_close(weight_of(one).detach(), weight_of(other).detach(), rtol=1e-9, atol=1e-11)


def test_the_model_learns_to_stop_after_the_target() -> None:
    lm = tiny("llama")
    trained(lm, epochs=60, learning_rate=0.02)
    assert greedy_answers(lm, [FACTS[0].text]) == [FACTS[0].target_new]


def test_a_16_bit_weight_has_a_copy_in_float32_that_steps_add_up_in() -> None:
    """Steps far below what bfloat16 resolves move the weight together, though one alone would be lost."""
    lm = tiny("llama", dtype=torch.bfloat16)
    before = weight_of(lm).detach().clone()
    trained(lm, epochs=1, learning_rate=1e-5)
    large = before.abs() > 0.01  # where a step of 1e-5 is below half a unit in the last place
    assert torch.equal(weight_of(lm).detach()[large], before[large])
    trained(lm, epochs=12, learning_rate=1e-5)
    assert not torch.equal(weight_of(lm).detach()[large], before[large])


def test_nothing_but_the_parameters_changes_and_none_needs_a_gradient_that_needed_none() -> None:
    lm = tiny("llama")
    lm.model.requires_grad_(False)
    held = weight_of(lm).detach().clone()
    untouched = model_hash(lm.model)
    trained(lm, epochs=2)
    assert model_hash(lm.model) != untouched
    weight_of(lm).data.copy_(held)
    assert model_hash(lm.model) == untouched
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
