"""A subject that is the first token of a text has a value and a key of its own in the first layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors import CONTEXTS, make, second_moments
from tests.models import tiny

from factpatch import Editor, Fact, Patch
from factpatch.strategies.target import HiddenState
from factpatch.values.descent import Loss
from factpatch.values.reading import SubjectRows, read_last
from factpatch.values.views import FIRST_LAYER, first_token_keys, other_first_tokens, views_of

LAYERS = (1, 3)
INSIDE = Fact("The mother tongue of {} is", "Danielle Darrieux", "English")
BEGINS = Fact("{} works in the field of", "Ada Lovelace", "football")
ALONE = Fact("{} is in the", "The", "city")  # one token
APART = {"target.apart": True}


def editor(**options: object) -> Editor:
    moments = second_moments(layers=(FIRST_LAYER, *LAYERS))
    chosen = {
        "critical_layers": LAYERS,
        "second_moments": moments,
        "settings": APART,
        "dtype": torch.float32,
        **options,
    }
    return make(**chosen)  # type: ignore[arg-type]


def keys_of(made: Editor, text: str, end: int, layer: int) -> torch.Tensor:
    ids = made.tokenizer(text[:end])["input_ids"]
    return read_last(made.lm, [ids], layer, "down_projection", "inputs")[0]


def test_without_the_setting_a_fact_has_one_view_of_all_contexts() -> None:
    lm = tiny("llama")
    main, first = views_of(lm, [INSIDE, BEGINS, ALONE], CONTEXTS, HiddenState(), apart=False)
    assert first is None
    (view,) = main.parts
    assert (view.contexts, view.rows) == (CONTEXTS, (0, 1, 2))
    assert view.subjects == SubjectRows.of(lm, [INSIDE, BEGINS, ALONE], CONTEXTS)


@pytest.mark.parametrize("how", [{"bos": True}, {"chat": True}])
def test_after_bos_or_a_chats_template_no_subject_begins_a_text(how: dict[str, bool]) -> None:
    main, first = views_of(tiny("llama", **how), [INSIDE, BEGINS, ALONE], CONTEXTS, HiddenState(), apart=True)
    assert (len(main.parts), first) == (1, None)


def test_a_first_token_is_written_to_the_first_layer_and_elsewhere_after_the_prefixes() -> None:
    made = editor()
    assert len(made.tokenizer(ALONE.subject)["input_ids"]) == 1
    main, first = views_of(made.lm, [ALONE, INSIDE], CONTEXTS, HiddenState(), apart=True)
    assert first is not None
    torch.testing.assert_close(first.keys(made.lm, FIRST_LAYER)[0], keys_of(made, ALONE.text, 3, FIRST_LAYER))
    more = (*CONTEXTS, "A city. {}", "The man. {}")
    several, _ = views_of(made.lm, [ALONE], more, HiddenState(), apart=True)
    keys = []
    for context in more[1:]:
        end = context.index("{}") + len(ALONE.subject)
        keys.append(keys_of(made, context.replace("{}", ALONE.text), end, 1))
    torch.testing.assert_close(several.keys(made.lm, 1)[0], torch.stack(keys).mean(dim=0))
    whole, _ = views_of(made.lm, [INSIDE, BEGINS], CONTEXTS, HiddenState(), apart=False)
    main, _ = views_of(made.lm, [INSIDE, ALONE, BEGINS], CONTEXTS, HiddenState(), apart=True)
    torch.testing.assert_close(main.keys(made.lm, 1)[[0, 2]], whole.keys(made.lm, 1))


@pytest.mark.parametrize("method", ["memit-blue", "alphaedit", "pmet-blue", "rect-blue", "prune-blue"])
def test_the_first_layer_is_written_only_for_first_tokens_and_undone_to_the_bit(method: str) -> None:
    made = editor(method=method)
    before = {layer: made.lm.weight(layer).clone() for layer in range(made.lm.num_layers)}
    spread = made.written_layers
    assert made.edited_layers == [FIRST_LAYER, *spread]
    assert list(made.edit([BEGINS, INSIDE]).layers) == spread
    assert list(made.edit([ALONE, Fact("The capital of {} is", "Finland", "Rome")]).layers) == [FIRST_LAYER, *spread]
    made.undo()
    made.undo()
    assert all(torch.equal(made.lm.weight(layer), weight) for layer, weight in before.items())


def test_other_first_tokens_move_less_than_without_care_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(made: Editor) -> float:
        keys = first_token_keys(made.lm, range(0, 200, 3))
        made.edit([ALONE])
        change = made.edits[-1].patch.batches[0].shifts[FIRST_LAYER].matrix()
        return float((keys.cpu() @ change.T.to(keys.dtype)).norm())

    careful = moved(editor())
    monkeypatch.setattr("factpatch.editor.first_token_keys", lambda *given: 0 * first_token_keys(*given))
    assert careful < 0.5 * moved(editor())


def test_a_first_token_that_is_edited_is_not_among_those_that_keep_their_values() -> None:
    lm = tiny("gpt2")
    _, first = views_of(lm, [ALONE], CONTEXTS, HiddenState(), apart=True)
    assert first is not None
    (own,) = lm.tokenizer(ALONE.subject)["input_ids"]
    others = other_first_tokens(lm, first)
    assert own not in others
    assert len(others) > 100
    assert not {*others} & {*lm.tokenizer.all_special_ids}


def test_given_second_moments_without_the_first_layer_leave_first_tokens_as_published() -> None:
    assert editor(second_moments=second_moments(layers=LAYERS)).edited_layers == [1, 3]


def test_exact_mode_and_a_first_layer_that_is_critical_keep_the_published_keys() -> None:
    assert editor(dtype=torch.float64).edited_layers == [1, 3]
    moments = second_moments(layers=(0, 2))
    assert editor(critical_layers=(0, 2), second_moments=moments).edited_layers == [0, 2]


def test_replaying_a_patch_remembers_the_same_keys(tmp_path: Path) -> None:
    facts = [ALONE, BEGINS, INSIDE]
    made = editor()
    made.edit(facts).save(tmp_path / "p.safetensors")
    again = editor()
    again.replay(Patch.load(tmp_path / "p.safetensors"))
    for layer, keys in made.edits[-1].keys.items():
        torch.testing.assert_close(again.edits[-1].keys[layer], keys)
    more = [Fact("{} plays the sport of", "Messi", "basketball"), Fact("{} speaks", "A", "English")]
    one, other = made.edit(more), again.edit(more)
    assert one.layers == other.layers
    for layer in one.layers:
        torch.testing.assert_close(one.batches[0].shifts[layer].matrix(), other.batches[0].shifts[layer].matrix())


@pytest.mark.parametrize("predicted", [False, True])
def test_what_is_predicted_is_finished_sooner(predicted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Loss.evaluate

    def told(*arguments: Any, **options: Any) -> Any:
        found = evaluate(*arguments, **options)
        return replace(found, predicted=torch.full_like(found.predicted, predicted))

    monkeypatch.setattr(Loss, "evaluate", told)
    settings = {"target.steps": 5, "target.enough_steps": 2, "target.stop_loss": 0.0}
    found = editor(settings=settings).target_values([BEGINS, INSIDE], 3)
    assert found.evaluations.tolist() == ([2, 2] if predicted else [5, 5])
