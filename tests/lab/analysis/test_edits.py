"""Editing single layers and counting steps, on a tiny model that is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.lab.analysis.tiny import FACTS, LAYERS, same, state, tiny_editor, tiny_study

from factpatch import Each, verify
from factpatch.lab.analysis import edits
from factpatch.lab.analysis.findings import DIRECT, DISTRIBUTED, Findings
from factpatch.lab.analysis.study import SPREADS, Study, TextOptions
from factpatch.lab.drawing.charts import UNEDITED
from factpatch.strategies import Step

TEXTS = TextOptions(facts=1, tokens=6)


@pytest.fixture(scope="module")
def study() -> Study:
    return tiny_study(texts=TEXTS, settings={"target.steps": 12, "target.clamp": 4.0, "solver.weight": 0.05})


@pytest.fixture(scope="module")
def findings(study: Study) -> Findings:
    before = state(study)
    found = edits.single_layer(study)
    assert same(study, before)
    return found


def test_every_layer_is_edited_alone_with_each_residual(findings: Findings) -> None:
    places = [(place.layer, place.residual, place.spread) for place, name in findings.means if name == "efficacy"]
    expected: list[Any] = [(None, UNEDITED, None)]
    for layer in LAYERS:
        expected += [(layer, DIRECT, None), *((layer, DISTRIBUTED, spread) for spread in SPREADS)]
    assert places == expected


def test_the_unedited_model_is_measured_as_verify_does(study: Study, findings: Findings) -> None:
    summary = verify(study.lm, None, FACTS, answers=False).summary()
    means = {name: mean.value for (place, name), mean in findings.means.items() if place.residual == UNEDITED}
    for name in ("efficacy", "generalization", "specificity"):
        assert means[name] == pytest.approx(summary[name]["after"])


def test_at_the_last_layer_both_residuals_give_the_same_edit(findings: Findings) -> None:
    for name in ("efficacy", "token_efficacy", "fluency"):
        direct = findings.of_facts(name, layer=LAYERS[-1], residual=DIRECT)
        assert direct
        assert direct == findings.of_facts(name, layer=LAYERS[-1], residual=DISTRIBUTED, spread="even")


def test_a_step_writes_one_layer_with_its_share(study: Study) -> None:
    places = [place for place, _ in study.residuals(LAYERS[0])]
    assert [edits.step_at(study, place) for place in places] == [
        Step(0, 0, 1.0), Step(0, 2, 1 / 3), Step(0, 2, 3**-0.5),
    ]  # fmt: skip


def test_radars_have_a_corner_for_each_metric_that_was_measured(findings: Findings) -> None:
    drawn = edits.single_layer_panels(findings)
    assert [panel.title for panel in drawn] == ["Layer 0 alone", "Layer 1 alone", "Layer 2 alone"]
    for panel in drawn:
        assert panel.labels == ["direct", "distributed, even", "distributed, sqrt", "unedited"]
    corners = list(edits.radar_corners(findings).values())
    for values in corners:
        # There are no reference texts: consistency is missing, and a note says so.
        assert list(values) == ["efficacy", "generalization", "specificity", "fluency"]
        assert all(0 <= value <= 100 for value in values.values())
    assert max(values["fluency"] for values in corners) == 100
    assert any(note.startswith("consistency is missing") for note in findings.notes)
    assert "difference" not in edits.single_layer_in_words(findings)[0]
    assert "[" in edits.single_layer_in_words(findings)[1]


def test_a_part_that_is_kept_is_not_edited_again() -> None:
    kept: dict[str, Findings] = {}
    made: list[str] = []

    def keep(name: str, find: Callable[[], Findings]) -> Findings:
        if name not in kept:
            made.append(name)
            kept[name] = find()
        return kept[name]

    study = tiny_study(facts=FACTS[:2], texts=TextOptions(facts=0))
    study.keep = keep
    first = edits.single_layer(study)
    kinds = ("direct", "distributed-even", "distributed-sqrt")
    assert made == ["unedited", *(f"{layer}-{kind}" for layer in LAYERS for kind in kinds)]
    kept.pop("1-direct")
    assert edits.single_layer(study) == first
    assert made[10:] == ["1-direct"]


def test_steps_are_those_of_an_edit_of_every_layer() -> None:
    study = tiny_study(settings={"target.steps": 6})
    before = state(study)
    found = edits.steps(study)
    assert same(study, before)
    editor = tiny_editor(settings={"target.steps": 6}).with_spread(Each())
    editor.edit(FACTS)
    for layer, targets in editor.edits[0].targets.items():
        assert list(found.of_facts("updates", layer=layer).values()) == targets.updates.tolist()
    assert set(found.of_facts("unfinished", layer=LAYERS[0]).values()) == {100.0}
    assert found.notes == ("A fact stops below a loss of 0.05 nats, and takes at most 5 updates.",)


def test_facts_that_are_known_take_no_step() -> None:
    found = edits.steps(tiny_study(settings={"target.stop_loss": 1000.0}))
    for layer in LAYERS:
        assert set(found.of_facts("updates", layer=layer).values()) == {0.0}
        assert set(found.of_facts("done", layer=layer).values()) == {100.0}
        assert set(found.of_facts("unfinished", layer=layer).values()) == {0.0}
    assert edits.steps_in_words(found)[0] == "Layers [0–2]: [0.00, 0.00, 0.00] updates on average."
