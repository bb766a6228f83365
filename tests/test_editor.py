"""The editing loop on tiny models: every named method, its algebra, undo, and what must leave the model unchanged."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tests.editors import CONTEXTS, EXACT, FACTS, LAYERS, OPTIMIZED, QUICK, SOLVERS, make, second_moments
from tests.models import FAMILIES, INNER, SENTENCES, tiny, tiny_model, tiny_tokenizer
from torch import Tensor

import factpatch.editor as editor_module
import factpatch.patch.history as history_module
import factpatch.values.views as views_module
from factpatch import METHODS, Boundary, Each, Editor, Even, Fact, First, HiddenState, Method, NullSpace, Patch
from factpatch.methods import settings_of
from factpatch.model.weights import restore, snapshot
from factpatch.patch.shift import Dense, Shift
from factpatch.recipe import Recipe, RecipeError
from factpatch.strategies.regularizer import Acts, CapSingularValues, KeepLargest, Regularizer, SparePrincipal
from factpatch.values.reading import SubjectRows, read_keys, read_values

PRUNE = CapSingularValues()
# So little restraint that a total shift exceeds every bound.
FAR = {"target.clamp": 30, "target.learning_rate": 3}
LOOSE = {**FAR, "solver.weight": 0.01}


def state(editor: Editor) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in editor.model.state_dict().items()}


def same(editor: Editor, before: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in editor.model.state_dict().items())


def shifts(patch: Patch) -> dict[int, Tensor]:
    return {layer: shift.matrix() for layer, shift in patch.batches[0].shifts.items()}


# Every family with two methods or more, every method on two families.
@pytest.mark.parametrize(
    ("method", "family"),
    [(method, FAMILIES[(number + shift) % 9]) for number, method in enumerate(OPTIMIZED) for shift in (0, 4)],
)
def test_an_edit_moves_the_target_layer_toward_the_targets_and_undo_restores_every_bit(
    method: str, family: str
) -> None:
    editor = make(method, family, torch.float32)
    before = state(editor)
    last, site = LAYERS[-1], METHODS[method].target.site
    subjects = SubjectRows.of(editor.lm, FACTS, CONTEXTS)
    start = read_values(editor.lm, subjects, last, site)
    patch = editor.edit(FACTS)
    assert not same(editor, before)
    target = editor.edits[0].targets[last].values
    if isinstance(METHODS[method].spread, Boundary):
        # The last target belongs to the activation after the first write.
        start = target - editor.edits[0].targets[last].delta
    with full_weights(editor):
        assert float((read_values(editor.lm, subjects, last, site) - target).norm()) < float((start - target).norm())
    assert set(patch.layers) == {step.layer for step in METHODS[method].spread.steps(LAYERS)}
    editor.undo()
    assert same(editor, before)


@pytest.mark.parametrize("method", OPTIMIZED)
def test_one_batch_equals_the_closed_form(method: str) -> None:
    """The shift of the first written layer, from keys and values read here and the papers' dense formulas."""
    editor = make(method)
    row = editor.method
    step = row.spread.steps(LAYERS)[0]
    subjects = SubjectRows.of(editor.lm, FACTS, CONTEXTS)
    keys = read_keys(editor.lm, subjects, step.layer)
    present = read_values(editor.lm, subjects, step.target_layer, row.target.site)
    before = editor.lm.weight(step.layer).clone()
    found = shifts(editor.edit(FACTS))[step.layer]
    residual = step.share * (editor.edits[0].targets[step.target_layer].values - present)
    _, dense = SOLVERS[type(row.solver)]
    nothing = torch.zeros_like(before)
    expected = dense(row.solver, second_moments()[step.layer], keys, residual, keys[:0], nothing)
    torch.testing.assert_close(found, kept(row, expected, before), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("method", OPTIMIZED)
def test_a_second_batch_preserves_the_keys_of_the_first_as_the_closed_form_says(method: str) -> None:
    editor = make(method)
    step = editor.method.spread.steps(LAYERS)[0]
    moved = shifts(editor.edit(FACTS[:2]))[step.layer]
    earlier = editor.edits[0].keys[step.layer]
    subjects = SubjectRows.of(editor.lm, FACTS[2:], CONTEXTS)
    with full_weights(editor):
        keys = read_keys(editor.lm, subjects, step.layer)
        present = read_values(editor.lm, subjects, step.target_layer, editor.method.target.site)
        before = editor.lm.weight(step.layer).clone()
    found = shifts(editor.edit(FACTS[2:]))[step.layer]
    residual = step.share * (editor.edits[1].targets[step.target_layer].values - present)
    _, dense = SOLVERS[type(editor.method.solver)]
    expected = dense(editor.method.solver, second_moments()[step.layer], keys, residual, earlier, moved)
    torch.testing.assert_close(found, kept(editor.method, expected, before), rtol=1e-8, atol=1e-11)


@contextmanager
def full_weights(editor: Editor) -> Iterator[None]:
    """The weights that a session continues from, if its regularizer makes the model hold something else."""
    weights = editor.lm.weights(LAYERS)
    shown = snapshot(weights)
    restore(weights, editor.history._full)
    yield
    restore(weights, shown)


def kept(row: Method, shift: Tensor, before: Tensor) -> Tensor:
    """What RECT and SPHERE keep by their published rules, written again; others leave the shift of a batch alone."""
    if isinstance(row.regularizer, SparePrincipal):
        rows = torch.stack([neuron / neuron.norm() for neuron in before.double()])
        _, singular, right = torch.linalg.svd(rows)
        shares = singular.square().cumsum(0) / singular.square().sum()
        principal = right[: int((shares <= row.regularizer.share).sum()) + 1]
        return shift @ (torch.eye(len(right), dtype=EXACT) - row.regularizer.strength * principal.T @ principal)
    if not isinstance(row.regularizer, KeepLargest):
        return shift
    change = (shift / (before + 1e-8)).abs()
    threshold = change.flatten().sort().values[int(0.6 * change.numel()) - 1]
    return torch.where(change >= threshold, shift, 0.0)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_in_a_chat_the_new_object_becomes_likelier_after_the_template(
    family: str, bos: bool, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path))
    lm, fact = tiny(family, bos=bos, dtype=EXACT, chat=True), FACTS[1]
    # Of the text around it, or what the edit does to the template's own tokens would matter more in a random model.
    shuffler, words = random.Random(0), " ".join(SENTENCES).split()
    corpus = [lm.frame.wrap(" ".join(shuffler.choices(words, k=12))) for _ in range(40)]
    target = {"steps": 30, "learning_rate": 0.3, "clamp": 4, "kl_factor": 0, "weight_decay": 0}
    settings = {"solver.weight": 1, **{f"target.{name}": value for name, value in target.items()}}
    editor = Editor(lm, settings=settings, critical_layers=(0, 1), contexts=("{}",), corpus=corpus)

    def nll() -> float:
        turn = [{"role": "user", "content": fact.text}]
        asked = lm.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
        said = lm.tokenizer(fact.target_new, add_special_tokens=False)["input_ids"]
        labels = torch.tensor([[-100] * len(asked) + said])
        with torch.no_grad():
            return float(lm.model(input_ids=torch.tensor([asked + said]), labels=labels).loss)

    before = nll()
    editor.edit([fact])
    assert nll() < before - 0.1
    editor.undo()
    assert nll() == before


