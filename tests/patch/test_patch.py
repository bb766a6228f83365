"""What a patch promises: the very bits of the edit, the way back, refusals that change nothing, files that last."""

from __future__ import annotations

import errno
import json
import logging
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import FAMILIES, tiny_model, tiny_tokenizer
from tests.support.test_files_atomic import largest_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel, editable_names, editable_weights
from factpatch.model.weights import content_hash
from factpatch.patch.batch import Batch
from factpatch.patch.compatibility import PatchMismatchError
from factpatch.patch.file import FORMAT, PatchFileError, describe
from factpatch.patch.history import write
from factpatch.patch.patch import Patch
from factpatch.patch.shift import Dense, LowRank, Shift

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BATCHES: tuple[tuple[int, ...], ...] = ((1, 2), (2, 3))
"""The layers of two batches that have one layer in common."""


def random_shift(weight: Tensor, generator: torch.Generator, dtype: torch.dtype, dense: bool) -> Shift:
    """A shift about as large as a weight of the tiny models."""
    rows, columns = weight.shape
    if dense:
        return Dense(0.1 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)).to(dtype)
    up = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    down = torch.randn(2, columns, generator=generator, dtype=torch.float64)
    return LowRank(0.1 * up, down).to(dtype)


def edit(model: Any, batches: Sequence[Sequence[int]] = BATCHES, seed: int = 0) -> Patch:
    """Write random shifts to a model as an editor does; the last layer of a batch gets a dense one."""
    generator = torch.Generator().manual_seed(seed)
    weight_dtype = editable_weights(model, [0])[0].dtype
    stored = torch.float64 if weight_dtype == torch.float64 else torch.float32
    made = []
    for index, layers in enumerate(batches):
        weights = editable_weights(model, layers)
        before = {layer: content_hash(weight) for layer, weight in weights.items()}
        shifts = {
            layer: random_shift(weight, generator, stored, dense=layer == layers[-1])
            for layer, weight in weights.items()
        }
        write(weights, shifts, stored)
        after = {layer: content_hash(weight) for layer, weight in weights.items()}
        facts = (Fact("{} lives in", "Zoë", f"Rome {index}"), Fact("{} speaks", f"Person {index}", "Finnish"))
        made.append(Batch(facts, shifts, before, after))
    return Patch(
        batches=tuple(made),
        method="memit-blue",
        settings={"solver": {"weight": 15000.0}, "layers": (1, 2, 3)},
        config=model.config.to_dict(),
        weight_dtype=weight_dtype,
        written_dtype=stored,
        versions={"torch": "2.4.0"},
        seed=seed,
    )


def same_bits(model: Any, other: Any) -> bool:
    """Whether two models agree in every parameter."""
    ours, its = model.state_dict(), other.state_dict()
    return ours.keys() == its.keys() and all(torch.equal(ours[name], its[name]) for name in ours)


def refused(patch: Patch, model: Any, pattern: str, **remove: Any) -> None:
    """Check that a patch refuses a model, be it to apply or (with `remove`) to remove, and leaves it as it is."""
    untouched = deepcopy(model)
    with pytest.raises(PatchMismatchError, match=pattern):
        patch.remove(model, **remove) if remove else patch.apply(model)
    assert same_bits(model, untouched)


