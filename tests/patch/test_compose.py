"""Patches that are summed, moved to other weights and made smaller."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.patch.test_patch import edit, refused, same_bits
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.language_model import editable_weights
from factpatch.model.weights import content_hash
from factpatch.patch.batch import Batch
from factpatch.patch.compatibility import PatchMismatchError
from factpatch.patch.history import write
from factpatch.patch.patch import Patch
from factpatch.patch.shift import Dense, LowRank, Masked, Shift, Sparse

LAYERS = (1, 2, 3)
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@pytest.fixture(params=["gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def other_facts(patch: Patch, **changes: Any) -> Patch:
    """The same patch, about other subjects."""
    batches = [
        replace(batch, facts=tuple(replace(fact, subject=f"{fact.subject} the second") for fact in batch.facts))
        for batch in patch.batches
    ]
    return replace(patch, batches=tuple(batches), **changes)


def with_shifts(model: Any, shifts: Mapping[int, Shift]) -> Patch:
    """A patch of one batch that shifts a model, which stays as it is, by these."""
    weights = {layer: weight.clone() for layer, weight in editable_weights(model, list(shifts)).items()}
    before = {layer: content_hash(weight) for layer, weight in weights.items()}
    write(weights, shifts, torch.float32)
    after = {layer: content_hash(weight) for layer, weight in weights.items()}
    batch = Batch((Fact("{} lives in", "Zoë", "Rome"),), dict(shifts), before, after)
    return replace(edit(deepcopy(model), [(1,)]), batches=(batch,))


def matrices(patch: Patch) -> dict[int, Tensor]:
    """The sum of a patch's shifts, by layer."""
    summed: dict[int, Tensor] = {}
    for batch in patch.batches:
        for layer, shift in batch.shifts.items():
            summed[layer] = summed.get(layer, torch.zeros(1, 1)) + shift.matrix()
    return summed


# --- compose


@pytest.mark.parametrize("dtype", DTYPES)
def test_successive_patches_compose_to_what_they_do_one_after_another(family: str, dtype: torch.dtype) -> None:
    model, edited = tiny_model(family, dtype=dtype), tiny_model(family, dtype=dtype)
    patches = [edit(edited, [(1, 2)], 0), edit(edited, [(2, 3)], 1), edit(edited, [(0,), (3,)], 2)]
    composed = Patch.compose(patches)
    assert len(composed.batches) == 1
    composed.apply(model)
    for layer, weight in editable_weights(edited, range(4)).items():
        found = editable_weights(model, [layer])[layer]
        # Rounded once instead of once per patch: three units in the last place at the largest magnitude on the way.
        error = (found.double() - weight.double()).abs().max()
        assert float(error) <= 3 * torch.finfo(dtype).eps * float(weight.abs().max() + 2)


def test_independent_patches_of_different_methods_compose_to_their_sum(family: str) -> None:
    first = edit(tiny_model(family), [(1, 2)], 0)
    second = other_facts(edit(tiny_model(family), [(2, 3)], 1), method="alphaedit", settings={"solver": "other"})
    composed = Patch.compose([first, second])
    model, base = tiny_model(family), tiny_model(family)
    composed.apply(model)
    shifts = {layer: matrices(first).get(layer, 0) + matrices(second).get(layer, 0) for layer in LAYERS}
    for layer in LAYERS:
        expected = editable_weights(base, [layer])[layer].double() + shifts[layer]
        torch.testing.assert_close(editable_weights(model, [layer])[layer].double(), expected, rtol=1e-6, atol=1e-6)
    assert composed.method == "memit-blue + alphaedit"
    assert [settings["method"] for settings in composed.settings["composed"]] == ["memit-blue", "alphaedit"]
    assert composed.settings["composed"][1]["solver"] == "other"
    assert len(composed.facts) == 4


def test_a_third_patch_may_be_independent_of_two_that_are_successive(family: str) -> None:
    edited = tiny_model(family)
    successive = [edit(edited, [(2,)], 0), edit(edited, [(2,)], 1)]
    third = other_facts(edit(tiny_model(family), [(2,)], 2))
    composed = Patch.compose([*successive, third])
    expected = sum(matrices(patch)[2] for patch in (*successive, third))
    torch.testing.assert_close(matrices(composed)[2], expected, rtol=1e-6, atol=1e-6)


def test_factors_stay_factors(family: str) -> None:
    edited = tiny_model(family)
    composed = Patch.compose([edit(edited, [(1, 2)], 0), edit(edited, [(1, 3)], 1)])
    shift = composed.batches[0].shifts[1]
    assert isinstance(shift, LowRank)
    assert shift.up.shape[1] == 4
    assert shift.up.dtype == torch.float32
    assert isinstance(composed.batches[0].shifts[2], Dense)