def test_the_patch_says_whether_it_was_edited_in_a_chat(tmp_path: Any) -> None:
    plain = make().edit(FACTS[:1])
    assert (plain.chat, plain.settings["chat"]) == (False, False)
    assert "frame" not in plain.settings
    options: dict[str, Any] = {"critical_layers": LAYERS, "contexts": CONTEXTS, "second_moments": second_moments()}
    editor = Editor(tiny_model("llama", chat=True), tiny_tokenizer(chat=True), chat=True, settings=QUICK, **options)
    editor.edit(FACTS[:1]).save(tmp_path / "p.safetensors")
    found = Patch.load(tmp_path / "p.safetensors")
    assert (found.chat, found.settings["chat"]) == (True, True)
    assert found.settings["frame"]["before"] == "<|im_start|>user\n"
    assert found.settings["frame"]["after"] == "<|im_end|>\n<|im_start|>assistant\n"
    assert found.settings["contexts"] == list(CONTEXTS)
    again = Editor(tiny_model("llama", chat=True), tiny_tokenizer(chat=True), settings=QUICK, **options)
    with pytest.raises(ValueError, match="other settings: chat"):
        again.replay(found)


def test_keys_that_are_not_remembered_do_not_matter() -> None:
    forgetful, fresh = make(remember_keys=False), make()
    forgetful.edit(FACTS[:2])
    fresh.edit(FACTS[:2])
    second_without = shifts(forgetful.edit(FACTS[2:]))[1]
    second_with = shifts(fresh.edit(FACTS[2:]))[1]
    assert not torch.allclose(second_without, second_with, rtol=1e-6)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.solver.writes(0) == [0]])