@pytest.fixture(params=["gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- apply and remove


@pytest.mark.parametrize("family", FAMILIES)
def test_apply_gives_the_very_bits_of_the_edit_in_every_family(family: str) -> None:
    model, edited = tiny_model(family), tiny_model(family)
    edit(edited).apply(model)
    assert same_bits(model, edited)
    assert not same_bits(model, tiny_model(family))


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_gives_the_very_bits_of_the_edit_from_a_file(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, edited = tiny_model(family, dtype=dtype), tiny_model(family, dtype=dtype)
    edit(edited).save(tmp_path / "patch.safetensors")
    Patch.load(tmp_path / "patch.safetensors").apply(model)
    assert same_bits(model, edited)


def test_apply_takes_a_language_model_and_keeps_gradients_possible(family: str) -> None:
    model, edited = tiny_model(family), tiny_model(family)
    edit(edited).apply(LanguageModel(model, tiny_tokenizer()))
    assert same_bits(model, edited)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batches", [((2,),), ((2,), (2,), (2,))])
def test_remove_restores_to_rounding(family: str, dtype: torch.dtype, batches: tuple[tuple[int, ...], ...]) -> None:
    """Within one unit in the last place per batch, at the magnitude max(|W|, |W + Δ|), plus 2 % for second order."""
    model = tiny_model(family, dtype=dtype)
    original = editable_weights(model, [2])[2].clone().double()
    largest = original.abs()
    patches = []
    for seed, batch in enumerate(batches):
        patches.append(edit(model, [batch], seed))
        largest = torch.maximum(largest, editable_weights(model, [2])[2].double().abs())
    Patch.join(patches).remove(model)
    error = (editable_weights(model, [2])[2].double() - original).abs()
    assert bool((error <= 1.02 * len(batches) * torch.finfo(dtype).eps * largest).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_remove_with_a_base_model_restores_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    model, base = tiny_model(family, dtype=dtype), tiny_model(family, dtype=dtype)
    edit(model).remove(model, base=base)
    assert same_bits(model, base)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard", ["1GB", "40KB"])
def test_remove_with_a_saved_base_restores_bit_for_bit(family: str, shard: str, tmp_path: Path) -> None:
    model, base = tiny_model(family), tiny_model(family)
    base.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "40KB")
    edit(model).remove(model, base=tmp_path)
    assert same_bits(model, base)


def test_a_saved_base_may_be_wider_than_the_edited_model(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    base = deepcopy(model)
    edit(model).remove(model, base=str(tmp_path))
    assert same_bits(model, base)


def test_a_saved_base_may_be_the_body_alone(tmp_path: Path) -> None:
    model, base = tiny_model("gpt2"), tiny_model("gpt2")
    base.transformer.save_pretrained(tmp_path)
    assert "h.0.mlp.c_proj.weight" in load_file(tmp_path / "model.safetensors")
    edit(model).remove(model, base=tmp_path)
    assert same_bits(model, base)


def test_applied_restores_bit_for_bit_even_after_an_error(family: str) -> None:
    model, base, edited = tiny_model(family), tiny_model(family), tiny_model(family)
    patch = edit(edited)
    with patch.applied(model):
        assert same_bits(model, edited)
    assert same_bits(model, base)

    def fail() -> None:
        with patch.applied(model):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert same_bits(model, base)


def test_editable_names_are_those_of_the_parameters(family: str) -> None:
    model = tiny_model(family)
    parameters = dict(model.named_parameters())
    for layer, name in editable_names(model).items():
        assert parameters[name].data_ptr() == editable_weights(model, [layer])[layer].data_ptr()


# --- refusals


def test_another_family_is_refused() -> None:
    patch = edit(tiny_model("gpt2"))
    refused(patch, tiny_model("llama"), "model_type is 'gpt2' in the patch and 'llama' in the model")


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 32), ("intermediate_size", 64), ("num_hidden_layers", 4)])
def test_another_size_is_refused_by_its_name(family: str, field: str, value: int) -> None:
    patch = edit(tiny_model(family))
    names = {"hidden_size": "n_embd", "intermediate_size": "n_inner", "num_hidden_layers": "n_layer"}
    config = {**patch.config, names[field] if family == "gpt2" else field: 8}
    refused(replace(patch, config=config), tiny_model(family), f"{field} is 8 in the patch and {value} in the model")


def test_an_absent_layer_is_refused(family: str) -> None:
    model = tiny_model(family)
    patch = edit(tiny_model(family), [(3,)])
    far = Batch((), {7: patch.batches[0].shifts[3]}, {7: "before"}, {7: "after"})
    refused(replace(patch, batches=(far,)), model, r"the patch edits layer 7, but \w+ has layers 0 to 3")


def test_another_shape_is_refused(family: str) -> None:
    patch = edit(tiny_model(family), [(3,)])
    wrong = replace(patch.batches[0], shifts={3: Dense(torch.zeros(32, 63))})
    refused(replace(patch, batches=(wrong,)), tiny_model(family), r"layer 3: .* \(32, 63\), .* has shape \(32, 64\)")


def test_another_dtype_is_refused(family: str) -> None:
    patch = edit(tiny_model(family, dtype=torch.bfloat16))
    pattern = "made for bfloat16 weights, .*layers 1, 2, 3 are float32; load the model with dtype=torch.bfloat16"
    refused(patch, tiny_model(family), pattern)


def test_other_weights_are_refused_and_their_layers_named(family: str) -> None:
    patch = edit(tiny_model(family))
    refused(patch, tiny_model(family, seed=1), "the weights of layers 1, 2, 3 of .* are not those")
    model = tiny_model(family)
    editable_weights(model, [3])[3][0, 0] += 1
    refused(patch, model, "the weights of layer 3 of .* are not those")
    refused(patch, tiny_model(family), "does not hold this patch: its weights are those from before", base=None)


def test_an_applied_patch_is_not_applied_again(family: str) -> None:
    model = tiny_model(family)
    refused(edit(model), model, "already holds this patch")


def test_a_model_that_holds_part_of_a_patch_is_named(family: str) -> None:
    model, edited = tiny_model(family), tiny_model(family)
    patch = edit(edited)
    replace(patch, batches=patch.batches[:1]).apply(model)
    refused(patch, model, "holds only the first 1 of the patch's 2 batches")
    refused(patch, model, "holds only the first 1 of the patch's 2 batches", base=None)
    refused(patch, model, "holds only the first 1 of the patch's 2 batches", base=tiny_model(family))


def test_a_later_edit_must_be_removed_first(family: str) -> None:
    model = tiny_model(family)
    patch = edit(model)
    edit(model, [(3,)], seed=1)
    refused(patch, model, "the weights of layer 3 of .* later edits first", base=None)
    refused(patch, model, "the weights of layer 3 of .* later edits first", base=tiny_model(family))


def test_another_base_is_refused(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    patch = edit(model)
    other = tiny_model(family, seed=1)
    refused(patch, model, "base=.* layers 1, 2, 3 are not those", base=other)
    other.save_pretrained(tmp_path)
    refused(patch, model, "base=.* layers 1, 2, 3 are not those", base=tmp_path)


def test_a_base_without_safetensors_is_refused(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    edited = deepcopy(model)
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        edit(edited).remove(edited, base=tmp_path)
    name = editable_names(model)[0]
    save_file({name: torch.zeros(1, 1)}, tmp_path / "model.safetensors")
    model = tiny_model(family)
    refused(edit(model), model, "has no weight named", base=tmp_path)


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e30])
def test_a_shift_that_overflows_is_refused_and_the_model_unchanged(family: str, value: float) -> None:
    model = tiny_model(family, dtype=torch.float16)
    patch = edit(tiny_model(family, dtype=torch.float16))
    bad = replace(patch.batches[1], shifts={**patch.batches[1].shifts, 3: Dense(torch.full((32, 64), value))})
    patch = replace(patch, batches=(patch.batches[0], bad))
    with pytest.raises(FloatingPointError, match=r"batches\[1\], layer 3: .*nothing was changed"):
        patch.apply(model)
    with pytest.raises(FloatingPointError, match=r"batches\[1\], layer 3"), patch.applied(model):
        pytest.fail("the block must not run")
    assert same_bits(model, tiny_model(family, dtype=torch.float16))


# --- a machine that rounds the product of the factors differently


@pytest.fixture
def foreign(family: str) -> Patch:
    """A patch from a machine on which one number of layer 3 came out one bit larger."""
    edited = tiny_model(family)
    patch = edit(edited)
    weight = editable_weights(edited, [3])[3]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(math.inf))
    last = replace(patch.batches[-1], after={**patch.batches[-1].after, 3: content_hash(weight)})
    return replace(patch, batches=(*patch.batches[:-1], last))