def test_one_patch_composed_keeps_its_facts_and_counts_its_edits(family: str) -> None:
    patch = edit(tiny_model(family))
    composed = Patch.compose([patch])
    (batch,) = composed.batches
    assert batch.facts == tuple(fact for batch in patch.batches for fact in batch.facts)
    assert batch.edits == (2, 2)
    assert composed.facts == patch.facts  # the newer of two answers, though both are in one batch
    assert (composed.method, composed.settings, composed.config) == (patch.method, patch.settings, patch.config)
    assert composed.states()[0] == patch.states()[0]
    assert Patch.compose([composed]).batches[0].edits == (2, 2)


def test_independent_patches_of_the_same_fact_are_refused(family: str) -> None:
    first, second = edit(tiny_model(family), [(2,)], 0), edit(tiny_model(family), [(2,)], 1)
    with pytest.raises(ValueError, match=r"patches\[1\] edits 'Zoë lives in', which a patch before it edits too"):
        Patch.compose([first, second])


def test_successive_patches_of_the_same_fact_compose_and_the_newer_is_in_force(family: str) -> None:
    edited = tiny_model(family)
    first = edit(edited, [(2,)], 0)
    second = edit(edited, [(2,)], 1)
    (batch,) = second.batches
    newer = replace(batch, facts=tuple(replace(fact, target_new="Bern") for fact in batch.facts))
    composed = Patch.compose([first, replace(second, batches=(newer,))])
    assert [fact.target_new for fact in composed.facts] == ["Bern", "Bern"]
    assert len(composed.batches[0].facts) == 4


def test_a_patch_on_weights_that_nobody_left_is_refused(family: str) -> None:
    first = edit(tiny_model(family), [(2,)])
    with pytest.raises(
        ValueError, match=r"patches\[1\] was made on weights of layer 2 that neither the base model nor"
    ):
        Patch.compose([first, other_facts(edit(tiny_model(family, seed=1), [(2,)], 1))])
    edited = tiny_model(family)
    patches = [edit(edited, [(2,)], seed) for seed in range(3)]
    with pytest.raises(ValueError, match=r"patches\[1\] was made on weights"):
        Patch.compose([patches[0], patches[2]])
    with pytest.raises(ValueError, match=r"patches\[1\] was made on weights"):
        Patch.compose([patches[1], patches[0]])


def test_a_patch_after_an_unsealed_one_is_refused(family: str) -> None:
    edited = tiny_model(family)
    first, second = edit(edited, [(2,)], 0), edit(edited, [(2,)], 1)
    with pytest.raises(ValueError, match=r"patches\[1\] was made on weights of layer 2"):
        Patch.compose([Patch.compose([first]), second])


def test_patches_of_different_models_are_refused_even_in_other_layers() -> None:
    with pytest.raises(ValueError, match=r"patches\[1\] was made for another model .*model_type"):
        Patch.compose([edit(tiny_model("gpt2"), [(1,)]), edit(tiny_model("llama"), [(2,)])])
    first = edit(tiny_model("llama"), [(1,)])
    with pytest.raises(
        ValueError, match=r"patches\[1\] has weight_dtype=torch.bfloat16 and patches\[0\] torch.float32"
    ):
        Patch.compose([first, edit(tiny_model("llama", dtype=torch.bfloat16), [(2,)])])
    with pytest.raises(ValueError, match=r"patches=\[\]"):
        Patch.compose([])


# --- patches that do not say what they leave


def test_an_unsealed_patch_is_removed_with_its_base_bit_for_bit_and_not_without(family: str) -> None:
    composed = Patch.compose([edit(tiny_model(family))])
    assert not composed.sealed
    model, base = tiny_model(family), tiny_model(family)
    composed.apply(model)
    assert not same_bits(model, base)
    refused(composed, model, "composed or shrunk and does not record the weights it leaves .*; give base", base=None)
    composed.remove(model, base=base)
    assert same_bits(model, base)


def test_an_unsealed_patch_is_removed_from_nothing_but_what_it_leaves(family: str) -> None:
    composed = Patch.compose([edit(tiny_model(family))])
    base = tiny_model(family)
    refused(composed, tiny_model(family), "its weights are those from before the edit", base=None)
    model = tiny_model(family)
    composed.apply(model)
    refused(composed, model, "are not those that the patch was made for")  # to apply it twice
    editable_weights(model, [3])[3][0, 0] += 1
    refused(composed, model, "give base", base=base)


def test_an_unsealed_patch_is_saved_and_applied_for_a_while(family: str, tmp_path: Path) -> None:
    composed = Patch.compose([edit(tiny_model(family))])
    composed.save(tmp_path / "composed")
    loaded = Patch.load(tmp_path / "composed")
    assert not loaded.sealed
    assert loaded.batches[0].edits == (2, 2)
    model, other = tiny_model(family), tiny_model(family)
    composed.apply(other)
    with loaded.applied(model):
        assert same_bits(model, other)
    assert same_bits(model, tiny_model(family))


