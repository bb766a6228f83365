"""The norm anchor: what is measured on the unedited model, when, and what becomes of a value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors import CONTEXTS, EXACT, FACTS, LAYERS, make

from factpatch import METHODS, Editor, HiddenState, Patch, Session
from factpatch.data import demo_facts
from factpatch.methods import settings_of, with_settings
from factpatch.strategies import AnchoredNorm
from factpatch.values.optimize import optimize_values
from factpatch.values.reading import SubjectRows, read_values

FIRST, LAST = LAYERS[0], LAYERS[-1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def unanchored(method: str = "alphaedit-nas-blue", **options: Any) -> Editor:
    """An editor that has to measure its anchor."""
    return make(method, settings={"target.anchor": (), **options.pop("settings", {})}, **options)


def test_the_mlp_is_to_put_out_the_anchor_along_what_the_descent_found() -> None:
    editor = make("alphaedit-nas-blue", settings={"target.anchor": ((1, 2.5), (3, 4.0))})
    output = read_values(editor.lm, SubjectRows.of(editor.lm, FACTS, CONTEXTS[:1]), FIRST, "mlp")
    hidden = read_values(editor.lm, SubjectRows.of(editor.lm, FACTS, CONTEXTS[:1]), FIRST, "block")
    plain = optimize_values(editor.lm, FACTS, FIRST, editor.method.target.plain, CONTEXTS)
    editor.edit(FACTS)
    found = editor.edits[0].targets[FIRST]
    value = output + plain.delta  # the published v*
    expected = hidden - output + value * (2.5 / value.norm(dim=1))[:, None]
    torch.testing.assert_close(found.values, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((output + found.delta).norm(dim=1), torch.full((len(FACTS),), 2.5, dtype=EXACT))
    # The anchor of the other layer is the one that holds there, and evaluations are those of the descent.
    assert torch.equal(found.evaluations, plain.evaluations)
    assert set(editor.edits[0].targets) == {FIRST, LAST}


def test_a_fact_far_beyond_twice_the_anchor_is_rescaled_like_others() -> None:
    """The published code leaves such a fact out."""
    target = AnchoredNorm(anchor=((1, 0.5),))
    output, delta = torch.tensor([[[3.0, 0.0]]], dtype=EXACT), torch.tensor([[[1.0, 3.0]]], dtype=EXACT)
    change = target.settle(torch.cat([torch.zeros_like(output), output], dim=1), delta)
    torch.testing.assert_close(output[:, 0] + change, torch.tensor([[0.4, 0.3]], dtype=EXACT))


def test_within_the_tolerance_and_without_a_change_values_stay() -> None:
    target = AnchoredNorm(anchor=((1, 4.0),), tolerance=0.25)
    output = torch.zeros(3, 1, 2, dtype=EXACT)
    output[2] = 100.0
    delta = torch.tensor([[[0.0, 3.0]], [[0.0, 2.9]], [[0.0, 0.0]]], dtype=EXACT)
    change = target.settle(torch.cat([output, output], dim=1), delta)
    torch.testing.assert_close(change, torch.tensor([[0.0, 3.0], [0.0, 4.0], [0.0, 0.0]], dtype=EXACT))


def test_the_anchor_is_the_mean_norm_without_the_highest_twentieth() -> None:
    values = torch.arange(1.0, 41.0, dtype=EXACT)[:, None] * torch.tensor([[0.6, 0.8]], dtype=EXACT)
    found = AnchoredNorm().measured({7: values[torch.randperm(40)], 3: values[:19]})
    assert isinstance(found, AnchoredNorm)
    assert found.anchor == ((3, 10.0), (7, 19.5))  # of 19 norms none is dropped, of 40 the two highest


def test_what_is_not_given_is_measured_on_the_shipped_facts_of_the_unedited_model(cache: Path) -> None:
    editor = unanchored()
    facts = demo_facts()
    expected = {}
    for layer in (FIRST, LAST):
        target = HiddenState(steps=4, learning_rate=0.3)
        delta = optimize_values(editor.lm, facts, layer, target, CONTEXTS).delta
        output = read_values(editor.lm, SubjectRows.of(editor.lm, facts, CONTEXTS[:1]), layer, "mlp")
        norms = (output + delta).norm(dim=1).sort().values
        expected[layer] = float(norms[:-1].mean())  # ⌊5 % of 24⌋ = 1
    patch = editor.edit(FACTS[:2])
    anchor = editor.method.target.anchor  # type: ignore[attr-defined]
    assert dict(anchor) == pytest.approx(expected, rel=1e-5)
    assert patch.settings["target"]["anchor"] == [list(pair) for pair in anchor]
    assert len(list((cache / "reference_values").iterdir())) == 2


def test_it_is_measured_once_for_a_model_and_found_again_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    import factpatch.editor as module

    calls: list[int] = []

    def counted(lm: Any, facts: Any, layer: int, *about: Any, **options: Any) -> Any:
        calls.append(layer)
        return optimize_values(lm, facts, layer, *about, **options)

    monkeypatch.setattr(module, "optimize_values", counted)
    first = unanchored()
    known = first.measure()
    assert calls == [FIRST, LAST]
    first.edit(FACTS[:1])
    assert unanchored().measure() == known
    assert len(calls) == 4  # two for the edit, none to measure
    assert unanchored(settings={"target.clamp": 0.5}).measure() != known
    assert unanchored(family="gpt2").measure() != known
    assert unanchored(contexts=("{}",)).measure() != known
    assert unanchored().measure(FACTS) != known
    assert len(calls) == 12


def test_facts_of_ones_own_can_be_measured_and_the_result_be_given_as_a_setting() -> None:
    editor = unanchored()
    known = editor.measure(FACTS)
    assert editor.measure() == known  # nothing is left to measure
    (text,) = [",".join(f"{layer}:{norm}" for layer, norm in known["target.anchor"])]
    given = with_settings(METHODS["alphaedit-nas"], {"target.anchor": text})
    assert settings_of(given)["target"]["anchor"] == known["target.anchor"]
    assert make("memit").measure(FACTS) == {}


def test_a_replay_takes_the_anchor_from_the_patch_and_does_not_measure_it(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = unanchored()
    editor.measure(FACTS)
    patches = [editor.edit([fact]) for fact in FACTS[:2]]
    fresh = unanchored()
    monkeypatch.setattr("factpatch.editor.reference_values", None)
    fresh.replay(Patch.join(patches))
    assert editor.edit(FACTS[2:]).batches[0].after == fresh.edit(FACTS[2:]).batches[0].after
    other = make("alphaedit-nas-blue")  # with an anchor that is given
    with pytest.raises(ValueError, match="other settings: target"):
        other.replay(patches[0])
    refused = unanchored(settings={"solver.l2": 0.7})
    with pytest.raises(ValueError, match="other settings: solver"):
        refused.replay(patches[0])
    assert refused.method.target.anchor == ()  # type: ignore[attr-defined]


def test_a_session_resumes_with_the_anchor_that_it_began_with(tmp_path: Path) -> None:
    whole = unanchored(dtype=torch.float32)
    whole.measure(FACTS)
    expected = [whole.edit([fact]).batches[0].after for fact in FACTS[:2]]
    editor = unanchored(dtype=torch.float32)
    editor.measure(FACTS)
    session = Session.create(tmp_path / "session", editor, [[fact] for fact in FACTS[:2]])
    anchor = session.record["settings"]["target"]["anchor"]
    for _ in range(2):
        session, editor = (
            Session(tmp_path / "session"),
            unanchored(dtype=torch.float32, settings={"target.anchor": anchor}),
        )
        with session.locked():
            session.attach(editor)
            session.edit(editor, ask=False)
    assert [patch.batches[0].after for patch in session.patches()] == expected


def test_an_edited_model_is_not_measured() -> None:
    editor = make("alphaedit-nas", settings={"target.anchor": ((LAST, 2.0),)})
    editor.edit(FACTS[:1])
    with pytest.raises(ValueError, match=r"target\.anchor.*edited already.*layers \[1\]"):
        editor.target_values(FACTS, FIRST)
    editor.undo()
    editor.target_values(FACTS, FIRST)
    assert {layer for layer, _ in editor.method.target.anchor} == {FIRST, LAST}  # type: ignore[attr-defined]


def test_nothing_is_rescaled_against_an_anchor_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="no norm for layer 1"):
        optimize_values(make().lm, FACTS, FIRST, AnchoredNorm(anchor=((3, 1.0),)), CONTEXTS)
    with pytest.raises(ValueError, match="facts: there are none"):
        unanchored().measure([])


@pytest.mark.parametrize("wrong", ["4:0", "4:-1", "4:nan", "4:1,4:2", "-1:2"])
def test_a_senseless_anchor_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"anchor=.*one positive, finite norm for each layer"):
        with_settings(METHODS["alphaedit-nas"], {"target.anchor": wrong})


@pytest.mark.parametrize("wrong", ["4", "4:x", "x:1"])
def test_an_anchor_that_is_no_number_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"setting target\.anchor="):
        with_settings(METHODS["alphaedit-nas"], {"target.anchor": wrong})


def test_another_spread_measures_its_own_layers() -> None:
    from factpatch import Each

    editor = unanchored("alphaedit-nas")
    editor.measure(FACTS)
    made = editor.with_spread(Each())
    made.edit(FACTS[:1])
    assert [layer for layer, _ in made.method.target.anchor] == list(LAYERS)  # type: ignore[attr-defined]
    assert made.method.target.anchor[-1] == editor.method.target.anchor[0]  # type: ignore[attr-defined]


def test_the_plain_target_of_an_anchored_one_shares_its_settings() -> None:
    target = AnchoredNorm(steps=7, clamp=2.0, apart=True, anchor=((1, 2.0),))
    assert target.plain == HiddenState(steps=7, clamp=2.0, apart=True)
    assert replace(target, tolerance=0.1).plain == target.plain
