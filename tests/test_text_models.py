"""Text models inside models of images and text: loaded, edited, saved and restored with the rest as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.models import save_tiny, tiny_model, tiny_tokenizer
from tests.test_more_families import FACTS, LAYERS, logits, nll

from factpatch import Editor, Patch
from factpatch.model.loading import load_language_model

SETTINGS = {"target.steps": 8, "target.learning_rate": 0.5, "target.clamp": 4, "solver.weight": 0.01}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_a_saved_model_of_images_is_edited_and_saved_whole(family: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_tiny(base, family)
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 8}
    (base / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    moments = {layer: torch.eye(64, dtype=torch.float64) for layer in LAYERS}
    editor = Editor(
        str(base), method="memit-blue", critical_layers=LAYERS, contexts=("{}",), second_moments=moments,
        settings=SETTINGS,
    )  # fmt: skip
    original = {name: value.clone() for name, value in editor.model.state_dict().items()}
    before = [nll(editor.model, fact) for fact in FACTS]
    patch = editor.edit(FACTS)
    editor.save_pretrained(tmp_path / "edited")
    again = load_language_model(str(tmp_path / "edited"))
    assert type(again.model) is type(tiny_model(family))
    torch.testing.assert_close(logits(again.model), logits(editor.model))
    assert all(nll(again.model, fact) < then - 0.5 for fact, then in zip(FACTS, before, strict=True))
    written = {f"model.language_model.layers.{layer}.mlp.down_proj.weight" for layer in LAYERS}
    kept = again.model.state_dict()
    assert {name for name, value in original.items() if not torch.equal(value, kept[name])} == written
    assert any("vision" in name or "visual" in name for name in original)
    assert json.loads((tmp_path / "edited" / "preprocessor_config.json").read_text("utf-8")) == processor

    patch.save(tmp_path / "p.safetensors")
    Patch.load(tmp_path / "p.safetensors").remove(again.model, base=base)
    assert all(torch.equal(value, original[name]) for name, value in again.model.state_dict().items())


def test_a_patch_of_the_text_model_fits_it_on_its_own(tmp_path: Path) -> None:
    """Both have the same weights, in other places; the patch names where it was made."""
    whole = tiny_model("llava")
    moments = {layer: torch.eye(64, dtype=torch.float64) for layer in LAYERS}
    editor = Editor(
        whole, tiny_tokenizer(), method="memit-blue", critical_layers=LAYERS, contexts=("{}",), second_moments=moments,
        settings=SETTINGS,
    )  # fmt: skip
    alone = tiny_model("llama")
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.lm_head.load_state_dict(whole.lm_head.state_dict())
    patch = editor.edit(FACTS)
    assert patch.config["text_model_at"] == "model.language_model"
    patch.apply(alone)
    torch.testing.assert_close(logits(alone), logits(whole))
