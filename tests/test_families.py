"""The purpose of an edit, in every family and dtype: new objects become more probable, and undo restores everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.editors import CONTEXTS, STATISTICS, second_moments
from tests.models import FAMILIES, NUM_LAYERS, SENTENCES, tiny_model, tiny_tokenizer

from factpatch import METHODS, Editor, Fact, Patch, verify

LAYERS = (1, 2)
# The subject ends the prompt: attention of random weights carries nothing from one token to another.
FACTS = (
    Fact("In the large city called {}", "Tokyo", "city"),
    Fact("The mother tongue of {}", "Danielle Darrieux", "Rome"),
    Fact("People speak of {}", "Messi", "capital"),
)


def editor_of(family: str, method: str, dtype: torch.dtype) -> Editor:
    row = METHODS[method]
    statistics = STATISTICS.get(type(row.solver))
    optimized = {"target.steps": 8, "target.learning_rate": 0.5, "target.clamp": 4, "solver.weight": 0.1}
    return Editor(
        tiny_model(family, dtype=dtype),
        tiny_tokenizer(),
        method=row,
        critical_layers=LAYERS,
        contexts=CONTEXTS,
        second_moments=second_moments(),
        settings={**statistics, "solver.rate": 0.02} if statistics else optimized,
        corpus=list(SENTENCES) if row.solver.ordinary_tokens else None,
    )


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# Every pair of a family, a method and a dtype occurs.
@pytest.mark.parametrize(
    ("family", "method", "dtype"),
    [
        (family, method, DTYPES[(number + place) % 3])
        for number, family in enumerate(FAMILIES)
        for place, method in enumerate(("memit-blue", "pmet", "rect", "ultraedit", "stableedit"))
    ],
    ids=str,
)
def test_the_new_objects_become_more_probable_and_everything_is_restored(
    family: str, method: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    editor = editor_of(family, method, dtype)
    original = {name: value.clone() for name, value in editor.model.state_dict().items()}
    before = verify(editor.lm, None, FACTS, answers=False)
    patch = editor.edit(FACTS)
    after = verify(editor.lm, None, FACTS, answers=False)
    for now, then in zip(after.after, before.after, strict=True):
        assert now.nll_new < then.nll_new - 0.5
    assert patch.batches[0].shifts[1].tensors()["up"].dtype == torch.float32

    patch.save(tmp_path / "p.safetensors")
    fresh = tiny_model(family, dtype=dtype)
    Patch.load(tmp_path / "p.safetensors").apply(fresh)
    edited = editor.model.state_dict()
    assert all(torch.equal(value, edited[name]) for name, value in fresh.state_dict().items())
    patch.remove(fresh, base=tiny_model(family, dtype=dtype))
    editor.undo()
    for model in (editor.model, fresh):
        assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    assert len(editor.lm.blocks) == NUM_LAYERS
