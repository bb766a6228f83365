"""Simulated editing against a plain forward pass with one hook."""

from __future__ import annotations

import pytest
import torch
from tests.lab.analysis.tiny import FACTS
from tests.models import FAMILIES, WIDTH, tiny
from torch import Tensor

from factpatch import Fact
from factpatch.evaluation.probabilities import score
from factpatch.lab.analysis.simulated import simulated_probabilities
from factpatch.model.hooks import adding
from factpatch.model.language_model import LanguageModel
from factpatch.strategies import AttentionAndMlp, HiddenState, Target
from factpatch.values.rows import optimization_rows

EXACT = torch.float64


def plainly(lm: LanguageModel, fact: Fact, layer: int, site: str, shift: Tensor) -> float:
    row = next(row for row in optimization_rows(lm, [fact], ("{}",)) if row.targets)
    with torch.inference_mode(), adding([getattr(lm, site)(layer)], torch.tensor([row.subject]), shift[None, None]):
        logits = lm.model(input_ids=torch.tensor([row.ids])).logits[0, -len(row.targets) :]
    chosen = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(row.targets)[:, None])
    return float(chosen.sum().exp())


@pytest.mark.parametrize("target", [HiddenState(), AttentionAndMlp()], ids=["block", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_shifted_value_gives_what_a_plain_pass_with_a_hook_gives(family: str, target: Target) -> None:
    lm = tiny(family, dtype=EXACT)
    shift = torch.randn(len(FACTS), WIDTH, generator=torch.Generator().manual_seed(0), dtype=EXACT)
    for layer in (0, 2):
        _, found = simulated_probabilities(lm, FACTS, layer, target, [torch.zeros_like(shift), shift])
        expected = [plainly(lm, fact, layer, target.site, one) for fact, one in zip(FACTS, shift, strict=True)]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=EXACT), rtol=1e-8, atol=1e-14)


def test_without_a_shift_it_is_the_probability_of_the_evaluation() -> None:
    lm = tiny("llama", dtype=EXACT)
    (found,) = simulated_probabilities(lm, FACTS, 1, HiddenState(), [torch.zeros(len(FACTS), WIDTH)])
    expected = [one.probability for one in score(lm, [(fact.text, fact.target_new) for fact in FACTS])]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=EXACT), rtol=1e-9, atol=1e-15)


def test_facts_of_one_subject_do_not_see_each_others_shift() -> None:
    lm = tiny("gpt2", dtype=EXACT)
    pair = FACTS[3:]
    assert pair[0].subject == pair[1].subject
    shift = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1), dtype=EXACT)
    (both,) = simulated_probabilities(lm, pair, 1, HiddenState(), [shift])
    for index, fact in enumerate(pair):
        (alone,) = simulated_probabilities(lm, [fact], 1, HiddenState(), [shift[index : index + 1]])
        torch.testing.assert_close(both[index : index + 1], alone, rtol=1e-9, atol=1e-15)