def test_the_order_of_facts_does_not_matter(method: str) -> None:
    one, other = shifts(make(method).edit(FACTS)), shifts(make(method).edit(FACTS[::-1]))
    for layer, shift in one.items():
        torch.testing.assert_close(shift, other[layer], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_patch(method: str) -> None:
    one, other = make(method, dtype=torch.float32).edit(FACTS), make(method, dtype=torch.float32).edit(FACTS)
    assert one.batches[0].after == other.batches[0].after


def test_contexts_are_generated_once_from_the_seed_and_kept_with_the_patch() -> None:
    one, same_seed, other = make(contexts=None), make(contexts=None), make(contexts=None, seed=1)
    assert one.contexts == same_seed.contexts != other.contexts
    assert one.contexts[0] == "{}"
    assert len(one.contexts) == 6
    assert all(context.endswith(". {}") and context.count("{}") == 1 for context in one.contexts[1:])
    patch = one.edit(FACTS[:1])
    assert patch.settings["contexts"] == list(one.contexts)
    assert patch.seed == 0


def test_blue_optimizes_the_last_target_after_the_first_write() -> None:
    """The second target starts from an activation that the first write has changed."""
    editor = make("memit-blue")
    subjects = SubjectRows.of(editor.lm, FACTS, CONTEXTS)
    unedited = read_values(editor.lm, subjects, 3, "block")
    editor.edit(FACTS)
    target = editor.edits[0].targets[3]
    assert float((target.values - target.delta - unedited).norm()) > 1e-3
    assert set(editor.edits[0].targets) == {1, 3}


@pytest.mark.parametrize("spread", [Each(), First(), Boundary(), Even()], ids=lambda spread: type(spread).__name__)
def test_any_combination_can_be_built_by_hand(spread: Any) -> None:
    method = Method("mine", HiddenState(), spread, NullSpace())
    patch = make(method).edit(FACTS)
    assert patch.method == "mine"
    assert patch.settings["spread"]["class"] == type(spread).__name__


@dataclass(frozen=True)
class Halved(Regularizer):
    """Keep half of every shift, densely."""

    acts = Acts.BATCH

    def regularize(self, shifts: Mapping[int, Shift], before: Mapping[int, Tensor]) -> dict[int, Shift]:
        return {layer: Dense(shift.matrix() / 2) for layer, shift in shifts.items()}


def test_a_regularizer_acts_on_the_whole_batch_and_keys_are_read_after_it() -> None:
    method = replace(METHODS["memit"], regularizer=Halved())
    plain, halved = make("memit"), make(method)
    before = halved.lm.weight(1).clone()
    full = shifts(plain.edit(FACTS))
    patch = halved.edit(FACTS)
    torch.testing.assert_close(shifts(patch)[3], full[3] / 2)
    torch.testing.assert_close(halved.lm.weight(1) - before, full[1] / 2, rtol=1e-7, atol=1e-12)
    keys = read_keys(halved.lm, SubjectRows.of(halved.lm, FACTS, CONTEXTS), 3)
    assert torch.equal(halved.edits[0].keys[3], keys)


def capped(total: Tensor, original: Tensor) -> Tensor:
    """PRUNE's equation on dense matrices."""
    largest = torch.linalg.svdvals(original)[0]
    left, singular, right = torch.linalg.svd(total, full_matrices=False)
    return left @ torch.diag(torch.where(singular > largest, (singular / largest).log() + largest, singular)) @ right


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("prune", LOOSE),
        ("prune-blue", LOOSE),
        (replace(METHODS["alphaedit"], regularizer=PRUNE), {**FAR, "solver.l2": 0.001}),
        (replace(METHODS["pmet"], regularizer=PRUNE, solver=NullSpace()), {**FAR, "solver.l2": 0.001}),
    ],
    ids=["prune", "prune-blue", "alphaedit with prune", "pmet with the null space and prune"],
)
def test_prune_caps_the_total_shift_of_the_session_from_the_original_weights(
    method: str | Method, settings: dict[str, float]
) -> None:
    editor = make(method, settings=settings)
    original = {layer: editor.lm.weight(layer).clone() for layer in LAYERS}
    summed = {layer: torch.zeros_like(original[layer]) for layer in LAYERS}
    for batch in (FACTS[:2], FACTS[2:]):
        for layer, shift in shifts(editor.edit(batch)).items():
            summed[layer] += shift
        # Read out after every batch, the session continues all the same.
        for layer in editor.patch.layers:
            shown = editor.lm.weight(layer) - original[layer]
            torch.testing.assert_close(shown, capped(summed[layer], original[layer]), rtol=1e-9, atol=1e-11)
            assert not torch.allclose(shown, summed[layer], rtol=1e-3)
    (batch,) = editor.patch.batches
    assert batch.edits == (2, 2)
    assert batch.facts == FACTS


