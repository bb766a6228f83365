"""Measurements of a run, from readings made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("sklearn", reason="needs the extra `runs`")

from tests.models import tiny

from factpatch.evaluation.generation import generate_texts
from factpatch.evaluation.metrics import PROBES
from factpatch.evaluation.probabilities import Score
from factpatch.evaluation.readings import Probe, Reading
from factpatch.evaluation.verify import Verification
from factpatch.facts import Fact, Neighbor
from factpatch.lab.runs.config import ConfigError, CurveConfig, TextConfig, config_from
from factpatch.lab.runs.measures import UNTOUCHED, Curve, Facts, Probes, Texts, thirds
from factpatch.lab.runs.plan import Moment, Plan
from factpatch.lab.runs.rows import When

LM: Any = None


def probe(nll_new: float, nll_true: float) -> Probe:
    return Probe("p", Score(nll_new, 0.1, (False,)), Score(nll_true, 0.1, (False,)))


def test_a_neighbor_that_is_edited_itself_does_not_count_in_untouched_specificity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ada = Fact(
        "The mother tongue of {} is",
        "Ada",
        "Finnish",
        "French",
        neighbors=[
            Neighbor("Bo speaks", "French"),
            Neighbor("The tower is in", "Paris"),
            Neighbor("Cy speaks", "French"),
        ],
    )
    tower = Fact("The {} is in", "tower", "Rome", "Paris")
    right, wrong = probe(2.0, 1.0), probe(1.0, 2.0)
    # The one in the middle is what the other fact edits.
    readings = (Reading(right, (), (right, wrong, wrong)), Reading(right))
    monkeypatch.setattr(
        "factpatch.lab.runs.measures.verify", lambda *given, **options: Verification((ada, tower), readings)
    )
    measured = Facts(True, False, {ada: (None, tower, None), tower: ()}).measure(LM, (ada, tower), None)
    found = {(place, metric): value for place, metric, value in measured.numbers}
    assert found[0, "specificity"] == pytest.approx(100 / 3)
    assert found[0, UNTOUCHED] == 50.0
    assert found[1, "specificity"] is found[1, UNTOUCHED] is None
    alone = Facts(True, False, {ada: (None, None, None)})
    monkeypatch.setattr(
        "factpatch.lab.runs.measures.verify", lambda *given, **options: Verification((ada,), readings[:1])
    )
    found = {(place, metric): value for place, metric, value in alone.measure(LM, (ada,), None).numbers}
    assert found[0, UNTOUCHED] == found[0, "specificity"] == pytest.approx(100 / 3)


def test_no_texts_are_written_about_others_in_place_of_facts_that_were_replaced() -> None:
    facts = [
        Fact("The {} is in", name, "Rome", generation_prompts=[f"The {name} is"]) for name in ("tower", "city", "sea")
    ]
    texts = Texts(TextConfig(facts=2, tokens=4), frozenset(facts[:2]), 0, None, None)
    assert {place for place, _, _ in texts.measure(tiny("gpt2"), facts, None).numbers} == {0, 1}
    left = texts.measure(tiny("gpt2"), facts[1:], None)
    assert {text["prompt"] for _, text in left.texts} == {"The city is"}


def test_one_run_writes_sampled_and_greedy_texts_and_tells_them_apart() -> None:
    lm = tiny("gpt2")
    facts = [Fact("The {} is in", "tower", "Rome", generation_prompts=["The tower is", "The city of"])]
    about = frozenset(facts)
    both = Texts(TextConfig(sampling=("top-k", "greedy"), tokens=6), about, 3, None, None).measure(lm, facts, None)
    assert {metric for _, metric, _ in both.numbers} == {
        prefix + name for prefix in ("", "greedy_") for name in ("fluency", "consistency", "empty_texts")
    }
    for sampling, top_k in (("top-k", 5), ("greedy", 1)):
        written = generate_texts(lm, [facts[0].generation_prompts], max_new_tokens=6, top_k=top_k, seed=3)
        assert [text["said"] for _, text in both.texts if text["sampling"] == sampling] == [
            one.said for one in written[0]
        ]
    (greedy,) = {metric for _, metric, _ in both.numbers if metric.endswith("y_fluency")}
    alone = Texts(TextConfig(sampling=("greedy",), tokens=6), about, 3, None, None).measure(lm, facts, None)
    assert {metric: value for _, metric, value in alone.numbers}[greedy] == {
        metric: value for _, metric, value in both.numbers
    }[greedy]


def test_probes_are_measured_at_the_end_against_the_objects_of_all_facts_of_the_run() -> None:
    pool = [
        Fact("The mother tongue of {} is", name, new, true)
        for name, new, true in (
            ("Ada", "Finnish", "French"),
            ("Rome", "English", "Italian"),
            ("Bo", "Finnish", "Greek"),
        )
    ]
    lm = tiny("gpt2")
    some, one = (Probes(tuple(pool)).measure(lm, facts, None) for facts in (pool, pool[:1]))
    found = {(place, metric): value for place, metric, value in one.numbers}
    assert {metric for _, metric in found} == set(PROBES)
    assert found[0, "choice"] is not None
    assert found[0, "ripple_multi_hop"] is None
    assert found == pytest.approx({(place, metric): value for place, metric, value in some.numbers if place == 0})
    assert [(place, text["form"]) for place, text in one.texts] == [(0, "negated"), (0, "reversed")]
    assert [Probes(()).due(Moment(when, (), 0)) for when in (When.WRITTEN, When.END)] == [False, True]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("greedy", ("greedy",)), ("top-k", ("top-k",)), (["greedy", "top-k"], ("greedy", "top-k"))],
)
def test_one_sampling_or_several_may_be_given(given: Any, expected: tuple[str, ...]) -> None:
    record = {"model": "m", "methods": ["memit"], "datasets": ["a.json"], "evaluate": {"text": {"sampling": given}}}
    text = config_from(record).evaluate.text
    assert text is not None
    assert text.sampling == expected


@pytest.mark.parametrize("given", [[], ["greedy", "greedy"], ["beam"], 3])
def test_other_samplings_are_refused(given: Any) -> None:
    record = {"model": "m", "methods": ["memit"], "datasets": ["a.json"], "evaluate": {"text": {"sampling": given}}}
    with pytest.raises(ConfigError, match=r"evaluate\.text\.sampling"):
        config_from(record)


@pytest.mark.parametrize("number", range(1, 14))
@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_the_first_the_middle_and_the_last_facts_are_the_same_among_those_of_any_part(number: int, count: int) -> None:
    """So a measurement that is given only the facts of a point finds its parts again."""
    items = list(range(number))
    parts = thirds(items, count)
    assert parts["first"] == items[:count]
    assert parts["last"] == items[-count:]
    assert {len(part) for part in parts.values()} == {min(number, count)}
    assert abs((parts["middle"][0] + parts["middle"][-1]) - (number - 1)) <= 1  # as many before as after, but for one
    assert thirds(sorted({*parts["first"], *parts["middle"], *parts["last"]}), count) == parts


@pytest.mark.parametrize(
    ("at", "points"), [(100, [100, 200, 300]), ([60, 230], [100, 250]), ([1, 2, 50], [50]), ([1000], [])]
)
def test_the_points_of_a_curve_are_the_batches_that_reach_them(at: Any, points: list[int]) -> None:
    config = CurveConfig(at=at)
    assert [edits for edits in range(50, 301, 50) if config.due(edits - 50, edits)] == points


def test_a_point_of_a_curve_asks_a_bounded_number_of_facts_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tuple(Fact("{} is in", f"place {number}", "Rome", "Paris") for number in range(9))
    facts = (*facts, facts[0])  # replaced at the end
    method = config_from({"model": "m", "methods": ["memit"], "datasets": ["a.json"]})
    plan = Plan(method.methods[0], method.datasets[0], 0, facts, 5, Path(), Path())
    curve = Curve(CurveConfig(at=5, facts=1, generation=False))
    assert [plan.written(1), curve.due(plan.written(1))] == [Moment(When.WRITTEN, range(5), 5, 1), True]
    assert curve.places(plan, plan.written(1)) == [0, 2, 4]
    assert curve.places(plan, plan.end(2)) == [1, 5, 9]
    assert curve.places(plan, plan.before) == [1, 5, 9]

    def readings(lm: Any, facts: Any, answers: bool) -> list[Reading]:
        assert not answers
        scores = (Score(nll, 0.5, (nll < 1.0,)) for nll in (0.5, 2.0, 0.5))
        return [Reading(Probe("", new, Score(1.0, 0.1, (False,))), (), (), ()) for new in scores]

    monkeypatch.setattr("factpatch.lab.runs.measures.read_facts", readings)
    found = {metric: value for _, metric, value in curve.measure(LM, facts[:3], None).numbers}
    assert [found[f"curve.{part}.efficacy"] for part in ("first", "middle", "last")] == [100.0, 0.0, 100.0]
    assert found["curve.all.strict_efficacy"] == pytest.approx(200 / 3)
