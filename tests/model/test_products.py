"""Asking multiplies by another library: as usual up to rounding, and only while it lasts."""

from __future__ import annotations

import pytest
import torch
from tests.models import tiny
from torch import nn

from factpatch.evaluation.generation import greedy_answers
from factpatch.evaluation.perplexity import perplexity
from factpatch.model import products
from factpatch.model.products import asking

onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="this PyTorch has no linear map of oneDNN",
)


@pytest.fixture(autouse=True)
def _on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_by_onednn", lambda: True)


@onednn
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "opt"])
def test_hidden_states_and_logits_are_the_same_up_to_rounding(family: str) -> None:
    lm = tiny(family)
    ids = torch.arange(3, 15).view(2, 6)
    with torch.inference_mode(), lm.quiet():
        hidden = lm.body(input_ids=ids)
        expected = lm.logits(hidden)
        with asking(lm):
            assert sum("forward" in module.__dict__ for module in lm.model.modules()) > lm.num_layers
            torch.testing.assert_close(lm.body(input_ids=ids), hidden, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(lm.logits(hidden), expected, rtol=1e-4, atol=1e-5)
            assert lm.logits(hidden[:0]).shape == (0, *expected.shape[1:])
    assert not any("forward" in module.__dict__ for module in lm.model.modules())


@onednn
def test_hooks_see_what_they_see_without_it() -> None:
    lm, seen = tiny("llama"), []
    handle = lm.down_projection(1).register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with torch.inference_mode(), lm.quiet(), asking(lm):
        lm.body(input_ids=torch.tensor([[5, 6, 7]]))
    handle.remove()
    assert seen == [(1, 3, lm.d_value)]


def test_other_dtypes_and_other_classes_are_left_alone() -> None:
    class Scaled(nn.Linear):
        pass

    exact, scaled = tiny("llama", dtype=torch.float64), tiny("llama")
    block = scaled.block(0).mlp
    block.up_proj.__class__ = Scaled
    with asking(exact), asking(scaled):
        assert not any("forward" in module.__dict__ for module in exact.model.modules())
        assert "forward" not in block.up_proj.__dict__
        assert "forward" in block.gate_proj.__dict__


def test_a_processor_that_is_not_amds_keeps_the_usual_library(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    monkeypatch.setattr(products, "_by_onednn", lambda: False)
    with asking(lm):
        assert not any("forward" in module.__dict__ for module in lm.model.modules())


@onednn
def test_what_is_said_and_the_perplexity_come_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, calls = tiny("llama"), []
    product = products._product
    monkeypatch.setattr(products, "_product", lambda module: calls.append(module) or product(module))
    greedy_answers(lm, ["The capital of France is"], 3)
    answered = len(calls)
    assert answered > lm.num_layers
    perplexity(lm, "Some words and others.\n\nMore of them.")
    assert len(calls) == 2 * answered