def test_prune_departs_from_the_published_script_which_keeps_the_full_shift_too() -> None:
    """The script adds the capped shift to weights that hold the full one; the paper says that it replaces it."""
    editor = make("prune", settings=LOOSE)
    original = editor.lm.weight(1).clone()
    full = shifts(editor.edit(FACTS))[1]
    published = original + full + capped(full, original)
    torch.testing.assert_close(editor.lm.weight(1), published - full, rtol=1e-9, atol=1e-11)
    assert float((editor.lm.weight(1) - published).norm()) > 0.1 * float(full.norm())


def test_a_read_out_does_not_change_the_edits_that_follow() -> None:
    pruned, plain = make("prune", settings=LOOSE), make("memit", settings=LOOSE)
    for batch in (FACTS[:2], FACTS[2:]):
        assert pruned.edit(batch).batches[0].after == plain.edit(batch).batches[0].after
    assert pruned.patch.batches[0].after != plain.patch.batches[-1].after


def test_a_shift_within_the_bound_is_left_as_it_is() -> None:
    pruned, plain = make("prune", settings={"solver.weight": 1e6}), make("memit", settings={"solver.weight": 1e6})
    pruned.edit(FACTS)
    plain.edit(FACTS)
    for layer in LAYERS:
        torch.testing.assert_close(pruned.lm.weight(layer), plain.lm.weight(layer), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_the_patch_of_a_session_gives_the_very_bits_of_the_model(method: str, tmp_path: Any) -> None:
    editor = make(method, dtype=torch.float32)
    for batch in (FACTS[:2], FACTS[2:]):
        editor.edit(batch)
    editor.patch.save(tmp_path / "p.safetensors")
    fresh = tiny_model("llama")
    Patch.load(tmp_path / "p.safetensors").apply(fresh)
    assert same(editor, fresh.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_a_session_continues_from_its_patches_as_if_it_had_never_ended(method: str, tmp_path: Any) -> None:
    whole, resumed = make(method, dtype=torch.float32), make(method, dtype=torch.float32)
    for index, fact in enumerate(FACTS[:3]):
        patch = whole.edit([fact])
        if index < 2:
            patch.save(tmp_path / "p.safetensors")
            traces = None if whole.rereads(patch.layers) else [whole.edits[-1].traces]
            resumed.replay(Patch.load(tmp_path / "p.safetensors"), traces)
    assert resumed.edit(FACTS[2:3]).batches[0].after == patch.batches[0].after
    assert same(whole, state(resumed))
    unedited = make(method, dtype=torch.float32)
    for _ in range(3):
        resumed.undo()
    assert same(unedited, state(resumed))


def test_a_patch_of_other_settings_or_weights_is_not_replayed() -> None:
    editor, other = make(), make(settings={"solver.weight": 6.0})
    first = editor.edit(FACTS[:2])
    second = editor.edit(FACTS[2:])
    for patch, message in ((first, r"other settings: solver is .*5\.0.* there and .*6\.0"), (second, "solver")):
        before = state(other)
        with pytest.raises(ValueError, match=message):
            other.replay(patch)
        assert same(other, before)
    fresh = make()
    with pytest.raises(ValueError, match="other weights than the model has in layers 1, 3"):
        fresh.replay(second)
    fresh.replay(first)
    fresh.replay(second)
    assert same(editor, state(fresh))


def test_a_replay_that_would_give_other_bits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    patch, fresh = make().edit(FACTS), make()
    before = state(fresh)
    monkeypatch.setattr(history_module, "add_shift", lambda weight, *args: weight.add_(1e-3))
    with pytest.raises(RuntimeError, match="rounds the shifts differently"):
        fresh.replay(patch)
    assert same(fresh, before)
    assert fresh.edits == []


def test_rect_keeps_two_fifths_of_the_entries() -> None:
    shift = make("rect").edit(FACTS).batches[0].shifts[2].matrix()
    assert int((shift != 0).sum()) == shift.numel() - int(0.6 * shift.numel()) + 1


@pytest.mark.parametrize("method", OPTIMIZED)
def test_facts_that_are_known_already_give_no_shift(method: str) -> None:
    """A loss that is below the stop from the start leaves δ at zero, so that the first residual is zero."""
    editor = make(method, settings={"target.stop_loss": 1e6})
    before = state(editor)
    editor.edit(FACTS)
    assert [int(count) for targets in editor.edits[0].targets.values() for count in targets.updates] == [0] * len(
        [fact for targets in editor.edits[0].targets for fact in FACTS]
    )
    for name, value in editor.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-12)


def test_undo_goes_back_edit_by_edit_to_the_very_bits() -> None:
    editor = make("alphaedit-blue", dtype=torch.float32)
    states = [state(editor)]
    for fact in FACTS[:3]:
        editor.edit([fact])
        states.append(state(editor))
    for expected in states[-2::-1]:
        editor.undo()
        assert same(editor, expected)
    with pytest.raises(ValueError, match="nothing to undo"):
        editor.undo()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no more")])
def test_an_interrupted_undo_leaves_the_edited_model_and_can_be_tried_again(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = make(dtype=torch.float32)
    editor.edit(FACTS[:2])
    first = state(editor)
    editor.edit(FACTS[2:])
    second = state(editor)

    def fail(*args: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(history_module, "add_shift", fail)
        with pytest.raises(type(error)):
            editor.undo()
    assert same(editor, second)
    editor.undo()
    assert same(editor, first)


def test_an_undo_that_would_give_other_bits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = make(dtype=torch.float32)
    editor.edit(FACTS[:2])
    editor.edit(FACTS[2:])
    before = state(editor)
    monkeypatch.setattr(history_module, "add_shift", lambda weight, *args: weight.add_(1e-3))
    with pytest.raises(RuntimeError, match="other bits"):
        editor.undo()
    assert same(editor, before)


@pytest.mark.parametrize("method", ["alphaedit-blue", "rect", "prune"])
def test_reset_takes_all_edits_back_at_once_and_writes_no_shift(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    editor, fresh = make(method, dtype=torch.float32), make(method, dtype=torch.float32)
    before = state(editor)
    for fact in FACTS[:3]:
        editor.edit([fact])
    assert not same(editor, before)
    with monkeypatch.context() as patched:
        patched.setattr(history_module, "add_shift", None)
        editor.reset()
        editor.reset()  # with nothing left to take back
    assert same(editor, before)
    assert editor.edits == []
    # Nothing of the earlier edits is remembered.
    assert editor.edit(FACTS[3:]).batches[0].after == fresh.edit(FACTS[3:]).batches[0].after


def test_a_reset_to_other_bits_than_the_unedited_ones_is_refused() -> None:
    editor = make(dtype=torch.float32)
    editor.edit(FACTS[:2])
    editor.edit(FACTS[2:])
    edited = state(editor)
    next(iter(editor.history._unedited.values()))[0, 0] += 1
    with pytest.raises(RuntimeError, match="copies of the unedited weights"):
        editor.reset()
    assert same(editor, edited)
    assert len(editor.edits) == 2


def test_given_second_moments_survive_a_failed_attempt() -> None:
    singular = {layer: torch.zeros(INNER, INNER, dtype=EXACT) for layer in LAYERS}
    editor = make(second_moments=singular)
    for _ in range(2):
        with pytest.raises(ValueError, match="not positive definite"):
            editor.edit(FACTS)


def test_a_model_without_preset_needs_a_corpus() -> None:
    with pytest.raises(ValueError, match="corpus=None"):
        make(second_moments=None)


def test_a_corpus_with_fewer_tokens_than_key_dimensions_is_refused(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="fewer than the 64 dimensions"):
        make(second_moments=None, corpus=["Two words."]).edit(FACTS)


def test_the_patch_says_what_its_second_moment_was_read_from(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path))
    settings = {"solver.weight": 50.0}
    editor = make(second_moments=None, corpus=list(SENTENCES), corpus_tokens=150, settings=settings)
    statistics = editor.edit(FACTS[:1]).settings["second_moment"]
    assert statistics["corpus"].startswith("documents:")
    assert statistics["corpus_tokens"] == 150


def test_a_wrapped_model_is_taken_as_it_is() -> None:
    with pytest.raises(ValueError, match="dtype='float64': a LanguageModel is taken as it is"):
        Editor(tiny("llama"), dtype="float64", critical_layers=LAYERS)


def test_a_refused_model_is_not_moved_to_another_dtype() -> None:
    model = tiny_model("llama").model  # without a head
    with pytest.raises(ValueError, match="has its blocks"):
        Editor(model, tiny_tokenizer(), dtype="float64", critical_layers=LAYERS)
    assert model.dtype == torch.float32


def test_a_prompt_longer_than_the_model_reads_is_refused() -> None:
    editor = make()
    before = state(editor)
    with pytest.raises(ValueError, match="reads 256"):
        editor.edit([Fact("word " * 300 + "{} is", "Messi", "here")])
    assert same(editor, before)


def test_an_undone_edit_is_forgotten() -> None:
    editor, fresh = make(dtype=torch.float32), make(dtype=torch.float32)
    editor.edit(FACTS[:2])
    editor.undo()
    assert editor.edit(FACTS[2:]).batches[0].after == fresh.edit(FACTS[2:]).batches[0].after


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_applying_the_saved_patch_gives_the_very_bits_of_the_edit(dtype: torch.dtype, tmp_path: Any) -> None:
    editor = make("memit-blue", dtype=dtype)
    for batch in (FACTS[:2], FACTS[2:]):
        editor.edit(batch)
    editor.patch.save(tmp_path / "p.safetensors")
    fresh = tiny_model("llama", dtype=dtype)
    Patch.load(tmp_path / "p.safetensors").apply(fresh)
    assert same(editor, fresh.state_dict())


def test_factors_are_float32_and_float64_in_exact_mode() -> None:
    assert {part.dtype for part in make(dtype=torch.bfloat16).edit(FACTS).batches[0].shifts[1].tensors().values()} == {
        torch.float32
    }
    assert {part.dtype for part in make().edit(FACTS).batches[0].shifts[1].tensors().values()} == {torch.float64}


@pytest.mark.parametrize("stage", ["optimize_values", "read_keys", "add_shift"])
@pytest.mark.parametrize("error", [FloatingPointError("not finite"), KeyboardInterrupt(), MemoryError()])
def test_whatever_interrupts_an_edit_the_model_is_restored(
    stage: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = make("memit")
    before = state(editor)
    module = {"add_shift": history_module, "read_keys": views_module}.get(stage, editor_module)
    real, calls = getattr(module, stage), []

    def fail_the_second_time(*args: Any, **kwargs: Any) -> Any:
        calls.append(stage)
        if len(calls) == 2 or stage == "optimize_values":
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(module, stage, fail_the_second_time)
    with pytest.raises(type(error)):
        editor.edit(FACTS)
    assert same(editor, before)
    assert editor.edits == []
    monkeypatch.setattr(module, stage, real)
    editor.edit(FACTS)


def test_an_infinite_key_stops_the_edit_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = make()
    before = state(editor)
    monkeypatch.setattr(views_module, "read_keys", lambda *args: torch.full((4, INNER), float("inf"), dtype=EXACT))
    with pytest.raises(FloatingPointError, match="keys of layer 1"):
        editor.edit(FACTS)
    assert same(editor, before)


def test_a_shift_too_large_for_half_precision_stops_the_edit() -> None:
    editor = make("memit-blue", dtype=torch.float16)
    editor.lm.weight(1)[0, 0] = 65504.0
    before = state(editor)
    editor._solve = lambda *given: {1: Dense(torch.full((32, INNER), 1e5))}  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="float16"):
        editor.edit(FACTS)
    assert same(editor, before)


def test_weights_changed_by_somebody_else_are_noticed() -> None:
    editor = make()
    editor.edit(FACTS[:1])
    editor.lm.weight(1)[0, 0] += 1
    for action in (editor.undo, editor.reset, lambda: editor.edit(FACTS[1:])):
        with pytest.raises(ValueError, match=r"layer 1 were changed outside this editor"):
            action()


def test_contradicting_facts_are_refused_and_nothing_changes() -> None:
    editor = make()
    before = state(editor)
    with pytest.raises(ValueError, match="Messi"):
        editor.edit([FACTS[1], replace(FACTS[1], target_new="football")])
    assert same(editor, before)


def test_a_later_batch_updates_a_fact() -> None:
    editor = make()
    editor.edit(FACTS)
    editor.edit([replace(FACTS[1], target_new="football")])
    assert [fact.target_new for fact in editor.patch.facts if fact.subject == "Messi"] == ["football"]
    assert len(editor.patch.facts) == len(FACTS)


def test_a_model_without_preset_takes_the_nearest_one_over_and_says_so(caplog: Any) -> None:
    moments = second_moments()
    editor = Editor(tiny("llama"), critical_layers=None, contexts=CONTEXTS, second_moments={**moments, 0: moments[1]})
    assert editor.critical_layers == (0, 1, 2, 3)
    (warning,) = [record.getMessage() for record in caplog.records]
    for text in ("no preset for", "SmolLM2-135M", "critical_layers=[0, 1, 2, 3]", "target.steps=8", "--layers"):
        assert text in warning
    assert "solver" not in warning  # which follows from the model's own keys
    origin = {"model": "SmolLM2-135M", "variant": None, "assumed": True}
    assert editor.edit(FACTS[:1]).settings["preset"] == origin


def test_a_method_built_by_hand_on_given_layers_takes_nothing_from_a_preset(caplog: Any) -> None:
    editor = make(METHODS["memit"])
    assert caplog.records == []
    assert editor.method.target.kl_factor == 0.0625
    assert editor.edit(FACTS[:1]).settings["preset"] is None


def test_a_variant_replaces_the_numbers_and_given_settings_replace_the_variants() -> None:
    options: dict[str, Any] = {"critical_layers": LAYERS, "second_moments": second_moments()}
    editor = Editor(tiny("llama"), method="memit-blue", variant="equal-settings", **options)
    assert settings_of(editor.method)["solver"]["weight"] == 500
    editor = Editor(tiny("llama"), variant="equal-settings", settings={"solver.weight": 7}, **options)
    assert settings_of(editor.method)["solver"]["weight"] == 7
    assert editor.method.target.steps == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "alphaedt"}, "Did you mean 'alphaedit'"),
        ({"settings": {"solver.wight": 1}}, "Did you mean 'weight'"),
        ({"settings": {"slover.weight": 1}}, "Did you mean 'solver'"),
        ({"settings": {"solver.weight": "much"}}, "valid number"),
        ({"settings": {"solver.weight": -1}}, "must be positive"),
        ({"variant": "equal-setings"}, "no such variant. Did you mean 'equal-settings'"),
        ({"variant": "equal-settings", "method": METHODS["memit"]}, "a Method is taken as it is"),
        ({"critical_layers": [1, 40]}, "layer 40 does not exist"),
        ({"dtype": "flot32"}, "Did you mean 'float32'"),
        ({"device": "gpu"}, "device='gpu' cannot be used"),
        ({"contexts": ["no slot"]}, "contexts"),
        ({"contexts": ["{}", "two {} {}"]}, "contexts"),
    ],
)
def test_wrong_arguments_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"method": "memit-blue", "critical_layers": LAYERS, **options}
    with pytest.raises(ValueError, match=message):
        Editor(tiny_model("llama"), tiny_tokenizer(), **given)


