"""Rows of a fact that begin alike run their common tokens once, and give what they give one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models import FAMILIES, tiny
from torch import Tensor

from factpatch import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import packed_attention
from factpatch.strategies import HiddenState
from factpatch.values.descent import Loss
from factpatch.values.frozen import Frozen, freeze
from factpatch.values.optimize import optimize_values
from factpatch.values.rows import micro_batches, optimization_rows

FACTS = (
    Fact("The mother tongue of {} is", "Danielle Darrieux", "English"),
    Fact("The {} in the city is in", "Eiffel Tower", "Rome, Italy"),
)
# The second and the third agree until the answer begins, for a while the fourth does, and the last one does not at all.
CONTEXTS = (
    "{}",
    "He said: {}? The answer",
    "He said: {}? The answer is",
    "He said: {}? No.",
    "It was. {}? The answer is",
)
LAYER = 1


def frozen_and_delta(lm: LanguageModel) -> tuple[Frozen, Tensor]:
    rows = optimization_rows(lm, FACTS, CONTEXTS)
    delta = torch.randn(len(FACTS), 1, lm.d_value, generator=torch.Generator().manual_seed(1)).to(lm.work_dtype)
    return freeze(lm, rows, LAYER, 1000), delta


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_tokens_change_neither_losses_nor_gradients(family: str) -> None:
    lm = tiny(family, dtype=torch.float64)
    target = HiddenState()
    with lm.quiet(), packed_attention(lm):
        frozen, delta = frozen_and_delta(lm)
        present = torch.zeros_like(delta)
        together = Loss(lm, frozen, LAYER, target, present, torch.ones(len(FACTS), 1), tokens=1000)
        (group,) = together.parts[0].groups
        assert group.packing.tokens < sum(row.suffix for row in frozen.rows)
        alone = Loss(lm, frozen, LAYER, target, present, torch.ones(len(FACTS), 1), tokens=1000)
        alone.parts[0].groups = [frozen.micro_batch([row]) for row in frozen.rows]
        assert sum(group.packing.tokens for group in alone.parts[0].groups) == sum(row.suffix for row in frozen.rows)
        found, expected = together.evaluate(delta, {}), alone.evaluate(delta, {})
    # Normalization is computed in float32 whatever the model's dtype.
    for name in ("loss", "nll", "kl", "margin", "gradient"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6)
    assert torch.equal(found.predicted, expected.predicted)


def test_a_fact_that_leaves_takes_its_shared_tokens_with_it() -> None:
    lm = tiny("llama")
    with lm.quiet(), packed_attention(lm):
        frozen, delta = frozen_and_delta(lm)
        whole = frozen.micro_batch(sorted(frozen.rows, key=lambda row: row.suffix))
        left = whole.keep([-1, 0])
        only = frozen.micro_batch(sorted((row for row in frozen.rows if row.fact == 1), key=lambda row: row.suffix))
        assert left is not None
        assert left.packing.tokens == only.packing.tokens < whole.packing.tokens
        sites = [lm.block(LAYER)]
        nll = whole.losses(lm, sites, delta, HiddenState()).nll[1]
        assert float(left.losses(lm, sites, delta[1:], HiddenState()).nll[0]) == pytest.approx(float(nll), rel=1e-5)


def test_rows_that_share_tokens_stay_in_one_micro_batch() -> None:
    lm = tiny("llama")
    rows = optimization_rows(lm, FACTS, CONTEXTS)
    for batch in micro_batches(rows, 1):
        heads = {(row.fact, row.ids[: row.subject + 1]) for row in batch if row.targets}
        assert len(heads) <= 1
    one = next(batch for batch in micro_batches(rows, 1) if any(row.context == 1 and row.fact == 0 for row in batch))
    assert {row.context for row in one} == {1, 2, 3}


def test_the_margin_is_the_least_lead_of_a_target_token_over_any_other() -> None:
    lm = tiny("llama")
    rows = [row for row in optimization_rows(lm, FACTS, CONTEXTS) if row.fact == 1]
    leads = []
    for row in rows:
        with torch.inference_mode():
            scores = lm.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        for place, token in enumerate(row.targets, start=len(row.ids) - len(row.targets)):
            others = scores[place].clone()
            others[token] = -torch.inf
            leads.append(float(scores[place, token] - others.max()))
    with lm.quiet(), packed_attention(lm):
        frozen, delta = frozen_and_delta(lm)
        loss = Loss(lm, frozen, LAYER, HiddenState(), torch.zeros_like(delta), torch.ones(len(FACTS), 1))
        found = loss.evaluate(torch.zeros_like(delta), {})
    assert float(found.margin[1]) == pytest.approx(min(leads), abs=1e-4)


def test_contexts_take_turns_and_every_one_counts_as_in_the_mean_over_all() -> None:
    lm = tiny("llama", dtype=torch.float64)
    with lm.quiet(), packed_attention(lm):
        frozen, delta = frozen_and_delta(lm)
        present, norm = torch.zeros_like(delta), torch.ones(len(FACTS), 1)
        whole = Loss(lm, frozen, LAYER, HiddenState(), present, norm)
        turns = Loss(lm, frozen, LAYER, HiddenState(turns=2), present, norm)
        assert [round(part.share, 9) for part in turns.parts] == [0.6, 0.4]
        read = [{row.weight for group in part.groups for row in group.rows} for part in turns.parts]
        assert read[0] == read[1]
        found = [turns.evaluate(delta, {}, turn=turn) for turn in range(3)]
        whole.evaluate(torch.zeros_like(delta), {})  # what the KL refers to
        expected = whole.evaluate(delta, {})
        assert bool((expected.kl > 0).any())
    assert torch.equal(found[0].nll, found[2].nll)
    torch.testing.assert_close(0.6 * found[0].nll + 0.4 * found[1].nll, expected.nll, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1].kl, expected.kl, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[0].margin.minimum(found[1].margin), expected.margin, rtol=1e-4, atol=1e-6)


def test_a_fact_is_finished_when_the_mean_over_all_turns_is_low_and_not_before_all_were_read() -> None:
    lm = tiny("llama")
    at_once = HiddenState(turns=2, steps=12, learning_rate=0.5, clamp=8, stop_loss=100.0)
    assert optimize_values(lm, FACTS, LAYER, at_once, CONTEXTS).evaluations.tolist() == [2, 2]
    whole = optimize_values(lm, FACTS, LAYER, replace(at_once, stop_loss=0.0), CONTEXTS)
    eager = replace(at_once, stop_loss=float(whole.loss.max()) + 0.02)
    found = optimize_values(lm, FACTS, LAYER, eager, CONTEXTS)
    assert whole.evaluations.tolist() == [12, 12]
    assert bool((found.evaluations < 12).any())
    assert bool((found.loss < eager.stop_loss).all())
    assert bool(torch.isfinite(optimize_values(lm, FACTS, LAYER, replace(eager, steps=1), CONTEXTS).loss).all())