def test_different_rounding_is_applied_with_a_warning(
    family: str, foreign: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    model, edited = tiny_model(family), tiny_model(family)
    edit(edited)
    with caplog.at_level(logging.WARNING):
        foreign.apply(model)
    assert "layer 3: this machine rounds" in caplog.text
    assert same_bits(model, edited)


def test_equal_rounding_is_applied_without_a_warning(family: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        edit(tiny_model(family)).apply(tiny_model(family))
    assert not caplog.records


def test_a_patch_that_was_rounded_differently_is_removed_with_its_base(family: str, foreign: Patch) -> None:
    model, base = tiny_model(family), tiny_model(family)
    foreign.apply(model)
    refused(foreign, model, "rounded differently on this machine, give base", base=None)
    foreign.remove(model, base=base)
    assert same_bits(model, base)


# --- what a patch says about itself, and joining


def test_facts_in_force_are_the_newer_ones() -> None:
    patch = edit(tiny_model("gpt2"))
    assert [(fact.subject, fact.target_new) for fact in patch.facts] == [
        ("Person 0", "Finnish"),
        ("Zoë", "Rome 1"),
        ("Person 1", "Finnish"),
    ]


def test_layers_and_bytes_count_every_shift() -> None:
    patch = edit(tiny_model("gpt2"))
    assert patch.layers == (1, 2, 3)
    low_rank, dense = 4 * 2 * (32 + 64), 4 * 32 * 64
    assert patch.num_bytes == 2 * (low_rank + dense)


def test_joined_patches_apply_as_one_after_the_other(family: str) -> None:
    model, edited = tiny_model(family), tiny_model(family)
    first, second = edit(edited, [(1, 2)], seed=1), edit(edited, [(2, 3), (0,)], seed=2)
    joined = Patch.join([first, second])
    assert joined.batches == first.batches + second.batches
    joined.apply(model)
    assert same_bits(model, edited)
    joined.remove(model, base=tiny_model(family))
    assert same_bits(model, tiny_model(family))


def test_patches_do_not_join_in_the_wrong_order() -> None:
    edited = tiny_model("gpt2")
    first, second = edit(edited, [(1, 2)], seed=1), edit(edited, [(2, 3)], seed=2)
    with pytest.raises(ValueError, match=r"batches\[1\] does not begin where .* weights of layer 2 differ"):
        Patch.join([second, first])


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"method": "alphaedit"}, r"patches\[1\] has method='alphaedit' and patches\[0\] 'memit-blue'"),
        ({"settings": {}}, "settings"),
        ({"written_dtype": torch.float64}, "written_dtype"),
        ({"weight_dtype": torch.float64}, "weight_dtype"),
        ({"config": {"model_type": "llama"}}, "the configs differ in .*model_type"),
    ],
)
def test_patches_of_different_sessions_do_not_join(change: dict[str, Any], pattern: str) -> None:
    edited = tiny_model("gpt2")
    first, second = edit(edited, [(1,)]), edit(edited, [(1,)])
    with pytest.raises(ValueError, match=pattern):
        Patch.join([first, replace(second, **change)])