WORDS = "Rome Paris tower language city "


@pytest.mark.parametrize(
    "fact",
    [
        Fact("{} is", "a" * 100_000, "Rome"),
        Fact(WORDS * 40 + "{} is", "Messi", "Rome"),
        Fact("{} is " + WORDS * 40, "Messi", "Rome"),
        Fact("{} is", "Messi", WORDS * 40),
    ],
    ids=["subject", "before the subject", "after the subject", "target"],
)
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_a_text_longer_than_the_model_reads_is_refused_before_anything_is_run(
    family: str, fact: Fact, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = Editor(tiny_model(family), tiny_tokenizer(), critical_layers=LAYERS, corpus=["Rome is a city."])
    monkeypatch.setattr(editor.model, "forward", None)
    monkeypatch.setattr(type(editor.lm), "body", None)
    with pytest.raises(ValueError, match=rf"takes \d+ tokens.*; {family} reads 256\. Shorten it"):
        editor.edit([FACTS[0], fact])


def test_a_subject_that_is_too_long_in_a_context_is_refused_before_it_is_run() -> None:
    lm = tiny("gpt2")
    long = WORDS * 21  # about 230 tokens
    SubjectRows.of(lm, [Fact(long + "{} is", "Messi", "Rome")], ["{}"])
    with pytest.raises(ValueError, match=r"takes \d+ tokens; gpt2 reads 256"):
        SubjectRows.of(lm, [Fact(long + "{} is", "Messi", "Rome")], ["{}", "As we all know in Rome, " * 3 + "{}"])


def test_a_loaded_model_needs_its_tokenizer() -> None:
    with pytest.raises(ValueError, match="tokenizer=None"):
        Editor(tiny_model("llama"), critical_layers=LAYERS)


def test_a_name_that_cannot_be_loaded_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="cannot be loaded"):
        Editor(str(tmp_path), critical_layers=LAYERS)


