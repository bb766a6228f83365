"""Quantized models: read as they compute, edited beside their layers, and never merged, cast or moved."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors import CONTEXTS, FACTS, LAYERS, QUICK, second_moments
from tests.models import NUM_LAYERS, SENTENCES, tiny_model, tiny_tokenizer
from tests.quantized import Broken, Coded, Detached, Packing, Saturating, dense_model, quantized_model
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from factpatch import Editor, Patch, Session, verify
from factpatch.export.changed import write_changed
from factpatch.model.fingerprint import fingerprints
from factpatch.model.language_model import LanguageModel, editable_weights
from factpatch.model.loading import load_language_model
from factpatch.model.quantized import all_held
from factpatch.model.weights import model_hash
from factpatch.patch.compatibility import PatchMismatchError
from factpatch.statistics.corpus import corpus_from
from factpatch.statistics.second_moment import SecondMoment

# Of every way to store a down-projection: with and without bias, transposed, beside and inside an MLP.
KINDS = ("llama", "gpt2", "opt", "gpt_neox")


def logits(model: Any) -> Tensor:
    tokenizer = tiny_tokenizer()
    with torch.inference_mode():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits[0] for text in SENTENCES])


def editor_of(model: Any, method: str = "memit-blue", **options: Any) -> Editor:
    settings = {**QUICK, "solver.weight": 5.0} if method.startswith("memit") else QUICK
    given = {"contexts": CONTEXTS, "second_moments": second_moments(), "progress": False, **options}
    return Editor(model, tiny_tokenizer(), method=method, critical_layers=LAYERS, settings=settings, **given)


def loss(lm: LanguageModel) -> float:
    """The mean negative log-likelihood of the new answers."""
    return sum(fact.nll_new for fact in verify(lm, None, FACTS).after) / len(FACTS)


def projections(model: Any) -> dict[int, Coded]:
    lm = LanguageModel(model, tiny_tokenizer())
    found = {layer: lm.down_projection(layer) for layer in range(lm.num_layers)}
    return {layer: module for layer, module in found.items() if isinstance(module, Coded)}


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_weight_of_a_layer_is_what_it_computes(family: str, dtype: torch.dtype) -> None:
    model = quantized_model(family, dtype=dtype)
    coded = projections(model)
    assert len(coded) == NUM_LAYERS
    for layer, weight in editable_weights(model, range(NUM_LAYERS)).items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, coded[layer].dense.float())
    assert all(module.bias is None or isinstance(module.bias, torch.nn.Parameter) for module in coded.values())


def test_reading_changes_nothing_and_keeps_dense_weights_of_the_layers_asked_for_only() -> None:
    model = quantized_model()
    before, state = logits(model), model.state_dict().keys()
    lm = LanguageModel(model, tiny_tokenizer())
    assert (lm.d_value, lm.d_key, lm.dtype, lm.weight_dtype) == (32, 64, torch.float32, torch.float32)
    assert [name for name, _ in all_held(model)] == []
    lm.weight(2)
    assert lm.weight_hash(1) == lm.weight_hash(1) != lm.weight_hash(2)
    assert [name for name, _ in all_held(model)] == ["model.layers.2.mlp.down_proj"]
    assert torch.equal(logits(model), before)
    assert model.state_dict().keys() == state


@pytest.mark.parametrize("method", ["memit", "pmet", "rect", "alphaedit"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_edit_is_that_of_the_model_with_the_dequantized_weights(family: str, method: str) -> None:
    model = quantized_model(family)
    dense = dense_model(model, family)
    edited, expected = editor_of(model, method), editor_of(dense, method)
    mine, its = edited.edit(FACTS), expected.edit(FACTS)
    assert mine.layers == its.layers
    for layer in its.layers:
        one, other = (patch.batches[0].shifts[layer].matrix() for patch in (mine, its))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
    moved = float((logits(dense) - logits(dense_model(quantized_model(family), family))).abs().max())
    assert moved > 0.1
    torch.testing.assert_close(logits(model), logits(dense), rtol=0, atol=1e-3 * moved)
    assert [fact.exact for fact in verify(edited.lm, None, FACTS).after] == [
        fact.exact for fact in verify(expected.lm, None, FACTS).after
    ]


def test_batches_are_undone_bit_for_bit_and_the_layers_are_never_written() -> None:
    model = quantized_model()
    before, state = logits(model), deepcopy(model.state_dict())
    editor = editor_of(model)
    editor.edit(FACTS[:2])
    first = logits(model)
    editor.edit(FACTS[2:])
    assert not torch.equal(logits(model), first)
    editor.undo()
    assert torch.equal(logits(model), first)
    editor.reset()
    assert torch.equal(logits(model), before)
    assert all(torch.equal(model.state_dict()[name], kept) for name, kept in state.items())


def test_a_patch_is_applied_and_removed_and_held_for_a_while(tmp_path: Path) -> None:
    editor = editor_of(quantized_model())
    editor.edit(FACTS).save(tmp_path / "p")
    after, patch = logits(editor.model), Patch.load(tmp_path / "p")
    model = quantized_model()
    before = logits(model)
    with patch.applied(model):
        assert torch.equal(logits(model), after)
    assert torch.equal(logits(model), before)
    patch.apply(model)
    assert torch.equal(logits(model), after)
    with pytest.raises(PatchMismatchError, match="already holds this patch"):
        patch.apply(model)
    patch.remove(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    with pytest.raises(PatchMismatchError, match="the files of a quantized model do not hold"):
        patch.remove(model, base=tmp_path)
    with pytest.raises(PatchMismatchError, match="Those of a quantized model also depend on"):
        patch.apply(quantized_model(seed=1))


def test_a_patch_of_the_unquantized_model_is_rebased_onto_the_quantized_one() -> None:
    patch = editor_of(tiny_model("llama")).edit(FACTS)
    model = quantized_model()
    before = logits(model)
    with pytest.raises(PatchMismatchError, match="rebase the patch"):
        patch.apply(model)
    rebased = patch.rebase(model)
    assert torch.equal(logits(model), before)
    assert rebased.config["quantization_config"]["quant_method"] == "coded"
    rebased.apply(model)
    assert float((logits(model) - before).abs().max()) > 0.1


def test_a_patch_for_16_bit_weights_is_told_to_be_rebased() -> None:
    patch = editor_of(tiny_model("llama", dtype=torch.bfloat16)).edit(FACTS)
    with pytest.raises(PatchMismatchError, match=r"which is quantized\. Rebase it"):
        patch.apply(quantized_model(dtype=torch.bfloat16))


@pytest.mark.parametrize("precision", ["float32", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_layers_compute_as_always_whatever_the_precision(dtype: torch.dtype, precision: str) -> None:
    # `Coded` takes one dtype only, so another one would raise.
    editor = editor_of(quantized_model(dtype=dtype), precision=precision)
    patch = editor.edit(FACTS)
    assert (patch.weight_dtype, editor.lm.dtype, patch.load_dtype) == (torch.float32, dtype, dtype)
    unedited = LanguageModel(quantized_model(dtype=dtype), tiny_tokenizer())
    assert loss(editor.lm) < loss(unedited)


def test_a_small_shift_is_not_rounded_to_16_bits() -> None:
    model = quantized_model(dtype=torch.bfloat16)
    (weight,) = editable_weights(model, [1]).values()
    weight.add_(1e-4)  # the last place of these weights in bfloat16 is up to 0.002
    shift = weight - projections(model)[1].dense.float()
    torch.testing.assert_close(shift, torch.full_like(shift, 1e-4), rtol=1e-3, atol=0)


def test_an_exact_edit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision='exact': .* is quantized .*Use float32"):
        editor_of(quantized_model(), precision="exact")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Detached, "values cannot be optimized through its layers: .*factpatch rebase MODEL PATCH --out NEW"),
        (Broken, "cannot run here: RuntimeError: no kernel image is available for this device.*export PATCH --to peft"),
    ],
)
def test_a_kind_that_cannot_be_edited_here_is_refused_with_the_way_that_works(kind: type[Coded], said: str) -> None:
    model = quantized_model(kind=kind)
    with pytest.raises(ValueError, match=rf"llama is quantized \(coded\), and {said}"):
        editor_of(model)
    assert not list(all_held(model))


def test_a_kind_without_gradients_can_be_verified_with_a_patch_of_the_original() -> None:
    model = quantized_model(kind=Detached)
    patch = editor_of(tiny_model("llama")).edit(FACTS).rebase(model)
    lm = LanguageModel(model, tiny_tokenizer())
    before = loss(lm)
    with patch.applied(lm):
        assert loss(lm) < before


def test_layers_that_would_be_laid_out_for_inference_are_kept_differentiable() -> None:
    editor = editor_of(quantized_model(kind=Packing))
    editor.edit(FACTS[:2])
    logits(editor.model)
    editor.edit(FACTS[2:])
    expected = editor_of(quantized_model())
    expected.edit(FACTS[:2])
    expected.edit(FACTS[2:])
    assert torch.equal(logits(editor.model), logits(expected.model))


def test_layers_that_are_laid_out_for_inference_already_are_refused() -> None:
    model = quantized_model(kind=Packing)
    logits(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"has run here before: .* Load it again"):
            editor_of(model)


def test_a_layer_that_is_not_linear_is_refused() -> None:
    model = quantized_model(kind=Saturating)
    with pytest.raises(ValueError, match="is no linear map of its input"):
        editable_weights(model, [1])
    assert not list(all_held(model))


def test_it_is_neither_cast_nor_moved() -> None:
    model = quantized_model()
    for argument in ({"dtype": "bfloat16"}, {"device": "meta"}):
        with pytest.raises(ValueError, match=f"{next(iter(argument))}=.*: the model is quantized .*is not moved"):
            load_language_model(model, tiny_tokenizer(), **argument)
    assert load_language_model(model, tiny_tokenizer(), dtype="float32", device="cpu").quantized


def test_it_is_not_saved(tmp_path: Path) -> None:
    editor = editor_of(quantized_model())
    editor.edit(FACTS)
    with pytest.raises(ValueError, match=r"cannot be merged into its weights.*factpatch export PATCH --to peft"):
        editor.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="cannot be merged into its weights"):
        write_changed(editor.model, LAYERS, tmp_path / "changed")
    assert not list(tmp_path.iterdir())


def test_its_hash_depends_on_codes_and_scales_and_what_was_written() -> None:
    hashes = [model_hash(quantized_model())]
    assert model_hash(quantized_model()) == hashes[0]
    for name, index in (("codes", 0), ("scale", 0)):
        model = quantized_model()
        getattr(projections(model)[1], name).view(-1)[index] += 1
        hashes.append(model_hash(model))
    model = quantized_model()
    (weight,) = editable_weights(model, [1]).values()
    assert model_hash(model) == hashes[0]
    weight[0, 0] += 1
    hashes.append(model_hash(model))
    assert len({*hashes}) == len(hashes)


def test_its_second_moments_are_told_apart_by_the_layers_below(tmp_path: Path) -> None:
    corpus = corpus_from(list(SENTENCES))
    plain = LanguageModel(quantized_model(), tiny_tokenizer())
    moment = SecondMoment.read(plain, [1], corpus, 200, tmp_path)[1].matrix
    kept = {path.name for path in tmp_path.iterdir()}
    assert torch.equal(SecondMoment.read(plain, [1], corpus, 200, tmp_path)[1].matrix, moment)
    assert {path.name for path in tmp_path.iterdir()} == kept
    other = quantized_model()
    other.model.layers[0].self_attn.q_proj.scale.mul_(2)
    assert fingerprints(LanguageModel(other, tiny_tokenizer()), [1]) != fingerprints(plain, [1])
    prints = fingerprints(plain, [0, 3])
    plain.weight(2).add_(1)
    assert fingerprints(plain, [0])[0] == prints[0]
    assert fingerprints(plain, [3])[3] != prints[3]


def test_a_session_continues_on_it(tmp_path: Path) -> None:
    editor = editor_of(quantized_model())
    session = Session.create(tmp_path / "s", editor, [FACTS[:2], FACTS[2:]])
    with session.locked():
        session.edit(editor)
    other = editor_of(quantized_model())
    session = Session(tmp_path / "s")
    with session.locked():
        session.attach(other)
        session.edit(other)
    straight = editor_of(quantized_model())
    straight.edit(FACTS[:2])
    straight.edit(FACTS[2:])
    assert torch.equal(logits(other.model), logits(straight.model))


def test_a_copy_of_it_is_edited_alone() -> None:
    model = quantized_model()
    editable_weights(model, [1])
    copy = deepcopy(model)
    before = logits(model)
    editable_weights(copy, [1])[1].add_(1)
    assert torch.equal(logits(model), before)
    assert not torch.equal(logits(copy), before)


def test_a_copy_of_an_edited_one_follows_what_is_written_to_it() -> None:
    model = quantized_model()
    (weight,) = editable_weights(model, [1]).values()
    for _ in range(2):
        weight.add_(0.1)
    edited = logits(model)
    copy = deepcopy(model)
    (its,) = editable_weights(copy, [1]).values()
    # As often as the original was: how often a weight was written must not be taken for what was written.
    for _ in range(2):
        its.sub_(0.1)
    torch.testing.assert_close(logits(copy), logits(quantized_model()), rtol=0, atol=1e-5)
    assert torch.equal(logits(model), edited)
    assert torch.equal(logits(deepcopy(model)), edited)


def test_a_family_with_transposed_weights_is_seen_the_same_way() -> None:
    assert isinstance(tiny_model("gpt2").transformer.h[0].mlp.c_proj, Conv1D)
    assert editable_weights(quantized_model("gpt2"), [0])[0].shape == (32, 64)