# --- rebase


def test_rebased_on_its_own_base_a_composed_patch_is_sealed(family: str) -> None:
    model, base = tiny_model(family), tiny_model(family)
    composed = Patch.compose([edit(tiny_model(family))]).rebase(base)
    assert same_bits(base, tiny_model(family))
    assert composed.sealed
    composed.apply(model)
    refused(composed, model, "already holds this patch")
    composed.remove(model)
    for layer, weight in editable_weights(base, LAYERS).items():
        torch.testing.assert_close(editable_weights(model, [layer])[layer], weight, rtol=1e-5, atol=1e-5)


def test_rebasing_a_patch_on_its_own_base_changes_no_hash(family: str) -> None:
    patch = edit(tiny_model(family))
    assert patch.rebase(tiny_model(family)).states() == patch.states()


def test_a_rebased_patch_fits_the_other_weights_and_names_them(family: str) -> None:
    patch = edit(tiny_model(family))
    other = tiny_model(family, seed=1)
    other.config._name_or_path = "someone/fine-tuned"
    refused(patch, other, "or rebase the patch, if it is meant for these weights too")
    rebased = patch.rebase(other)
    assert rebased.config["_name_or_path"] == "someone/fine-tuned"
    assert same_bits(other, tiny_model(family, seed=1))
    before = {layer: weight.clone() for layer, weight in editable_weights(other, LAYERS).items()}
    rebased.apply(other)
    for layer, shift in matrices(patch).items():
        found = editable_weights(other, [layer])[layer].double() - before[layer].double()
        torch.testing.assert_close(found, shift, rtol=1e-5, atol=1e-5)
    rebased.remove(other, base=tiny_model(family, seed=1))
    assert same_bits(other, tiny_model(family, seed=1))


def test_a_patch_is_rebased_to_another_dtype_and_not_to_another_family(family: str) -> None:
    patch = edit(tiny_model(family))
    model = tiny_model(family, dtype=torch.bfloat16)
    rebased = patch.rebase(model)
    assert rebased.weight_dtype == torch.bfloat16
    rebased.apply(model)
    rebased.remove(model, base=tiny_model(family, dtype=torch.bfloat16))
    assert same_bits(model, tiny_model(family, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="another architecture"):
        patch.rebase(tiny_model("phi3"))


# --- shrink


def errors(patch: Patch, shrunk: Patch) -> dict[int, float]:
    """The relative error of each layer, from the matrices alone."""
    whole, short = matrices(patch), matrices(shrunk)
    return {layer: float((short[layer] - whole[layer]).norm() / whole[layer].norm()) for layer in whole}


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_shrunk_to_a_rank_a_patch_is_the_nearest_one_and_says_how_near(family: str, rank: int) -> None:
    patch = edit(tiny_model(family))
    shrunk = patch.shrink(rank=rank)
    said = shrunk.settings["shrunk"]
    assert (said["rank"], said["energy"]) == (rank, None)
    for layer, error in errors(patch, shrunk).items():
        singular = torch.linalg.svdvals(matrices(patch)[layer])
        nearest = float(singular[rank:].norm() / singular.norm())
        assert said["layers"][str(layer)]["error"] == pytest.approx(error, rel=1e-4, abs=1e-6)
        assert error == pytest.approx(nearest, rel=1e-4, abs=1e-6)
        assert int(torch.linalg.matrix_rank(matrices(shrunk)[layer], rtol=1e-6)) <= rank
    assert shrunk.settings["solver"] == patch.settings["solver"]
    assert not shrunk.sealed
    assert shrunk.facts == patch.facts


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999])
def test_shrunk_to_an_energy_a_patch_keeps_the_fewest_values_that_hold_it(family: str, energy: float) -> None:
    patch = edit(tiny_model(family))
    shrunk = patch.shrink(energy=energy)
    for layer, whole in matrices(patch).items():
        squares = torch.linalg.svdvals(whole).square()
        size = shrunk.settings["shrunk"]["layers"][str(layer)]["rank"]
        assert float(squares[:size].sum()) >= energy * float(squares.sum()) * (1 - 1e-12)
        assert float(squares[: size - 1].sum()) < energy * float(squares.sum())
        assert errors(patch, shrunk)[layer] <= (1 - energy) ** 0.5 + 1e-6


def test_all_energy_changes_a_patch_by_rounding_alone(family: str) -> None:
    patch = edit(tiny_model(family))
    assert max(errors(patch, patch.shrink(energy=1.0)).values()) < 1e-6