def test_the_saved_model_loads_elsewhere_and_a_full_directory_is_refused(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    editor = make(dtype=torch.float32)
    editor.edit(FACTS)
    editor.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert same(editor, loaded.state_dict())
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "model")("Messi")["input_ids"]
        == editor.tokenizer("Messi")["input_ids"]
    )
    with pytest.raises(FileExistsError):
        editor.save_pretrained(tmp_path / "model")


def test_the_second_moment_is_read_from_the_corpus_when_none_is_given(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path))
    editor = make(second_moments=None, corpus=list(SENTENCES), corpus_tokens=150, settings={"solver.weight": 50.0})
    editor.edit(FACTS[:2])
    assert len(list((tmp_path / "second_moment").iterdir())) == 2  # boundary layers only


def test_a_session_does_not_continue_from_what_prune_has_conditioned() -> None:
    editor, fresh = make("prune", settings=LOOSE), make("prune", settings=LOOSE)
    full = editor.edit(FACTS)
    assert (full.batches[0].conditioned, editor.patch.batches[0].conditioned) == (False, True)
    before = state(fresh)
    with pytest.raises(ValueError, match="has conditioned the sum"):
        fresh.replay(editor.patch)
    assert same(fresh, before)


def test_a_replay_rounds_as_the_edit_did() -> None:
    patch = make(dtype=torch.float32).edit(FACTS)
    with pytest.raises(ValueError, match=r"written_dtype is 'torch\.float32' there and 'torch\.bfloat16' here"):
        make(dtype=torch.float32, written_dtype="bfloat16").replay(patch)


