"""A patch as a LoRA adapter: peft loads it on the unedited model, which then is the edited one."""

from __future__ import annotations

import builtins
import json
import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.editors import FACTS, LAYERS, make
from tests.models import FAMILIES, SENTENCES, tiny_model, tiny_tokenizer
from tests.patch.test_patch import edit
from torch import Tensor

from factpatch import Editor, Fact, Patch
from factpatch.model.language_model import editable_names
from factpatch.patch.shift import Dense, LowRank, Masked

peft = pytest.importorskip("peft")
TINY: dict[str, float] = {"rtol": 0, "atol": 1e-5}
"""Float32 on logits up to 5, which come out within 2e-6; the edits below move them by about 2.5."""


def logits(model: Any) -> Tensor:
    """What a model says after every token of a few sentences."""
    tokenizer = tiny_tokenizer()
    with torch.inference_mode():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits[0] for text in SENTENCES])


def edited_patch(family: str, batches: Sequence[Sequence[Fact]], method: str = "memit-blue") -> tuple[Editor, Patch]:
    """An edit of a tiny model in float32, and its patch."""
    editor = make(method, family, torch.float32)
    for facts in batches:
        editor.edit(facts)
    return editor, editor.patch


def adapted(family: str, directory: Path, **options: Any) -> Any:
    """An unedited tiny model with an adapter."""
    return peft.PeftModel.from_pretrained(tiny_model(family, **options), str(directory)).eval()


def low_rank_patch(ranks: dict[int, int], family: str = "llama", dtype: torch.dtype = torch.float32) -> Patch:
    """A patch of one batch with a random shift of a given rank in each layer."""
    generator = torch.Generator().manual_seed(0)
    stored = torch.float64 if dtype == torch.float64 else torch.float32
    patch = edit(tiny_model(family, dtype=dtype), [tuple(ranks)])
    shifts = {
        layer: LowRank(
            0.1 * torch.randn(32, rank, generator=generator, dtype=torch.float64),
            torch.randn(rank, 64, generator=generator, dtype=torch.float64),
        ).to(stored)
        for layer, rank in ranks.items()
    }
    batch = replace(patch.batches[0], shifts=shifts, after={})
    return replace(patch, batches=(batch,))


# --- what peft makes of it


