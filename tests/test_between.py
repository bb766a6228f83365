"""Models that put a norm between the MLP and the residual stream: edited at the MLP's output, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import CONFIGS, MORE_CONFIGS, NUM_LAYERS, save_corpus, tiny_model, tiny_tokenizer
from tests.test_more_families import FACTS, editor_of, nll

from factpatch import Editor, Fact
from factpatch.recipe import RecipeError
from factpatch.strategies import AnchoredMlp, AnchoredNorm, Boundary, Even, HiddenState, MlpOutput
from factpatch.values.reading import SubjectRows, read_values


@pytest.mark.parametrize("method", ["memit-blue", "alphaedit-blue"])
def test_the_default_methods_work_without_any_setting(method: str, tmp_path: Path) -> None:
    editor = Editor(
        tiny_model("gemma2"),
        tiny_tokenizer(),
        method=method,
        corpus=str(save_corpus(tmp_path / "corpus.txt")),
        corpus_tokens=1500,
    )
    before = [nll(editor.model, fact) for fact in FACTS]
    patch = editor.edit(FACTS)
    assert patch.settings["target"]["class"] == "MlpOutput"
    assert all(nll(editor.model, fact) < then for fact, then in zip(FACTS, before, strict=True))


def test_values_and_residuals_are_those_of_the_mlp() -> None:
    """With hardly any cost of the shift, the MLP puts out the target value, which the norm then changes."""
    editor = editor_of("gemma2")
    editor = Editor(
        editor.model,
        editor.tokenizer,
        method="memit-blue",
        critical_layers=[1],
        contexts=("{}",),
        second_moments={1: torch.eye(64, dtype=torch.float64)},
        settings={"target.steps": 3, "solver.weight": 1e-9},
    )
    editor.edit(FACTS)
    found = read_values(editor.lm, SubjectRows.of(editor.lm, FACTS, ("{}",)), 1, "mlp")
    torch.testing.assert_close(found, editor.edits[0].targets[1].values, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "settings"), [("memit", {}), ("pmet", {}), ("memit-blue", {"spread.together": 2}), ("alphaedit-nas", {})]
)
def test_a_spread_through_several_layers_is_refused_with_the_reason(method: str, settings: dict[str, Any]) -> None:
    given = {"method": method, "critical_layers": (1, 2, 3), "settings": settings}
    with pytest.raises(RecipeError, match=r"writes layer 1 toward a target at layer .* has a norm between") as caught:
        Editor(tiny_model("olmo2"), tiny_tokenizer(), **given)
    assert caught.value.field == "method"
    assert "such as memit-blue" in str(caught.value)
    editor = editor_of("olmo2")
    with pytest.raises(ValueError, match="has a norm between"):
        editor.with_spread(Even())
    assert isinstance(editor.with_spread(Boundary()).method.target, MlpOutput)


def test_one_layer_alone_may_have_any_spread() -> None:
    editor = Editor(
        tiny_model("olmo2"), tiny_tokenizer(), method="memit", critical_layers=[2], second_moments={2: torch.eye(64)}
    )
    assert editor.written_layers == [2]


def test_each_target_has_its_counterpart_at_the_mlp_and_keeps_its_settings() -> None:
    assert HiddenState(steps=7, shortest=True).inner == MlpOutput(steps=7, shortest=True)
    anchored = AnchoredNorm(anchor=((1, 2.0),), clamp=0.5).inner
    assert anchored == AnchoredMlp(anchor=((1, 2.0),), clamp=0.5)
    assert anchored.plain == MlpOutput(clamp=0.5)
    for target in (MlpOutput(), AnchoredMlp()):
        assert target.inner is target
        assert target.sites == ("mlp",)


def test_a_norm_after_the_residual_stream_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MORE_CONFIGS, "opt", {**CONFIGS["opt"], "do_layer_norm_before": False})
    editor = editor_of("opt")
    assert isinstance(editor.method.target, MlpOutput)
    before = [nll(editor.model, fact) for fact in FACTS]
    editor.edit(FACTS)
    assert all(nll(editor.model, fact) < then for fact, then in zip(FACTS, before, strict=True))


def test_a_first_token_edited_apart_is_edited_at_the_mlp() -> None:
    editor = editor_of("gemma3_text")
    given = {"target.apart": True, "target.steps": 3, "solver.weight": 0.01}
    moments = {layer: torch.eye(64, dtype=torch.float64) for layer in range(NUM_LAYERS)}
    editor = Editor(
        editor.model, editor.tokenizer, method="memit-blue", critical_layers=[1, 2], contexts=("{}", "The city. {}"),
        second_moments=moments, settings=given,
    )  # fmt: skip
    patch = editor.edit([Fact("{} is in the city of", "The", "Rome")])
    assert patch.layers == (0, 1, 2)