def test_a_shrunk_patch_is_smaller_and_applies_and_is_removed(family: str, tmp_path: Path) -> None:
    patch = edit(tiny_model(family))
    shrunk = patch.shrink(rank=2)
    for name, saved in (("whole", patch), ("shrunk", shrunk)):
        saved.save(tmp_path / name)
    assert (tmp_path / "shrunk").stat().st_size < (tmp_path / "whole").stat().st_size
    assert shrunk.num_bytes == 4 * 3 * 2 * (32 + 64)
    loaded = Patch.load(tmp_path / "shrunk")
    assert loaded.settings == shrunk.settings
    model = tiny_model(family)
    loaded.apply(model)
    loaded.remove(model, base=tiny_model(family))
    assert same_bits(model, tiny_model(family))


def test_a_shift_of_zeros_shrinks_without_an_error() -> None:
    patch = with_shifts(tiny_model("llama"), {2: Dense(torch.zeros(32, 64))})
    for shrunk in (patch.shrink(rank=2), patch.shrink(energy=0.5)):
        assert shrunk.settings["shrunk"]["layers"]["2"]["error"] == 0
        assert torch.equal(matrices(shrunk)[2], torch.zeros(32, 64, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ({}, "rank=None, energy=None: give one of them"),
        ({"rank": 2, "energy": 0.5}, r"rank=2, energy=0\.5: give one of them"),
        ({"rank": 0}, "rank=0: must be at least 1"),
        ({"energy": 0.0}, r"energy=0\.0: must be a share above 0"),
        ({"energy": 1.5}, r"energy=1\.5: must be a share above 0, at most 1"),
    ],
)
def test_shrink_names_a_bad_argument(arguments: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        edit(tiny_model("gpt2"), [(1,)]).shrink(**arguments)


# --- files of masked and sparse shifts


def partial_shifts() -> dict[int, Shift]:
    """A masked and a sparse shift of the tiny models' weights."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(32, 64, generator=generator) < 0.4
    up, down = (torch.randn(*shape, generator=generator) for shape in ((32, 3), (3, 64)))
    full = torch.randn(32, 64, generator=generator)
    return {1: Masked.of(LowRank(0.1 * up, down), mask), 2: Masked.of(Dense(0.1 * full), mask).to(torch.float32)}


def test_masked_and_sparse_shifts_are_saved_to_the_bit_and_smaller_than_dense_ones(family: str, tmp_path: Path) -> None:
    shifts = partial_shifts()
    assert [type(shift) for shift in shifts.values()] == [Masked, Sparse]
    patch = with_shifts(tiny_model(family), shifts)
    patch.save(tmp_path / "patch")
    loaded = Patch.load(tmp_path / "patch")
    for layer, shift in loaded.batches[0].shifts.items():
        assert type(shift) is type(shifts[layer])
        assert torch.equal(shift.matrix(), shifts[layer].matrix())
        dense = 4 * shift.matrix().numel()
        assert sum(tensor.nbytes for tensor in shift.tensors().values()) < 0.5 * dense
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "patch").read_bytes()
    model, other = tiny_model(family), tiny_model(family)
    patch.apply(model)
    loaded.apply(other)
    assert same_bits(model, other)
    loaded.remove(model, base=tiny_model(family))
    assert same_bits(model, tiny_model(family))


def test_one_masked_patch_composed_stays_small_and_the_same(family: str) -> None:
    patch = with_shifts(tiny_model(family), partial_shifts())
    composed = Patch.compose([patch])
    assert composed.num_bytes == patch.num_bytes
    model, other = tiny_model(family), tiny_model(family)
    patch.apply(model)
    composed.apply(other)
    assert same_bits(model, other)


def test_the_same_fact_in_layers_that_are_apart_is_refused_since_no_hash_tells_which_came_first(family: str) -> None:
    one, other = edit(tiny_model(family), [(1,)], 0), edit(tiny_model(family), [(2,)], 0)
    with pytest.raises(ValueError, match="nothing shows that it was made after"):
        Patch.compose([one, other])
    assert Patch.compose([one, other_facts(other)]).layers == (1, 2)


def test_a_patch_composed_of_composed_ones_still_says_whether_it_is_of_a_chat(family: str) -> None:
    parts = [edit(tiny_model(family), [(1,)], 0)]
    parts += [other_facts(parts[0]), other_facts(other_facts(parts[0]))]
    asked = [replace(part, settings={**part.settings, "chat": True, "n": n}) for n, part in enumerate(parts)]
    whole = Patch.compose([asked[2], Patch.compose(asked[:2])])
    assert whole.chat
    assert len(whole.settings["composed"]) == 3
    assert not Patch.compose([parts[2], Patch.compose(asked[:2])]).chat


def test_a_patch_is_not_rebased_onto_the_model_that_holds_it(family: str) -> None:
    model = tiny_model(family)
    patch = edit(model, [(1, 2)])
    with pytest.raises(PatchMismatchError, match="holds this patch already"):
        patch.rebase(model)
