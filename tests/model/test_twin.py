"""Twins share all weights but those that are their own."""

from __future__ import annotations

import pytest
import torch
from tests.editors import CONTEXTS, FACTS, QUICK, input_moments, second_moments
from tests.models import FAMILIES, tiny

from factpatch import Editor
from factpatch.evaluation.generation import greedy_answers
from factpatch.model.twin import own, twin
from factpatch.model.weights import model_hash

PROMPTS = ["The capital of Finland is", "Messi plays the sport of"]


@pytest.mark.parametrize(
    ("family", "method", "settings"),
    [*((family, "memit", {"solver.weight": 5.0}) for family in FAMILIES), ("llama", "neurons", {"solver.searched": 0})],
)
def test_a_twin_is_edited_and_the_other_model_is_not(family: str, method: str, settings: dict[str, float]) -> None:
    lm = tiny(family)
    before, said = model_hash(lm.model), greedy_answers(lm, PROMPTS)
    other = twin(lm)
    editor = Editor(
        other, method=method, critical_layers=(1, 2), settings={**QUICK, **settings, "target.apart": False},
        contexts=CONTEXTS, second_moments={**second_moments(layers=(1, 2)), **input_moments(layers=(1, 2))},
    )  # fmt: skip
    own(other, editor.edited_places)
    editor.edit(FACTS)
    assert model_hash(lm.model) == before != model_hash(other.model)
    assert greedy_answers(lm, PROMPTS) == said
    editor.undo()
    assert model_hash(other.model) == before


def test_a_twin_takes_the_memory_of_its_own_weights_alone() -> None:
    lm = tiny("llama")
    other = twin(lm)
    own(other, [2])
    pairs = zip(lm.model.named_parameters(), other.model.parameters(), strict=True)
    apart = [name for (name, one), its in pairs if one.data_ptr() != its.data_ptr()]
    assert apart == ["model.layers.2.mlp.down_proj.weight"]


def test_what_is_done_to_the_modules_of_a_twin_does_not_reach_the_other_model() -> None:
    lm = tiny("llama", chat=True)
    other = twin(lm, chat=True)
    assert other.frame.chat
    other.model.set_attn_implementation("eager")
    other.block(1).register_forward_hook(lambda *_: torch.zeros(1))
    assert lm.model.config._attn_implementation != "eager"
    assert not lm.block(1)._forward_hooks
