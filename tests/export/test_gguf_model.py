"""A patch merged into a GGUF model: the edited tensors alone change, and only in the model that was edited."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tests.export.test_lora import logits, low_rank_patch
from tests.ggufs import write_gguf
from tests.models import NUM_LAYERS, tiny_model
from tests.patch.test_patch import edit

from factpatch import Patch
from factpatch.model.gguf import open_gguf
from factpatch.model.language_model import editable_weights
from factpatch.model.loading import load_language_model
from factpatch.patch.compatibility import PatchMismatchError
from factpatch.patch.merge import MergedTensor, merge_gguf
from factpatch.patch.shift import Dense

LAYERS = (1, 3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def loaded(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a GGUF file, dequantized."""
    return load_language_model(path, dtype=dtype).model


def edited(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Patch]:
    """The model of a GGUF file with two batches of random shifts in it, and their patch."""
    model = loaded(path, dtype)
    return model, edit(model, [LAYERS, (1,)])


def name_of(layer: int) -> str:
    return f"blk.{layer}.ffn_down.weight"


def matrix(path: Path, layer: int) -> torch.Tensor:
    return torch.from_numpy(open_gguf(path).dequantized(name_of(layer)).copy())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "base.gguf", kind="Q8_0")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "F32"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_written_in_float32_the_merged_model_is_the_edited_one(family: str, kind: str, tmp_path: Path) -> None:
    base = write_gguf(tmp_path / "base.gguf", tiny_model(family), kind)
    model, patch = edited(base)
    merge_gguf(patch, open_gguf(base), tmp_path / "merged.gguf", "f32")
    for layer in LAYERS:
        assert torch.equal(matrix(tmp_path / "merged.gguf", layer), editable_weights(model, [layer])[layer])
    assert torch.equal(logits(loaded(tmp_path / "merged.gguf")), logits(model))


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("alignment", [None, 64])
def test_edited_tensors_are_rounded_once_and_all_else_is_copied(
    kind: str, alignment: int | None, tmp_path: Path
) -> None:
    base = write_gguf(tmp_path / "base.gguf", kind="Q4_0", alignment=alignment)
    model, patch = edited(base)
    out = tmp_path / "merged.gguf"
    done = merge_gguf(patch, open_gguf(base), out, kind)
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[kind]
    before, after = GGUFReader(base), GGUFReader(out)
    # Metadata: the very bytes, in their order; so types and nested arrays are the same.
    assert after.data_offset == before.data_offset
    start = before.tensors[0].field.offset
    assert after.data[:start].tobytes() == before.data[:start].tobytes()
    assert after.alignment == before.alignment == (alignment or 32)
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
    errors = {tensor.name: tensor.error for tensor in done}
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert other.data_offset % int(after.alignment) == 0
        assert list(other.shape) == list(one.shape)
        if one.name not in errors:
            assert other.tensor_type == one.tensor_type
            assert other.data.tobytes() == one.data.tobytes()
    for layer in LAYERS:
        exact = editable_weights(model, [layer])[layer]
        assert torch.equal(matrix(out, layer), exact.to(dtype).float())
        shift = exact - matrix(base, layer)
        assert errors[name_of(layer)] == pytest.approx(
            float((exact.to(dtype).float() - exact).norm() / shift.norm()), rel=1e-6
        )


def test_the_type_is_f16_or_the_tensors_own_if_that_is_a_float(tmp_path: Path) -> None:
    for kind, expected in (("Q4_0", "f16"), ("Q8_0", "f16"), ("F16", "f16"), ("BF16", "bf16"), ("F32", "f32")):
        base = write_gguf(tmp_path / f"{kind}.gguf", kind=kind)
        _, patch = edited(base)
        done = merge_gguf(patch, open_gguf(base), tmp_path / "merged.gguf")
        assert [(tensor.name, tensor.was, tensor.kind) for tensor in done] == [
            (name_of(layer), kind.lower(), expected) for layer in LAYERS
        ]
        assert all(isinstance(tensor, MergedTensor) and 0 <= tensor.error < 0.05 for tensor in done)
    with pytest.raises(ValueError, match="tensor_type='q8_0': must be one of f16, bf16, f32"):
        merge_gguf(patch, open_gguf(base), tmp_path / "other.gguf", "q8_0")
    assert not (tmp_path / "other.gguf").exists()


