"""A patch as an adapter for llama.cpp: its tensors, their names, and the sum that llama.cpp makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from tests.export.test_lora import low_rank_patch, rect_patch
from tests.models import FAMILIES, tiny_model

from factpatch import Patch
from factpatch.model.architectures import ARCHITECTURES, Architecture
from factpatch.model.gguf_names import gguf_names

GGUF = {
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
}
"""What llama.cpp calls the families that it runs."""
RANKS = {0: 1, 2: 5, 3: 2}


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def added(path: Path) -> dict[str, torch.Tensor]:
    """What llama.cpp adds to each weight, as its `get_scale` and its graph have it: α / rank(B) · B A."""
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    alpha = fields(path)["adapter.lora.alpha"]
    made = {}
    for name in sorted({name.rpartition(".")[0] for name in tensors}):
        down, up = (torch.from_numpy(np.array(tensors[f"{name}.lora_{part}"].data)).double() for part in "ab")
        rank = int(tensors[f"{name}.lora_b"].shape[0])  # ne[0]
        made[name] = alpha / rank * up @ down
    return made


@pytest.mark.parametrize("family", GGUF)
def test_the_adapter_adds_the_shift_of_every_family_that_llama_cpp_runs(family: str, tmp_path: Path) -> None:
    patch = low_rank_patch(RANKS, family)
    assert patch.to_gguf_lora(tmp_path / "lora.gguf") == RANKS
    shifts = patch.batches[0].shifts
    found = added(tmp_path / "lora.gguf")
    # (d_value, d_key) also for GPT-2, whose checkpoint is transposed and whose GGUF file is not.
    assert found.keys() == {f"blk.{layer}.ffn_down.weight" for layer in RANKS}
    for layer in RANKS:
        torch.testing.assert_close(
            found[f"blk.{layer}.ffn_down.weight"], shifts[layer].matrix().double(), rtol=1e-5, atol=1e-6
        )


def test_the_file_says_what_llama_cpp_asks_of_an_adapter(tmp_path: Path) -> None:
    for family, name in GGUF.items():
        low_rank_patch(RANKS, family).to_gguf_lora(tmp_path / "lora.gguf")
        said = fields(tmp_path / "lora.gguf")
        assert (said["general.type"], said["adapter.type"]) == ("adapter", "lora")
        assert said["general.architecture"] == name
        assert said["adapter.lora.alpha"] == 5.0
        tensors = GGUFReader(tmp_path / "lora.gguf").tensors
        assert [tensor.name for tensor in tensors] == [
            f"blk.{layer}.ffn_down.weight.lora_{part}" for layer in RANKS for part in "ab"
        ]
        # One rank for all layers, as NumPy sees the shapes: A is (rank, d_key), B is (d_value, rank).
        assert {tensor.data.shape for tensor in tensors} == {(5, 64), (32, 5)}
        assert {tensor.tensor_type for tensor in tensors} == {GGMLQuantizationType.F32}


def test_no_tensor_that_llama_cpp_permutes_is_written(tmp_path: Path) -> None:
    """The converter of llama.cpp reorders the rows of Llama's query and key projections, for its rotary embedding.

    A shift of one of these would have to be reordered with it. An edit writes the MLP's second projection alone, which
    keeps its order: so the factors are right as they are.
    """
    low_rank_patch(dict.fromkeys(range(4), 2)).to_gguf_lora(tmp_path / "lora.gguf")
    names = [tensor.name for tensor in GGUFReader(tmp_path / "lora.gguf").tensors]
    assert len(names) == 8
    assert not [name for name in names if "attn_q" in name or "attn_k" in name]
    assert all(".ffn_down." in name for name in names)


def test_the_same_patch_gives_the_same_bytes_and_no_path(tmp_path: Path) -> None:
    patch = low_rank_patch(RANKS)
    patch = replace(patch, config={**patch.config, "_name_or_path": "/home/me/models/base-7b"})
    for name in ("one", "other"):
        patch.to_gguf_lora(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
    assert b"/home/me" not in (tmp_path / "one").read_bytes()
    said = fields(tmp_path / "one")
    assert said["general.name"] == "base-7b, edited with factpatch"
    assert said["general.base_model.0.name"] == "base-7b"
    replace(patch, config={**patch.config, "_name_or_path": "someone/base"}).to_gguf_lora(tmp_path / "one")
    said = fields(tmp_path / "one")
    assert (said["general.base_model.0.name"], said["general.base_model.0.organization"]) == ("base", "someone")


@pytest.mark.parametrize("cut", [{"rank": 4}, {"energy": 0.9}])
def test_a_cut_adapter_is_the_nearest_one_and_knows_its_error(cut: dict[str, Any], tmp_path: Path) -> None:
    _, patch = rect_patch()
    with pytest.raises(ValueError, match=r"rank=None: the patch is not of low rank"):
        patch.to_gguf_lora(tmp_path / "lora.gguf")
    factors = patch.factors(**cut)
    assert patch.to_gguf_lora(tmp_path / "lora.gguf", **cut) == factors.ranks
    found = added(tmp_path / "lora.gguf")
    for layer, rank in factors.ranks.items():
        shift = patch.batches[0].shifts[layer].matrix()
        squares = torch.linalg.svdvals(shift).square()
        error = float((found[f"blk.{layer}.ffn_down.weight"] - shift).norm() / shift.norm())
        assert error == pytest.approx(float((squares[rank:].sum() / squares.sum()).sqrt()), rel=1e-4)
        assert factors.error(layer) == pytest.approx(error, rel=1e-4)
        if "energy" in cut:
            shares = squares.cumsum(0) / squares.sum()
            assert float(shares[rank - 1]) >= 0.9 > float(shares[rank - 2])
        else:
            assert rank == 4
    assert factors.largest_error() == pytest.approx(max(map(factors.error, factors.ranks)))


def test_an_exact_patch_is_written_in_float32(tmp_path: Path) -> None:
    patch = low_rank_patch({1: 3}, dtype=torch.float64)
    patch.to_gguf_lora(tmp_path / "lora.gguf")
    found = added(tmp_path / "lora.gguf")["blk.1.ffn_down.weight"]
    torch.testing.assert_close(found, patch.batches[0].shifts[1].matrix(), rtol=1e-5, atol=1e-6)


def test_what_llama_cpp_cannot_run_is_refused_with_the_way_that_works(tmp_path: Path) -> None:
    others = set(FAMILIES) - set(GGUF)
    assert others == {"gptj", "opt"}
    for family in others:
        with pytest.raises(ValueError, match=f"model_type='{family}': llama\\.cpp and Ollama cannot run.*--to peft"):
            low_rank_patch(RANKS, family).to_gguf_lora(tmp_path / "lora.gguf")
    assert not any(tmp_path.iterdir())


def test_a_registered_family_may_leave_the_name_out_or_give_a_wrong_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = low_rank_patch(RANKS)
    row = ARCHITECTURES["llama"]
    plain = Architecture("llama", row.blocks, row.down_projection, row.mlp, row.attention)
    monkeypatch.setitem(ARCHITECTURES, "llama", plain)
    with pytest.raises(ValueError, match=r"llama\.cpp and Ollama cannot run such models"):
        patch.to_gguf_lora(tmp_path / "lora.gguf")
    monkeypatch.setitem(ARCHITECTURES, "llama", replace(row, down_projection="mlp.third"))
    with pytest.raises(ValueError, match=r"layer 0: .* model\.layers\.0\.mlp\.third"):
        patch.to_gguf_lora(tmp_path / "lora.gguf")
    monkeypatch.setitem(ARCHITECTURES, "llama", replace(row, gguf="lama"))
    with pytest.raises(ValueError, match="gguf='lama': the installed gguf package knows no such family"):
        patch.to_gguf_lora(tmp_path / "lora.gguf")


def test_names_are_those_of_the_tables_for_any_number_of_layers() -> None:
    config = tiny_model("llama").config.to_dict()
    assert gguf_names(config, [79, 3]) == {79: "blk.79.ffn_down.weight", 3: "blk.3.ffn_down.weight"}


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gguf import GGUFWriter

    def fail(self: GGUFWriter, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GGUFWriter, "write_tensors_to_file", fail)
    with pytest.raises(OSError, match="disk is full"):
        low_rank_patch(RANKS).to_gguf_lora(tmp_path / "lora.gguf")
    assert not any(tmp_path.iterdir())


def test_factors_take_rank_or_energy() -> None:
    patch: Patch = low_rank_patch(RANKS)
    for options, said in (
        ({"rank": 2, "energy": 0.5}, "rank=2, energy=0.5: give one of them"),
        ({"rank": 0}, "rank=0: must be at least 1"),
        ({"energy": 1.5}, "energy=1.5: must be a share above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            patch.factors(**options)  # type: ignore[arg-type]
