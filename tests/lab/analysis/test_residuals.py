"""Contribution, similarity and distance of residuals on a tiny model."""

from __future__ import annotations

import pytest
import torch
from tests.lab.analysis.tiny import FACTS, LAYERS, same, state, tiny_study

from factpatch.evaluation.probabilities import score
from factpatch.lab.analysis import residuals
from factpatch.lab.analysis.findings import DIRECT, DISTRIBUTED, Findings
from factpatch.lab.analysis.study import SPREADS, Study
from factpatch.values.optimize import TargetValues


@pytest.fixture(scope="module")
def study() -> Study:
    # Long and far enough to make the new objects likelier.
    return tiny_study(settings={"target.steps": 12, "target.clamp": 4.0, "target.weight_decay": 0.0})


def still(study: Study, layers: tuple[int, ...] = LAYERS) -> Study:
    """The study with residuals of zero at some layers."""
    made = tiny_study()
    for layer in LAYERS:
        found = study.direct(layer)
        delta = torch.zeros_like(found.delta) if layer in layers else found.delta
        present = found.values - found.delta
        made._direct[layer] = TargetValues(present + delta, delta, found.evaluations, found.updates, found.loss)
    return made


def values(findings: Findings, measure: str, **where: object) -> list[float | None]:
    return list(findings.of_facts(measure, **where).values())


@pytest.mark.parametrize("spread", SPREADS)
def test_at_the_last_layer_the_distributed_residual_is_the_direct_one(study: Study, spread: str) -> None:
    found = {(place.residual, place.spread): residual for place, residual in study.residuals(LAYERS[-1])}
    assert torch.equal(found[DISTRIBUTED, spread], found[DIRECT, None])


def test_shares_are_those_of_equation_6() -> None:
    study = tiny_study()
    assert [study.share("even", layer) for layer in LAYERS] == [1 / 3, 1 / 2, 1]
    assert [study.share("sqrt", layer) for layer in LAYERS] == pytest.approx([3**-0.5, 2**-0.5, 1])
    assert study.share("even", 0, last=1) == 1 / 2
    assert study.share("sqrt", 1, last=1) == 1


def test_a_residual_of_zero_contributes_nothing(study: Study) -> None:
    found = residuals.contribution(still(study))
    assert {one.value for one in found.numbers if one.measure == "score"} == {0.0}


def test_the_score_is_what_the_residual_adds_to_the_probability(study: Study) -> None:
    before = state(study)
    found = residuals.contribution(study)
    assert same(study, before)
    unedited = [one.probability for one in score(study.lm, [(fact.text, fact.target_new) for fact in FACTS])]
    for layer in LAYERS:
        for where in ({"residual": DIRECT}, *({"residual": DISTRIBUTED, "spread": spread} for spread in SPREADS)):
            gained, now = (values(found, name, layer=layer, **where) for name in ("score", "probability"))
            assert len(gained) == len(FACTS)
            assert gained == pytest.approx([one - was for one, was in zip(now, unedited, strict=True)], abs=1e-12)
    # What was optimized for it makes the object likelier.
    means = {place: mean.value for (place, name), mean in found.means.items() if name == "score"}
    direct = [value for place, value in means.items() if place.residual == DIRECT]
    assert min(direct) > 0
    assert values(found, "score", layer=LAYERS[-1], residual=DIRECT) == pytest.approx(
        values(found, "score", layer=LAYERS[-1], residual=DISTRIBUTED, spread="sqrt"), rel=1e-9
    )
    assert "layer 2" in residuals.contribution_in_words(found)[0]
    assert residuals.contribution_panels(found)[0].labels == ["direct", "distributed, even", "distributed, sqrt"]


def test_a_vector_is_as_similar_to_itself_as_can_be(study: Study) -> None:
    found = residuals.similarity(study)
    for measure in ("residual", "memory", "last_memory"):
        assert values(found, measure, layer=LAYERS[-1]) == pytest.approx([1.0] * len(FACTS), rel=1e-9)
    below = values(found, "residual", layer=LAYERS[0])
    one, other = (study.direct(layer).delta.double() for layer in (LAYERS[-1], LAYERS[0]))
    assert below == pytest.approx(torch.cosine_similarity(one, other).tolist(), rel=1e-9)
    assert max(below) < 0.999


def test_cosines_are_worked_out_by_row() -> None:
    one = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    other = torch.tensor([[0.0, 2.0], [2.0, 0.0], [1.0, 0.0]])
    found = residuals.cosines(one, other)
    assert found[:2] == pytest.approx([0.0, 0.5**0.5])
    assert found[2] != found[2]


def test_a_fact_that_needs_no_residual_has_no_direction_and_is_counted(study: Study) -> None:
    found = residuals.similarity(still(study, layers=LAYERS[:1]))
    assert values(found, "residual", layer=LAYERS[0]) == [None] * len(FACTS)
    assert None not in values(found, "residual", layer=LAYERS[1])
    assert found.notes == (
        "Each of 5 facts was known at layer 0: its direct residual there is zero and has no direction.",
    )


def test_a_fact_that_was_known_at_the_last_layer_has_its_own_note(study: Study) -> None:
    found = residuals.similarity(still(study, layers=LAYERS[-1:]))
    for layer in LAYERS:
        assert values(found, "residual", layer=layer) == [None] * len(FACTS)
    (note,) = found.notes
    assert note.startswith("Each of 5 facts was known at layer 2: nothing of it is distributed")


def test_distances_are_norms_of_differences(study: Study) -> None:
    found = residuals.distance(study)
    assert values(found, "distance", layer=LAYERS[-1]) == [0.0] * len(FACTS)
    here, last = study.residual(LAYERS[0]), study.residual(LAYERS[-1])
    assert values(found, "distance", layer=LAYERS[0]) == pytest.approx((here - last).norm(dim=1).tolist(), rel=1e-12)
    expected = float(torch.linalg.svdvals(here - last)[0])
    assert values(found, "spectral", layer=LAYERS[0]) == pytest.approx([expected], rel=1e-9)
    expected_errors = (here - last / 3).norm(dim=1).tolist()
    assert values(found, "error", layer=LAYERS[0], spread="even") == pytest.approx(expected_errors, rel=1e-12)
    assert values(found, "error", layer=LAYERS[-1], spread="sqrt") == [0.0] * len(FACTS)
