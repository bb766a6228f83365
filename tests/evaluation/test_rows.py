"""A row per fact and metric, and their means."""

import math
import random

import pytest

from factpatch.evaluation.generation import Generation
from factpatch.evaluation.metrics import harmonic_mean
from factpatch.evaluation.probabilities import Score
from factpatch.evaluation.questions import FORMS
from factpatch.evaluation.readings import Answer, Probe, Reading
from factpatch.evaluation.rows import METRICS, Row, fact_names, rows, summary, text_rows
from factpatch.evaluation.verify import Verification
from factpatch.facts import Fact, Neighbor


def random_fact(dice, index):
    return Fact(
        "The capital of {} is",
        f"Land {index}",
        "Rome",
        dice.choice([None, "Paris"]),
        id=dice.choice([None, f"id {index}"]),
        paraphrases=("p",) * dice.randrange(3),
        neighbors=(Neighbor("n", "Bonn"),) * dice.randrange(4),
    )


def random_reading(dice, fact):
    def scored():
        return Score(dice.random(), 0.5, tuple(dice.random() < 0.5 for _ in range(dice.randrange(1, 4))))

    def probe(true):
        return Probe("p", scored(), scored() if true else None)

    said = ["Rome.", "Paris", "Rome or Paris", "neither", ""]
    return Reading(
        probe(fact.target_true),
        tuple(probe(fact.target_true) for _ in fact.paraphrases),
        tuple(probe(True) for _ in fact.neighbors),
        tuple(Answer(form, "asked", dice.choice(said)) for form in FORMS if dice.random() < 0.8),
    )


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_is_the_mean_of_its_rows(seed):
    dice = random.Random(seed)
    facts = [random_fact(dice, index) for index in range(12)]
    readings = [random_reading(dice, fact) for fact in facts]
    whole = summary(facts, readings)
    assert whole.keys() == {*METRICS, "score"}
    found = rows(facts, readings)
    assert found == Verification(tuple(facts), tuple(readings)).rows()
    assert {(row.fact, row.metric) for row in found} == {
        (name, metric) for name in fact_names(facts) for metric in METRICS
    }
    for metric in METRICS:
        values = [row.value for row in found if row.metric == metric and row.value is not None]
        assert whole[metric] == (pytest.approx(math.fsum(values) / len(values)) if values else None)
    scored = [whole[name] for name in ("efficacy", "generalization", "specificity")]
    assert whole["score"] == harmonic_mean(scored)


def test_a_fact_without_an_id_is_called_by_its_place():
    facts = [Fact("{} is", "A", "b", id="x"), Fact("{} is", "C", "d")]
    assert fact_names(facts) == ["x", "facts[1]"]


def test_facts_with_the_same_id_are_refused():
    facts = [Fact("{} is", "A", "b", id="7"), Fact("{} is", "B", "b"), Fact("{} is", "C", "d", id="7")]
    with pytest.raises(ValueError, match=r"facts\[0\] and facts\[2\] both have the id '7'"):
        rows(facts, [])


class Constant:
    def similarity(self, one, other):
        return 0.25


def test_rows_of_texts_leave_missing_references_missing():
    facts = [Fact("{} is", "A", "b", id="a"), Fact("{} is", "C", "d", id="c")]
    texts = [[Generation("A is", " b, b and b"), Generation("A", "")], [Generation("C", " ")]]
    found = {row[:2]: row.value for row in text_rows(facts, texts, [["reference"], None], Constant(), "greedy_")}
    assert found.keys() == {
        (fact, f"greedy_{name}") for fact in "ac" for name in ("fluency", "consistency", "empty_texts")
    }
    assert found["a", "greedy_consistency"] == 25.0
    assert found["a", "greedy_empty_texts"] == 50.0
    assert found["c", "greedy_consistency"] is found["c", "greedy_fluency"] is None
    assert found["c", "greedy_empty_texts"] == 100.0
    assert Row("a", "consistency", None) in text_rows(facts, texts)
