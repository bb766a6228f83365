"""What analyses share, and what they refuse."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors import CONTEXTS
from tests.lab.analysis.tiny import FACTS, LAYERS, tiny_editor, tiny_study
from tests.models import SENTENCES

import factpatch.values.shared as shared
from factpatch import Even
from factpatch.editor import Editor
from factpatch.lab.analysis import bound, edits
from factpatch.lab.analysis.study import Study, TextOptions
from factpatch.methods import METHODS
from factpatch.statistics.second_moment import SecondMoment
from factpatch.values.optimize import optimize_values
from factpatch.values.shared import InBatches, SharedTargets


@pytest.mark.parametrize("method", ["rect", "prune"])
def test_a_method_whose_regularizer_changes_the_shifts_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=f"method='{method}': its regularizer .* analyze the method that it"):
        tiny_study(method)


def test_an_editor_that_forgets_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="remember_keys=False: the bound is of an editor that preserves"):
        Study(tiny_editor(remember_keys=False), FACTS)


@pytest.mark.parametrize("method", ["memit", "alphaedit"])
def test_the_corpus_is_read_once_and_each_layer_factored_once(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path))
    passes, factored = [], []
    solver = type(METHODS[method].solver)
    read, prepare = SecondMoment.read, solver.prepare

    def counted_read(lm: Any, layers: Any, *given: Any, **options: Any) -> Any:
        passes.append(list(layers))
        return read(lm, layers, *given, **options)

    def counted_prepare(self: Any, second_moment: Any) -> Any:
        factored.append(second_moment)
        return prepare(self, second_moment)

    monkeypatch.setattr(SecondMoment, "read", staticmethod(counted_read))
    monkeypatch.setattr(solver, "prepare", counted_prepare)
    words = " ".join(SENTENCES).split()
    corpus = [" ".join(random.Random(place).choices(words, k=30)) for place in range(60)]
    editor = tiny_editor(method, second_moments=None, corpus=corpus, settings={"target.steps": 2})
    study = Study(editor, FACTS[:2], ["even"], 1, TextOptions(facts=0))
    for find in (edits.single_layer, edits.steps, bound.bound):
        find(study)
    assert passes == [list(LAYERS)]
    assert len(factored) == len(LAYERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spreads": ["evn"]}, "spreads=.'evn'.: give some of even, sqrt"),
        ({"spreads": []}, "give some of even, sqrt"),
        ({"batch_size": 0}, "batch_size=0: must be positive"),
        ({"facts": (*FACTS, replace(FACTS[0], target_new="Finnish"))}, "conflict"),
        ({"facts": (FACTS[0], replace(FACTS[1], id=FACTS[0].id))}, "an id of its own"),
    ],
)
def test_unusable_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_study(**options)


def test_batches_of_facts_give_the_values_of_all_at_once(tmp_path: Path) -> None:
    editor = tiny_editor()
    target, lm = editor.method.target, editor.lm
    sizes: list[int] = []

    def counted(lm: Any, facts: Any, *about: Any, **options: Any) -> Any:
        sizes.append(len(facts))
        return optimize_values(lm, facts, *about, **options)

    whole = optimize_values(lm, FACTS, 2, target, CONTEXTS)
    found = InBatches(counted, 2)(lm, FACTS, 2, target, CONTEXTS)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(found.values, whole.values, rtol=1e-9, atol=1e-11)
    assert torch.equal(found.updates, whole.updates)


def test_known_targets_are_not_optimized_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> Study:
        return tiny_study().kept(lambda name, find: find(), SharedTargets(tmp_path, "tiny"))

    first = made().residual(LAYERS[0])
    # Both of a batch that is asked for alone, and of all facts.
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(shared, "optimize_values", None)
    assert torch.equal(made().residual(LAYERS[0]), first)
    alone = made().editor.target_values(FACTS[:2], LAYERS[0])
    assert torch.equal(alone.delta.double(), first[:2])


def test_an_editor_shares_what_it_prepared() -> None:
    editor = tiny_editor("memit-blue")
    editor.prepare()
    other = editor.with_spread(Even())
    assert other.memory(LAYERS[0]).first is editor.memory(LAYERS[0]).first
    # Its own spread did not need the middle layer, whose second moment is there all the same.
    before = editor.lm.weight(LAYERS[1]).clone()
    other.edit(FACTS)
    assert not torch.equal(editor.lm.weight(LAYERS[1]), before)
    assert set(other.edits[0].keys) == set(LAYERS)
    assert editor.edits == []
    other.undo()
    assert torch.equal(editor.lm.weight(LAYERS[1]), before)


def test_an_editor_that_holds_edits_shares_nothing() -> None:
    editor: Editor = tiny_editor()
    editor.edit(FACTS[:1])
    with pytest.raises(ValueError, match="holds edits, which the other would not know of; undo them first"):
        editor.with_spread(Even())


def test_about_lists_everything_that_findings_depend_on() -> None:
    about = tiny_study().about(corpus=None)
    assert about["facts"]["count"] == len(FACTS)
    assert about["method"]["critical_layers"] == list(LAYERS)
    assert about["corpus"] is None
    assert about == tiny_study().about(corpus=None)
    assert about != tiny_study(facts=FACTS[:4]).about(corpus=None)
    assert about != tiny_study(settings={"target.steps": 5}).about(corpus=None)
    assert about != tiny_study(spreads=["even"]).about(corpus=None)