def test_patches_of_one_model_in_two_places_join() -> None:
    edited = tiny_model("gpt2")
    first, second = edit(edited, [(1,)]), edit(edited, [(1,)])
    moved = replace(second, config={**second.config, "_name_or_path": "elsewhere"})
    assert len(Patch.join([first, moved]).batches) == 2


def test_incomplete_patches_are_refused() -> None:
    patch = edit(tiny_model("gpt2"))
    with pytest.raises(ValueError, match="at least one batch"):
        replace(patch, batches=())
    with pytest.raises(ValueError, match="at least one patch"):
        Patch.join([])
    with pytest.raises(ValueError, match="before holds no layers and shifts layers 1, 2"):
        replace(patch.batches[0], before={})
    with pytest.raises(ValueError, match=r"edits=\(1,\) count 1 facts, but there are 2"):
        replace(patch.batches[0], edits=(1,))
    with pytest.raises(TypeError, match="settings cannot be written as JSON"):
        replace(patch, settings={"solver": object()})


# --- files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small file: one batch, one low-rank and one dense shift, no more of the config than is looked at."""
    path = tmp_path / "patch.safetensors"
    patch = edit(tiny_model("gpt2"), [(1, 2)])
    replace(patch, config={name: patch.config[name] for name in ("model_type", "n_embd", "n_layer")}).save(path)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loaded_patch_is_the_saved_one(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    patch = edit(tiny_model(family, dtype=dtype))
    patch.save(tmp_path / "patch.safetensors")
    loaded = Patch.load(tmp_path / "patch.safetensors")
    for name in ("method", "settings", "config", "weight_dtype", "written_dtype", "versions", "seed", "facts"):
        assert getattr(loaded, name) == getattr(patch, name), name
    for batch, other in zip(patch.batches, loaded.batches, strict=True):
        assert (batch.facts, batch.before, batch.after) == (other.facts, other.before, other.after)
        assert list(batch.shifts) == list(other.shifts)
        for layer, shift in batch.shifts.items():
            ours, its = shift.tensors(), other.shifts[layer].tensors()
            assert {name: tensor.dtype for name, tensor in ours.items()} == {n: t.dtype for n, t in its.items()}
            assert all(torch.equal(ours[name], its[name]) for name in ours)


def test_the_same_patch_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    for name in ("again", "once more"):
        Patch.load(saved).save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == saved.read_bytes()


def test_a_patch_is_a_safetensors_file_that_other_programs_read(saved: Path) -> None:
    tensors = load_file(saved)
    assert sorted(tensors) == ["0.1.down", "0.1.up", "0.2.full"]
    shift = Patch.load(saved).batches[0].shifts[2]
    assert isinstance(shift, Dense)
    assert torch.equal(tensors["0.2.full"], shift.full)


def test_describe_tells_what_is_in_a_file(saved: Path) -> None:
    found = describe(saved)
    assert (found.format, found.method, found.weight_dtype) == (3, "memit-blue", "float32")
    assert found.layers == (1, 2)
    assert found.batches[0].facts[0].subject == "Zoë"


def test_a_loaded_patch_does_not_change_with_its_file(saved: Path) -> None:
    patch = Patch.load(saved)
    expected = patch.batches[0].shifts[2].matrix()
    with saved.open("rb+") as file:
        file.seek(-4096, 2)
        file.write(bytes(4096))
    assert torch.equal(patch.batches[0].shifts[2].matrix(), expected)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.1, 0.3, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(PatchFileError, match="cut short"):
        Patch.load(saved)
    with pytest.raises(PatchFileError, match="cut short"):
        describe(saved)


def test_a_byte_too_many_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(PatchFileError):
        Patch.load(saved)


@pytest.mark.parametrize("difference", [0x01, ord(" ") ^ ord("\t")])
def test_one_altered_byte_anywhere_is_refused(saved: Path, difference: int) -> None:
    """Every byte of the header, which holds the metadata too, and every 50th of the tensors."""
    whole = saved.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    assert whole[end - 1 : end] == b" "  # Padding, which means nothing and must not be altered all the same.
    for place in (*range(end), *range(end, len(whole), 50), len(whole) - 1):
        altered = bytearray(whole)
        altered[place] ^= difference
        saved.write_bytes(altered)
        with pytest.raises(PatchFileError):
            Patch.load(saved)


def test_an_altered_fact_and_an_altered_number_are_called_altered(saved: Path) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole.replace(b"Rome 0", b"Bern 0"))
    with pytest.raises(PatchFileError, match="was altered"):
        Patch.load(saved)
    saved.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(PatchFileError, match="was altered"):
        Patch.load(saved)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    metadata = {"factpatch": json.dumps({"format": FORMAT + 1}), "sha256": "of the future"}
    save_file({"a": torch.zeros(1)}, tmp_path / "new", metadata)
    for read in (Patch.load, describe):
        with pytest.raises(PatchFileError, match=f"is of format {FORMAT + 1}, which a newer factpatch wrote"):
            read(tmp_path / "new")