def test_an_edit_inside_inference_mode_is_an_edit() -> None:
    outside, inside = make(dtype=torch.float32), make(dtype=torch.float32)
    expected = outside.edit(FACTS).batches[0].after
    with torch.inference_mode():
        assert inside.edit(FACTS).batches[0].after == expected


def test_a_composed_patch_is_replayed_edited_upon_and_undone() -> None:
    first, other = make(dtype=torch.float32), make(dtype=torch.float32)
    before = state(other)
    whole = Patch.compose([first.edit(FACTS[:1]), first.edit(FACTS[1:2])])
    assert not whole.sealed
    other.replay(whole)
    assert other.edits[0].patch.sealed
    other.edit(FACTS[2:])
    other.undo()
    other.undo()
    assert same(other, before)


def test_keys_that_nobody_preserves_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(views_module, "read_keys", lambda *given: calls.append(1) or read_keys(*given))
    make("rect", remember_keys=False).edit(FACTS)
    assert len(calls) == len(LAYERS)


def test_a_method_may_stand_third_and_a_loaded_model_must_be_as_the_recipe_says() -> None:
    lm, given = tiny("llama"), {"contexts": CONTEXTS, "second_moments": second_moments()}
    assert Editor(lm, None, "rect", critical_layers=LAYERS, **given).method.name == "rect"
    with pytest.raises(RecipeError, match=r"dtype='float64': .* is loaded in torch.float32"):
        Editor(lm, recipe=Recipe(critical_layers=LAYERS, dtype="float64"), **given)