@pytest.mark.parametrize("batches", [(FACTS,), (FACTS[:2], FACTS[2:])], ids=["one-batch", "two-batches"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_on_the_unedited_model_says_what_the_edited_model_says(
    family: str, batches: Sequence[Sequence[Fact]], tmp_path: Path
) -> None:
    editor, patch = edited_patch(family, batches)
    expected, unedited = logits(editor.model), logits(tiny_model(family))
    patch.to_lora(tmp_path / "lora")
    torch.testing.assert_close(logits(adapted(family, tmp_path / "lora")), expected, **TINY)
    assert float((expected - unedited).abs().max()) > 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_merged_into_the_model_the_adapter_gives_the_edited_weights(family: str, tmp_path: Path) -> None:
    editor, patch = edited_patch(family, [FACTS])
    patch.to_lora(tmp_path / "lora")
    merged = adapted(family, tmp_path / "lora").merge_and_unload().state_dict()
    for name, expected in editor.model.state_dict().items():
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_layers_of_different_ranks_are_all_exact(family: str, tmp_path: Path) -> None:
    patch = low_rank_patch({0: 1, 2: 5, 3: 2}, family)
    model = tiny_model(family)
    patch.apply(model)
    assert patch.to_lora(tmp_path / "lora") == {0: 1, 2: 5, 3: 2}
    torch.testing.assert_close(logits(adapted(family, tmp_path / "lora")), logits(model), **TINY)


def test_an_exact_patch_has_an_adapter_in_float64(tmp_path: Path) -> None:
    patch = low_rank_patch({1: 3}, dtype=torch.float64)
    model = tiny_model("llama", dtype=torch.float64)
    patch.apply(model)
    patch.to_lora(tmp_path / "lora")
    found = logits(adapted("llama", tmp_path / "lora", dtype=torch.float64))
    torch.testing.assert_close(found, logits(model), rtol=1e-10, atol=1e-10)


def test_in_bfloat16_the_adapter_is_the_edited_model_to_the_rounding_of_its_weights(tmp_path: Path) -> None:
    patch = low_rank_patch({1: 3}, dtype=torch.bfloat16)
    model = tiny_model("llama", dtype=torch.bfloat16)
    unedited = logits(model)
    patch.apply(model)
    patch.to_lora(tmp_path / "lora")
    found = logits(adapted("llama", tmp_path / "lora", dtype=torch.bfloat16))
    assert float((found - logits(model)).norm()) < 0.05 * float((unedited - logits(model)).norm())


def test_peft_finds_every_weight_of_the_adapter(tmp_path: Path) -> None:
    """A name that is off by a letter would only be warned about, and the edit would be lost."""
    patch = low_rank_patch({0: 1, 2: 5, 3: 2}, "gpt2")
    patch.to_lora(tmp_path / "lora")
    model = tiny_model("gpt2")
    expected = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    found = peft.get_peft_model_state_dict(peft.PeftModel.from_pretrained(model, str(tmp_path / "lora")))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- what is written


def test_the_config_says_what_servers_need(tmp_path: Path) -> None:
    for family in ("gpt2", "opt"):
        patch = low_rank_patch({0: 1, 2: 5}, family)
        patch = replace(patch, config={**patch.config, "_name_or_path": "someone/base"})
        patch.to_lora(tmp_path / family)
        config = json.loads((tmp_path / family / "adapter_config.json").read_text())
        assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
        assert config["base_model_name_or_path"] == "someone/base"
        assert config["inference_mode"] is True
        assert config["bias"] == "none"
        assert config["fan_in_fan_out"] is (family == "gpt2")
        # One rank for all, and a scaling of 1 for whoever computes it from the config or from a tensor.
        assert config["r"] == config["lora_alpha"] == 5
        assert config["rank_pattern"] == config["alpha_pattern"] == {}
        assert config["use_rslora"] is config["use_dora"] is False
        names = editable_names(tiny_model(family))
        assert config["target_modules"] == [names[layer].removesuffix(".weight") for layer in (0, 2)]


def test_the_factors_share_one_rank_and_are_balanced(tmp_path: Path) -> None:
    patch = low_rank_patch({0: 1, 2: 5})
    patch.to_lora(tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert len(tensors) == 4
    for layer, rank in {0: 1, 2: 5}.items():
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        assert (down.shape, up.shape) == ((5, 64), (32, 5))
        assert down.dtype == up.dtype == torch.float32
        assert int(torch.count_nonzero(down.norm(dim=1))) == rank
        torch.testing.assert_close(down.norm(dim=1), up.norm(dim=0))
        expected = patch.batches[0].shifts[layer].matrix().float()
        torch.testing.assert_close(up @ down, expected, rtol=1e-5, atol=1e-6)


def test_the_same_patch_gives_the_same_adapter(tmp_path: Path) -> None:
    patch = low_rank_patch({0: 1, 2: 5, 3: 3})
    for name in ("one", "other"):
        patch.to_lora(tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    assert len(list((tmp_path / "one").iterdir())) == 2


def test_singular_values_that_are_rounding_are_left_out(tmp_path: Path) -> None:
    patch = low_rank_patch({1: 2})
    batch = patch.batches[0]
    dense = replace(batch, shifts={1: Dense(batch.shifts[1].matrix().float())})
    assert replace(patch, batches=(dense,)).to_lora(tmp_path / "dense") == {1: 2}
    up, down = (tensor.double() for tensor in batch.shifts[1].tensors().values())
    tiny = LowRank(torch.cat([up, 1e-9 * up[:, :1]], dim=1), torch.cat([down, torch.ones(1, 64).double()])).to(
        torch.float32
    )
    assert replace(patch, batches=(replace(batch, shifts={1: tiny}),)).to_lora(tmp_path / "tiny") == {1: 2}


def test_a_shift_of_zeros_is_an_adapter_that_does_nothing(tmp_path: Path) -> None:
    patch = low_rank_patch({1: 1})
    zeros = replace(patch.batches[0], shifts={1: LowRank(torch.zeros(32, 1), torch.zeros(1, 64))})
    assert replace(patch, batches=(zeros,)).to_lora(tmp_path / "lora") == {1: 1}
    assert torch.equal(logits(adapted("llama", tmp_path / "lora")), logits(tiny_model("llama")))


# --- patches without a low rank


def rect_patch() -> tuple[Editor, Patch]:
    editor, patch = edited_patch("llama", [FACTS], "rect")
    assert any(not isinstance(shift, LowRank) for shift in patch.batches[0].shifts.values())
    return editor, patch


def test_a_patch_without_a_low_rank_is_refused_with_its_ranks_and_errors(tmp_path: Path) -> None:
    _, patch = rect_patch()
    with pytest.raises(ValueError, match=r"rank=None: the patch is not of low rank") as raised:
        patch.to_lora(tmp_path / "lora")
    message = str(raised.value)
    # 64 would be no less than the whole weight of these models: 21 is where factors cease to be smaller.
    for layer in LAYERS:
        singular = torch.linalg.svdvals(patch.batches[0].shifts[layer].matrix())
        error = 100 * float(singular[21:].norm() / singular.norm())
        assert f"layer {layer} needs rank 32 (at rank 21 the relative error is {error:.2g} %)" in message
    assert "such as rank=21" in message
    assert not any(tmp_path.iterdir())


def test_larger_weights_are_offered_rank_64(tmp_path: Path) -> None:
    patch = low_rank_patch({1: 1})
    generator = torch.Generator().manual_seed(0)
    batch = replace(patch.batches[0], shifts={1: Dense(torch.randn(200, 300, generator=generator))})
    with pytest.raises(ValueError, match=r"layer 1 needs rank 200 \(at rank 64 .* such as rank=64"):
        replace(patch, batches=(batch,)).to_lora(tmp_path / "lora")


def test_with_a_rank_the_nearest_adapter_is_written_and_its_error_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    editor, patch = rect_patch()
    distances = []
    for rank in (4, 16, 32):
        caplog.clear()
        with caplog.at_level(logging.INFO, "factpatch.export.factors"):
            assert patch.to_lora(tmp_path / str(rank), rank) == dict.fromkeys(LAYERS, rank)
        tensors = load_file(tmp_path / str(rank) / "adapter_model.safetensors")
        for layer in LAYERS:
            name = f"base_model.model.model.layers.{layer}.mlp.down_proj"
            shift = patch.batches[0].shifts[layer].matrix()
            product = tensors[f"{name}.lora_B.weight"].double() @ tensors[f"{name}.lora_A.weight"].double()
            error = float((product - shift).norm() / shift.norm())
            singular = torch.linalg.svdvals(shift)
            assert error == pytest.approx(float(singular[rank:].norm() / singular.norm()), rel=1e-4, abs=1e-6)
            if rank < 32:
                assert f"layer {layer}: rank {rank} of 32, relative error {100 * error:.2g} %" in caplog.messages
        distances.append(float((logits(adapted("llama", tmp_path / str(rank))) - logits(editor.model)).abs().max()))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < TINY["atol"]


def test_a_rank_beyond_what_is_needed_changes_nothing(tmp_path: Path) -> None:
    patch = low_rank_patch({1: 2, 2: 3})
    assert patch.to_lora(tmp_path / "lora", rank=100) == {1: 2, 2: 3}
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 3


def test_successive_batches_of_another_form_are_summed_first(tmp_path: Path) -> None:
    model = tiny_model("llama")
    patch = edit(model, [(1,), (1,)])
    mask = torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    masked = Masked.of(low_rank_patch({1: 3}).batches[0].shifts[1], mask)
    assert isinstance(masked, Masked)
    first = replace(patch.batches[0], shifts={1: masked})
    both = replace(patch, batches=(first, patch.batches[1]))
    both.to_lora(tmp_path / "lora", rank=32)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj"
    product = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    expected = sum(batch.shifts[1].matrix() for batch in both.batches)
    torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-5)


# --- refusals


def test_a_rank_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank=0: must be at least 1"):
        low_rank_patch({1: 2}).to_lora(tmp_path / "lora", rank=0)


def test_a_full_directory_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        low_rank_patch({1: 2}).to_lora(tmp_path / "lora")
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]
    assert [path.read_text() for path in (tmp_path / "lora").iterdir()] == ["mine"]


def test_a_family_that_is_not_in_the_table_is_refused(tmp_path: Path) -> None:
    patch = low_rank_patch({1: 2})
    with pytest.raises(ValueError, match="model_type='unheard-of' is not in the table"):
        replace(patch, config={**patch.config, "model_type": "unheard-of"}).to_lora(tmp_path / "lora")


def test_without_peft_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = low_rank_patch({1: 2})
    whole = builtins.__import__

    def without_peft(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "peft":
            raise ModuleNotFoundError("No module named 'peft'", name="peft")
        return whole(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ImportError, match=r"pip install 'factpatch\[lora\]'"):
        patch.to_lora(tmp_path / "lora")
    assert not any(tmp_path.iterdir())


def test_a_patch_is_not_changed_by_being_written(tmp_path: Path) -> None:
    _, patch = edited_patch("llama", [FACTS])
    before = deepcopy(patch.batches[0].shifts)
    patch.to_lora(tmp_path / "lora")
    for layer, shift in patch.batches[0].shifts.items():
        assert torch.equal(shift.matrix(), before[layer].matrix())