def test_the_same_patch_gives_the_same_bytes_and_the_base_is_left_alone(base: Path, tmp_path: Path) -> None:
    whole = base.read_bytes()
    _, patch = edited(base)
    for name in ("one", "other"):
        merge_gguf(patch, open_gguf(base), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert base.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf", "one", "other"]


def test_gpt2_is_merged_although_its_checkpoint_is_transposed(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    base = write_gguf(tmp_path / "base.gguf", model, "F32")
    patch = edit(model, [LAYERS])
    merge_gguf(patch, open_gguf(base), tmp_path / "merged.gguf")
    for layer in LAYERS:
        assert torch.equal(matrix(tmp_path / "merged.gguf", layer), editable_weights(model, [layer])[layer])


def test_metadata_keeps_its_types(base: Path, tmp_path: Path) -> None:
    """Written again from their values, unsigned numbers would become signed ones."""
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_key_value("odd.counts", [1, 2], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT16)
    writer.add_key_value("odd.text", "é\n", gguf.GGUFValueType.STRING)
    for tensor in GGUFReader(base).tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, patch = edited(base)
    merge_gguf(patch, open_gguf(tmp_path / "odd.gguf"), tmp_path / "merged.gguf")
    field = GGUFReader(tmp_path / "merged.gguf").fields["odd.counts"]
    assert (field.types[-1], field.contents()) == (gguf.GGUFValueType.UINT16, [1, 2])


# --- whether they belong together


def test_a_patch_of_the_file_is_recognized_in_any_dtype(base: Path, tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        _, patch = edited(base, dtype)
        assert patch.weight_dtype == dtype
        merge_gguf(patch, open_gguf(base), tmp_path / f"{dtype}.gguf")


def test_another_quantization_is_refused_unless_it_is_asked_for(base: Path, tmp_path: Path) -> None:
    other = write_gguf(tmp_path / "other.gguf", kind="Q4_0")
    _, patch = edited(base)
    out = tmp_path / "merged.gguf"
    with pytest.raises(PatchMismatchError, match=r"layers 1, 3 are not those that the patch was made for.*--rebase"):
        merge_gguf(patch, open_gguf(other), out)
    assert not out.exists()
    merge_gguf(patch, open_gguf(other), out, "f32", rebase=True)
    for layer in LAYERS:
        shift = sum(batch.shifts[layer].matrix() for batch in patch.batches if layer in batch.shifts)
        torch.testing.assert_close(matrix(out, layer).double(), matrix(other, layer).double() + shift)
    with pytest.raises(PatchMismatchError, match="holds this patch already"):
        merge_gguf(patch, open_gguf(_merged(patch, base, tmp_path)), out, rebase=True)


def _merged(patch: Patch, base: Path, folder: Path) -> Path:
    merge_gguf(patch, open_gguf(base), folder / "f32.gguf", "f32")
    return folder / "f32.gguf"


def test_another_architecture_other_shapes_and_fewer_layers_are_refused(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged.gguf"
    _, patch = edited(base)
    qwen = write_gguf(tmp_path / "qwen.gguf", tiny_model("qwen2"))
    with pytest.raises(PatchMismatchError, match="its architecture is 'qwen2', and the patch was made for 'llama'"):
        merge_gguf(patch, open_gguf(qwen), out, rebase=True)
    shift = Dense(torch.zeros(16, 64))
    batch = replace(patch.batches[0], shifts={**patch.batches[0].shifts, 1: shift}, after={})
    with pytest.raises(PatchMismatchError, match=r"layer 1 has a weight of shape \(32, 64\), and the patch shifts one"):
        merge_gguf(replace(patch, batches=(batch,)), open_gguf(base), out, rebase=True)
    layer = NUM_LAYERS + 3
    batch = replace(patch.batches[0], shifts={layer: patch.batches[0].shifts[3]}, before={layer: "0" * 64}, after={})
    with pytest.raises(PatchMismatchError, match=r"has no blk\.7\.ffn_down\.weight, and the patch edits layer 7"):
        merge_gguf(replace(patch, batches=(batch,)), open_gguf(base), out, rebase=True)
    with pytest.raises(ValueError, match="model_type='gptj': llama"):
        merge_gguf(low_rank_patch({1: 1}, "gptj"), open_gguf(base), out)
    assert not out.exists()


def test_a_weight_that_the_type_cannot_hold_is_refused(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged.gguf"
    _, patch = edited(base)
    batch = replace(patch.batches[0], shifts={1: Dense(torch.full((32, 64), 1e5))}, before={
        1: patch.batches[0].before[1]}, after={})  # fmt: skip
    large = replace(patch, batches=(batch,))
    with pytest.raises(FloatingPointError, match=r"blk\.1\.ffn_down\.weight: .* 1e\+05, which f16 cannot.*bf16"):
        merge_gguf(large, open_gguf(base), out)
    assert not out.exists()
    merge_gguf(large, open_gguf(base), out, "bf16")
    assert float(matrix(out, 1).min()) > 9e4


def test_a_full_disk_leaves_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, patch = edited(base)
    file = open_gguf(base)

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk is full"):
        merge_gguf(patch, file, tmp_path / "merged.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]


def test_a_gguf_file_is_a_base_from_which_a_patch_is_removed(base: Path, tmp_path: Path) -> None:
    model, patch = edited(base)
    patch.remove(model, base)
    for layer in LAYERS:
        assert torch.equal(editable_weights(model, [layer])[layer], matrix(base, layer))
    patch.apply(model)
    other = write_gguf(tmp_path / "other.gguf", kind="Q4_0")
    with pytest.raises(PatchMismatchError, match=r"base=.*other\.gguf: the weights of layers 1, 3 are not those"):
        patch.remove(model, other)
