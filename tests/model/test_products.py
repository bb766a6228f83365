"""Asking multiplies by another library: as usual up to rounding, and only while it lasts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models import tiny
from torch import nn

from factpatch.evaluation.generation import generate_texts, greedy_answers
from factpatch.evaluation.perplexity import perplexity
from factpatch.evaluation.probabilities import Request, score
from factpatch.model import products
from factpatch.model.language_model import LanguageModel
from factpatch.model.products import asking

onednn = pytest.mark.skipif(not products._can_multiply(), reason="this PyTorch has no linear map of oneDNN")


@pytest.fixture(autouse=True)
def _on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_pays", lambda: True)


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shape of every product that oneDNN computes."""
    shapes: list[torch.Size] = []
    multiply = products._multiplied
    monkeypatch.setattr(
        products, "_multiplied", lambda hidden, *more: shapes.append(hidden.shape) or multiply(hidden, *more)
    )
    return shapes


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


@onednn
def test_gradients_are_those_of_the_usual_library(multiplied: list[torch.Size]) -> None:
    lm = tiny("llama")
    hidden = torch.randn(1, 3, lm.d_value, requires_grad=True)
    with asking(lm):
        lm.logits(hidden).sum().backward()
    assert hidden.grad is not None
    assert not multiplied


def test_two_threads_that_ask_one_model_leave_it_as_it_was() -> None:
    lm = tiny("llama")
    first, second = asking(lm), asking(lm)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert not any("forward" in module.__dict__ for module in lm.model.modules())


def test_what_somebody_else_has_replaced_is_left_alone() -> None:
    lm = tiny("llama")
    own = lm.down_projection(0)
    forward = own.forward
    own.forward = lambda hidden: 2 * forward(hidden)
    with asking(lm):
        assert torch.equal(own(torch.ones(1, lm.d_key)), 2 * forward(torch.ones(1, lm.d_key)))


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


def test_other_processors_and_those_who_switch_it_off_keep_the_usual_library(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    with torch.backends.mkldnn.flags(enabled=False), asking(lm):
        assert not any("forward" in module.__dict__ for module in lm.model.modules())
    monkeypatch.setattr(products, "_pays", lambda: False)
    with asking(lm):
        assert not any("forward" in module.__dict__ for module in lm.model.modules())


@pytest.mark.parametrize(
    ("described", "instructions", "pays"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("vendor_id : AuthenticAMD", "AVX2", False),
        ("vendor_id : GenuineIntel", "AVX512", False),
    ],
)
def test_the_processor_decides(described: str, instructions: str, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fixture's
    monkeypatch.setattr(products.torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(products.platform, "processor", lambda: "x86_64")
    monkeypatch.setattr(products.Path, "read_text", lambda *_: described)
    assert products._pays.__wrapped__() is pays


@onednn
@pytest.mark.parametrize(
    "ask",
    [
        lambda lm: greedy_answers(lm, ["The capital of France is"], 3),
        lambda lm: generate_texts(lm, [("The capital of France is",)], max_new_tokens=3),
        lambda lm: score(lm, [Request("The capital of France is", "Paris")]),
        lambda lm: perplexity(lm, "Some words and others.\n\nMore of them."),
    ],
)
def test_what_is_asked_is_multiplied_by_it(ask: Callable[[LanguageModel], Any], multiplied: list[torch.Size]) -> None:
    lm = tiny("llama")
    ask(lm)
    assert len(multiplied) > lm.num_layers