def test_files_that_are_no_patches_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a text that is longer than the length of a header")
    save_file({"a": torch.zeros(1)}, tmp_path / "tensors", {"format": "pt"})
    cases = {"none": "no such file", "text": "is not a safetensors file", "tensors": "not one that factpatch wrote"}
    for name, pattern in {**cases, ".": "cannot be read"}.items():
        for read in (Patch.load, describe):
            with pytest.raises(PatchFileError, match=pattern):
                read(tmp_path / name)


def test_a_full_disk_leaves_no_file_and_keeps_the_old_one(saved: Path, tmp_path: Path) -> None:
    patch, whole = Patch.load(saved), saved.read_bytes()
    for path in (saved, tmp_path / "new"):
        with largest_file(len(whole) // 2), pytest.raises(OSError, match="could not be written: ") as raised:
            patch.save(path)
        assert raised.value.errno == errno.EFBIG
        assert str(path) in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]
    assert saved.read_bytes() == whole


def test_a_patch_of_a_mistral_model_read_as_llama_goes_back_to_the_mistral_model() -> None:
    """A GGUF file of a Mistral model is one of Llama's."""
    mistral = tiny_model("mistral")
    config = AutoConfig.for_model("llama", **{k: v for k, v in mistral.config.to_dict().items() if k != "model_type"})
    llama = AutoModelForCausalLM.from_config(config)
    llama.load_state_dict(mistral.state_dict())
    patch = edit(llama, [(1,)])
    patch.apply(mistral)
    patch.remove(mistral)
    with pytest.raises(PatchMismatchError, match="model_type is 'llama' in the patch and 'qwen2' in the model"):
        patch.apply(tiny_model("qwen2"))
