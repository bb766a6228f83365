"""Patch files that somebody made or altered, with a checksum that fits: refused where they are read, and quickly."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from tests.models import tiny_model
from tests.patch.test_patch import edit
from torch import Tensor

from factpatch.model.weights import content_hash
from factpatch.patch.algebra import shrunk
from factpatch.patch.batch import Batch
from factpatch.patch.compatibility import PatchMismatchError
from factpatch.patch.file import PatchFileError, describe, write_patch_file
from factpatch.patch.patch import Patch
from factpatch.patch.shift import LowRank, decomposed, distance, norm

Parts = tuple[dict[str, Any], dict[str, Tensor]]


def parts_of(path: Path) -> Parts:
    """The document and the tensors of a patch file, as they are."""
    with safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()["factpatch"])
    del document["sha256"], document["format"]
    return document, load_file(path)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """One batch: a low-rank shift of layer 1 and a dense one of layer 2."""
    edit(tiny_model("llama"), [(1, 2)]).save(tmp_path / "intact")
    return parts_of(tmp_path / "intact")


def refused(
    path: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor], *words: str, show: bool = True
) -> None:
    """Write a file with a checksum that fits: reading it must say that it was altered, and name file and field."""
    write_patch_file(path, document, tensors)
    for read in (Patch.load, describe) if show else (Patch.load,):
        with pytest.raises(PatchFileError) as raised:
            read(path)
        said = str(raised.value)
        assert said.startswith(f"{path}: was altered, or is not a factpatch patch: ")
        assert [word for word in words if word not in said] == []
        assert len(said) < 1000


def altered(document: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    """A copy with something else in a place, such as batches.0.facts; without it, if the value is `...`."""
    made: Any = deepcopy(document)
    holder, *rest = [made], *place.split(".")
    inner: Any = made
    for name in rest[:-1]:
        inner = inner[int(name)] if isinstance(inner, list) else inner[name]
    last: Any = int(rest[-1]) if isinstance(inner, list) else rest[-1]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return dict(holder[0])


WRONG: list[tuple[str, object, str]] = [
    ("config", ..., "config"),
    ("config", "", "config"),
    ("config._name_or_path", 5, "_name_or_path"),
    ("config.model_type", ["llama"], "model_type"),
    ("config.model_type", "x" * 1_000_000, "model_type"),
    ("settings", [], "settings"),
    ("settings", {str(number): number for number in range(20_000)}, "settings"),
    ("settings.composed", 5, "composed"),
    ("settings.composed", [5], "composed"),
    ("settings.composed", [], "composed"),
    ("settings.chat", "yes", "chat"),
    ("settings.precision", {}, "precision"),
    ("settings.shrunk", {"layers": {"1": 5}}, "shrunk"),
    ("settings.shrunk", {"layers": {"1": {"rank": 2, "error": "x"}}}, "error"),
    ("versions", ["torch"], "versions"),
    ("versions", {"torch": 2.4}, "versions"),
    ("method", 0, "method"),
    ("method", None, "method"),
    ("seed", "0", "seed"),
    ("seed", True, "seed"),
    ("weight_dtype", "int8", "weight_dtype"),
    ("weight_dtype", "nn", "weight_dtype"),
    ("written_dtype", "int32", "written_dtype"),
    ("written_dtype", "bool", "written_dtype"),
    ("written_dtype", "float8_e4m3fn", "written_dtype"),
    ("written_dtype", "__name__", "written_dtype"),
    ("batches", [], "batches"),
    ("batches", {"0": {}}, "batches"),
    ("batches.0", None, "batches[0]"),
    ("batches.0.facts", None, "batches[0].facts"),
    ("batches.0.facts.0", "x" * 1_000_000, "batches[0].facts[0]"),
    ("batches.0.facts.0.subject", ..., "batches[0].facts[0]"),
    ("batches.0.facts.0.prompt", "no slot", "prompt"),
    ("batches.0.before", {}, "before"),
    ("batches.0.before", {"1": 5, "2": "x"}, "before"),
    ("batches.0.after", {"1": "x"}, "after"),
    ("batches.0.edits", [-1, 3], "edits"),
    ("batches.0.edits", [2, 2], "edits"),
    ("batches.0.conditioned", "no", "conditioned"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "word"), WRONG, ids=[f"{place}={str(value)[:20]}" for place, value, _ in WRONG]
)
def test_a_field_that_cannot_be_is_named(parts: Parts, tmp_path: Path, place: str, value: object, word: str) -> None:
    document, tensors = parts
    refused(tmp_path / "made", altered(document, place, value), tensors, word)


@pytest.mark.parametrize("layer", ["-1", "01", "+1", "1_0", " 1", "٣", "1.0", "", "x", "9" * 4000])
def test_a_layer_is_written_in_one_way_only(parts: Parts, tmp_path: Path, layer: str) -> None:
    document, tensors = parts
    (batch,) = document["batches"]
    for field in ("before", "after"):
        batch[field][layer] = batch[field].pop("1")
    renamed = {name.replace("0.1.", f"0.{layer}."): tensor for name, tensor in tensors.items()}
    refused(tmp_path / "made", document, renamed, "before")


def test_tensors_that_the_description_does_not_know_or_that_are_missing_are_named(parts: Parts, tmp_path: Path) -> None:
    document, tensors = parts
    twice = {**tensors, "0.01.up": 2 * tensors["0.1.up"], "0.01.down": 2 * tensors["0.1.down"]}
    refused(tmp_path / "made", document, twice, "0.01")
    refused(tmp_path / "made", document, {**tensors, "1.1.full": 2 * tensors["0.2.full"]}, "1.1")
    refused(tmp_path / "made", document, {"0.1.up": tensors["0.1.up"]}, "lack ['0.2']")
    refused(tmp_path / "made", document, {**tensors, "x": torch.zeros(1)}, "beyond the batches")


def bits(rows: int, columns: int, ones: int = 8) -> Tensor:
    found = torch.zeros((rows * columns + 7) // 8, dtype=torch.uint8)
    found[: ones // 8] = 255
    return found


def made_shifts(up: Tensor, down: Tensor) -> dict[str, dict[str, Tensor]]:
    rows, columns = up.shape[0], down.shape[1]
    size, kept = torch.tensor([rows, columns]), bits(rows, columns)
    sparse = {"values": torch.ones(8), "kept": kept, "size": size}
    return {
        "ranks differ": {"up": up, "down": down[:1].contiguous()},
        "rank 0": {"up": up[:, :0].contiguous(), "down": down[:0].contiguous()},
        "no dimension": {"up": torch.tensor(1.0), "down": down},
        "three dimensions": {"up": up[None], "down": down},
        "whole numbers": {"up": up.long(), "down": down},
        "not a number": {"up": up * float("nan"), "down": down},
        "infinite": {"up": up, "down": down * float("inf")},
        "full of one dimension": {"full": (up @ down).reshape(-1)},
        "full of booleans": {"full": torch.ones(rows, columns, dtype=torch.bool)},
        "full is complex": {"full": torch.ones(rows, columns, dtype=torch.complex64)},
        "fewer values than bits": {**sparse, "values": torch.ones(7)},
        "more values than bits": {**sparse, "values": torch.ones(9)},
        "no values": {**sparse, "values": torch.ones(0)},
        "values in two dimensions": {**sparse, "values": torch.ones(8, 1)},
        "bits of float": {**sparse, "kept": kept.float()},
        "bits too short": {**sparse, "kept": kept[:3].contiguous()},
        "bits too long": {**sparse, "kept": torch.cat([kept, kept])},
        "size is huge": {**sparse, "size": torch.tensor([30_000, 30_000])},
        "size overflows": {**sparse, "size": torch.tensor([2**62, 2**62])},
        "size is negative": {**sparse, "size": torch.tensor([-1, -1])},
        "size is infinite": {**sparse, "size": torch.tensor([float("inf"), 1.0])},
        "size of three": {**sparse, "size": torch.tensor([rows, columns, 5])},
        "size of none": {**sparse, "size": torch.tensor(rows)},
        "masked, bits too short": {"up": up, "down": down, "kept": kept[:1].contiguous()},
        "masked, ranks differ": {"up": up, "down": down[:1].contiguous(), "kept": kept},
        "no form": {"up": up, "full": up @ down},
    }


@pytest.mark.parametrize("what", made_shifts(torch.ones(8, 2), torch.ones(2, 4)))
def test_a_shift_whose_parts_do_not_fit_is_named_by_its_layer(parts: Parts, tmp_path: Path, what: str) -> None:
    document, tensors = parts
    made = made_shifts(tensors["0.1.up"], tensors["0.1.down"])[what]
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("0.1.")}
    shifts = {f"0.1.{part}": tensor for part, tensor in made.items()}
    refused(tmp_path / "made", document, {**rest, **shifts}, "batches[0], layer 1: ", show=False)


@pytest.mark.parametrize("depth", [150, 2_000, 100_000])
def test_lists_in_lists_in_lists_are_a_clear_error(parts: Parts, tmp_path: Path, depth: int) -> None:
    document, _ = parts
    deep = "[" * depth + "]" * depth
    text = json.dumps({"format": 3, **document}).replace('"settings": {', f'"settings": {{"x": {deep}, ', 1)
    (tmp_path / "made").write_bytes(save({"0.1.up": torch.zeros(1)}, {"factpatch": text}))
    for read in (Patch.load, describe):
        with pytest.raises(PatchFileError, match=r"made: was altered: .*nested too deeply|nested deeper than"):
            read(tmp_path / "made")


def test_many_tensors_of_no_size_are_not_read(parts: Parts, tmp_path: Path) -> None:
    document, tensors = parts
    many = {f"{number}.0.full": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(200_000)}
    text = json.dumps({"format": 3, "sha256": "0" * 64, **document})
    header = json.dumps({"__metadata__": {"factpatch": text}, **many}).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "made"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    begun = time.perf_counter()
    for read in (Patch.load, describe):
        with pytest.raises(PatchFileError, match="lists more tensors than it holds"):
            read(path)
    assert time.perf_counter() - begun < 2
    empty = {f"{number}.0.full": torch.zeros(0) for number in range(1, 2_000)}
    refused(path, document, {**tensors, **empty}, "2002 tensors for 2")


def test_a_missing_layer_and_a_foreign_config_are_refused_by_the_model(parts: Parts, tmp_path: Path) -> None:
    document, tensors = parts
    (batch,) = document["batches"]
    for field in ("before", "after"):
        batch[field]["99"] = batch[field].pop("1")
    write_patch_file(tmp_path / "made", document, {name.replace("0.1.", "0.99."): t for name, t in tensors.items()})
    model = tiny_model("llama")
    before = {name: content_hash(weight) for name, weight in model.state_dict().items() if weight.dim() == 2}
    for use in (Patch.load(tmp_path / "made").apply, Patch.load(tmp_path / "made").rebase):
        with pytest.raises(PatchMismatchError, match=r"edits layer 99, but .* has layers 0 to 3"):
            use(model)
    write_patch_file(tmp_path / "made", altered(parts_of(tmp_path / "made")[0], "config.hidden_size", "x" * 10_000), {
        name.replace("0.1.", "0.99."): tensor for name, tensor in tensors.items()
    })  # fmt: skip
    with pytest.raises(PatchMismatchError, match="another architecture") as raised:
        Patch.load(tmp_path / "made").apply(model)
    assert len(str(raised.value)) < 1000
    assert before == {name: content_hash(weight) for name, weight in model.state_dict().items() if weight.dim() == 2}


# --- small files of large matrices


def vectors(rows: int, columns: int) -> LowRank:
    generator = torch.Generator().manual_seed(0)
    return LowRank(torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator))


def test_factors_of_a_matrix_that_would_fill_the_memory_are_shrunk_as_factors() -> None:
    whole = Batch((), {1: vectors(400_000, 300_000)}, {1: "x"}, {})  # as a matrix 960 GB
    for rank in (1, 2):
        batch, about = shrunk(whole, rank, None)
        assert batch.shifts[1].shape == (400_000, 300_000)
        assert about["1"]["rank"] == rank
        singular = decomposed(whole.shifts[1])[1]
        expected = float(singular[rank:].norm() / singular.norm())
        assert about["1"]["error"] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_norms_and_distances_of_factors_are_those_of_their_matrices() -> None:
    one, other = vectors(13, 21), vectors(13, 21)
    other = LowRank(other.up[:, :1], 3 * other.down[:1])
    assert norm(one) == pytest.approx(float(one.matrix().norm()), rel=1e-12)
    assert distance(one, other) == pytest.approx(float((one.matrix() - other.matrix()).norm()), rel=1e-12)
    assert distance(one, one) < 1e-12 * norm(one)


def test_a_sum_of_other_shapes_is_refused_before_a_matrix_is_formed(parts: Parts, tmp_path: Path) -> None:
    document, tensors = parts
    (batch,) = document["batches"]
    document["batches"] = [batch, {**deepcopy(batch), "before": batch["after"]}]
    large = vectors(60_000, 60_000)
    second = {"1.1.up": large.up, "1.1.down": large.down, "1.2.full": 2 * tensors["0.2.full"]}
    write_patch_file(tmp_path / "made", document, {**tensors, **second})
    patch = Patch.load(tmp_path / "made")
    for use in (lambda: Patch.compose([patch]), lambda: patch.shrink(1), lambda: patch.to_lora(tmp_path / "lora")):
        with pytest.raises(ValueError, match="shifts of one weight have different shapes"):
            use()
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize(("rows", "columns"), [(4, 5), (1, 5), (50, 1)])
def test_factors_whose_product_overflows_are_refused_by_their_decomposition(rows: int, columns: int) -> None:
    large = torch.full((), 1e200, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="not finite"):
        decomposed(LowRank(large.expand(rows, 1), large.expand(1, columns)))
