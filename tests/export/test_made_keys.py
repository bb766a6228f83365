"""Patches that shift what makes keys, too: every form that they are exported in says what the edited model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.editors import FACTS, make
from tests.export.test_gguf_lora import added
from tests.export.test_lora import adapted, edited_patch, logits
from tests.ggufs import write_gguf
from tests.models import tiny_model

from factpatch import Editor, Patch
from factpatch.export.changed import write_changed
from factpatch.model.gguf import open_gguf
from factpatch.model.loading import load_language_model
from factpatch.model.places import DOWN, GATE, UP, layer_of, place_of
from factpatch.patch.file import FORMAT, describe
from factpatch.patch.history import total_shifts
from factpatch.patch.merge import merge_gguf

NEAR: dict[str, float] = {"rtol": 0, "atol": 1e-4}
"""Float32 on logits up to 5: gates are several times as long as other weights."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def edited(family: str) -> tuple[Editor, Patch]:
    return edited_patch(family, [FACTS[:2], FACTS[2:]], "neurons")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_on_the_unedited_model_says_what_the_edited_model_says(family: str, tmp_path: Path) -> None:
    editor, patch = edited(family)
    patch.to_lora(tmp_path / "lora")
    expected = logits(editor.model)
    assert float((expected - logits(tiny_model(family))).abs().max()) > 0.1
    torch.testing.assert_close(logits(adapted(family, tmp_path / "lora")), expected, **NEAR)


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_adds_the_shifts_as_its_weights_are_stored(family: str, tmp_path: Path) -> None:
    _, patch = edited(family)
    patch.to_gguf_lora(tmp_path / "lora.gguf")
    found = added(tmp_path / "lora.gguf")
    shifts = {place: shift.matrix() for place, shift in total_shifts(patch.batches).items()}
    assert len(found) == len(shifts) == 3 * len(patch.layers)
    for layer in patch.layers:
        for part, place in (("gate", place_of(layer, GATE)), ("up", place_of(layer, UP))):
            adds = found[f"blk.{layer}.ffn_{part}.weight"]
            torch.testing.assert_close(adds, shifts[place].T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[f"blk.{layer}.ffn_down.weight"], shifts[layer], rtol=1e-4, atol=1e-5)


def test_merged_into_a_gguf_file_it_is_the_edited_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path / "cache"))
    base = write_gguf(tmp_path / "base.gguf", tiny_model("llama"), "F32")
    editor, patch = edited("llama")
    merge_gguf(patch, open_gguf(base), tmp_path / "merged.gguf", rebase=True)
    merged = load_language_model(tmp_path / "merged.gguf", dtype=torch.float32)
    torch.testing.assert_close(logits(merged.model), logits(editor.model), **NEAR)


def test_the_changed_weights_alone_make_an_unedited_model_the_edited_one(tmp_path: Path) -> None:
    editor, patch = edited("llama")
    write_changed(editor.model, patch.places, tmp_path / "changed.safetensors")
    plain = tiny_model("llama")
    changed = load_file(tmp_path / "changed.safetensors")
    assert len(changed) == 3 * len(patch.layers)
    plain.load_state_dict(changed, strict=False)
    assert all(torch.equal(plain.state_dict()[name], weight) for name, weight in editor.model.state_dict().items())


def test_the_file_is_of_a_format_that_earlier_versions_refuse(tmp_path: Path) -> None:
    _, patch = edited("llama")
    patch.save(tmp_path / "p.safetensors")
    make("memit-blue").edit(FACTS).save(tmp_path / "plain.safetensors")
    assert describe(tmp_path / "p.safetensors").format == FORMAT == 5
    assert describe(tmp_path / "plain.safetensors").format < FORMAT
    assert describe(tmp_path / "p.safetensors").layers == patch.layers
    loaded = Patch.load(tmp_path / "p.safetensors")
    assert [batch.before for batch in loaded.batches] == [batch.before for batch in patch.batches]
    assert {layer_of(place) for place in loaded.places} == set(patch.layers)


def test_removed_with_its_base_it_leaves_the_unedited_bits() -> None:
    editor, patch = edited("llama")
    base: Any = tiny_model("llama")
    patch.remove(editor.model, base=base)
    assert all(torch.equal(base.state_dict()[name], weight) for name, weight in editor.model.state_dict().items())


def test_a_composed_and_a_shrunk_patch_keep_all_places(tmp_path: Path) -> None:
    editor, patch = edited("llama")
    one = Patch.compose([patch])
    assert one.places == patch.places
    model = tiny_model("llama")
    one.apply(model)
    torch.testing.assert_close(logits(model), logits(editor.model), **NEAR)


def test_patches_that_were_not_made_one_after_another_are_not_summed() -> None:
    """Each has replaced the neuron that mattered least, which is the same one."""
    parts = [make("neurons", dtype=torch.float32).edit([fact]) for fact in FACTS[:2]]
    with pytest.raises(ValueError, match="replace neurons of layers 1-gate, 1-up, 3-gate, 3-up, and"):
        Patch.compose(parts)


def test_of_every_layer_each_kind_of_projection_gets_zeros() -> None:
    _, patch = edited("llama")
    whole = patch.factors().with_every_layer(4)
    assert sorted(whole.ranks) == sorted(place_of(layer, part) for layer in range(4) for part in (DOWN, GATE, UP))
    assert float(whole.up(place_of(0, GATE)).norm() + whole.down(0).norm()) == 0.0
