"""Every formula against an example worked by hand; and the metrics of facts, whose means they are."""

import math
import random

import pytest

from factpatch.evaluation import metrics
from factpatch.evaluation.metrics import METRICS, fact_metrics, fact_names, summary
from factpatch.evaluation.readings import FORMS, Answer, Probe, Reading, Score
from factpatch.evaluation.verify import Verification
from factpatch.facts import Fact, Neighbor


def probe(new, true=None, matched=(False,), true_matched=(False,)):
    return Probe("p", Score(new, 0.5, matched), None if true is None else Score(true, 0.5, true_matched))


NEW, TRUE, TIE, ALONE = probe(1.0, 2.0), probe(2.0, 1.0), probe(1.0, 1.0), probe(9.0)


def over(metric, *readings):
    return summary([Fact("{} is", "A", "b")] * len(readings), readings)[metric]


def rewrites(*probes):
    return [Reading(one) for one in probes]


def paraphrased(*groups):
    return [Reading(ALONE, tuple(group)) for group in groups]


def neighbored(*groups):
    return [Reading(ALONE, neighbors=tuple(group)) for group in groups]


def matched(*groups, true=False):
    return [probe(1.0, 1.0, **{"true_matched" if true else "matched": group}) for group in groups]


@pytest.mark.parametrize(
    ("metric", "readings", "expected"),
    [
        # The new object has the lower NLL; a tie is no success, and a fact without a true object does not count.
        ("efficacy", rewrites(NEW, TRUE, NEW, NEW), 75.0),
        ("efficacy", rewrites(TIE), 0.0),
        ("efficacy", rewrites(NEW, ALONE), 100.0),
        ("efficacy", rewrites(ALONE), None),
        ("efficacy", [], None),
        # One of two, then three of three: (1/2 + 1) / 2, and not 4/5. A fact without probes does not enter the mean.
        ("generalization", paraphrased([NEW, TRUE], [NEW] * 3), 75.0),
        ("generalization", paraphrased([], [NEW]), 100.0),
        ("generalization", paraphrased([], []), None),
        # The true object wins in one of four, then in one of one: (1/4 + 1) / 2.
        ("specificity", neighbored([TRUE, NEW, NEW, NEW], [TRUE]), 62.5),
        ("specificity", neighbored([TIE]), 0.0),
        ("specificity", neighbored([]), None),
        # Every token of the wanted object is the most probable one.
        ("strict_efficacy", rewrites(*matched((True, True), (True, False), (False,), (True,))), 50.0),
        ("strict_generalization", paraphrased(matched((True,), (True, False)), matched((True, True)), []), 75.0),
        ("strict_specificity", neighbored(matched((True,), true=True), matched((False,), true=True)), 50.0),
        ("strict_specificity", neighbored([], []), None),
        # Tokens, then prompts, then facts. Fact 1: (1/2 + 1) / 2 = 3/4. Fact 2: 1/4. Together 1/2.
        (
            "token_generalization",
            paraphrased(matched((True, False), (True,)), matched((True, False, False, False))),
            50,
        ),
        ("token_efficacy", rewrites(*matched((True, False), (True, True))), 75.0),
        ("token_specificity", neighbored(matched((True, False, False, False), true=True)), 25.0),
    ],
)
def test_a_metric_over_facts(metric, readings, expected):
    assert over(metric, *readings) == expected


@pytest.mark.parametrize(
    ("answer", "target", "exact", "contained"),
    [
        ("Paris.", "Paris", True, True),
        ("  the \u201cPARIS\u201d!", "Paris", True, True),
        ("St Louis", "St. Louis", True, True),
        ("Paris, the capital", "Paris", False, True),
        ("Parisian", "Paris", False, False),
        ("New Orleans, not York", "New York", False, False),
        ("It is in New  York City.", "New York", False, True),
        ("Stra\u00dfe", "STRASSE", True, True),
        ("", "Paris", False, False),
        ("the", "The The", False, False),
        ("A", "The", False, False),
        ("The", "the", True, True),
        ("?", "?!", False, False),
        ("\u30d1\u30ea\u3067\u3059", "\u30d1\u30ea", False, True),  # "Paris" in Japanese, and the copula
    ],
)
def test_an_answer_matches_word_by_word(answer, target, exact, contained):
    assert metrics.exact_match(answer, target) is exact
    assert metrics.contained_match(answer, target) is contained


def test_matches_leave_out_facts_that_lack_an_answer_or_an_object():
    fact = Fact("The capital of {} is", "France", "Paris")
    said = [Reading(ALONE, answers=(Answer("chat", "asked", text),)) for text in ("Paris", "Rome")] + [Reading(ALONE)]
    found = summary([fact] * 3, said)
    assert found["chat_exact"] == found["chat_contained"] == 50.0
    assert found["chat_exact_true"] is found["prompt_exact"] is found["question_contained"] is None


@pytest.mark.parametrize(
    ("answer", "rest"),
    [
        ("The capital  of France is Rome.", "Rome."),
        ("the Capital of france is: Rome", ": Rome"),
        ("The capital of France isolates", "The capital of France isolates"),
        ("Rome. The capital of France is", "Rome. The capital of France is"),
    ],
)
def test_an_answer_may_repeat_its_prompt_first(answer, rest):
    assert metrics.without_prompt(answer, "The capital of France is") == rest


def test_harmonic_mean():
    assert metrics.harmonic_mean([100.0, 50.0, 25.0]) == pytest.approx(300 / 7)
    assert metrics.harmonic_mean([80.0, 0.0]) == 0.0
    assert metrics.harmonic_mean([80.0, None]) is None
    assert metrics.harmonic_mean([]) is None


def test_harmonic_mean_refuses_negative_values():
    with pytest.raises(ValueError, match=r"-1\.0 is negative"):
        metrics.harmonic_mean([1.0, -1.0])


def test_percent_and_means_of_nothing_are_none():
    assert metrics.percent(None) is None
    assert metrics.percent(0.25) == 25.0
    assert metrics.mean_or_none([None, 1.0, 2.0]) == 1.5
    assert metrics.mean_or_none([]) is None


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
    def tokens():
        return tuple(dice.random() < 0.5 for _ in range(dice.randrange(1, 4)))

    def random_probe(true):
        return probe(dice.random(), dice.random() if true else None, tokens(), tokens())

    said = ["Rome.", "Paris", "Rome or Paris", "neither", ""]
    return Reading(
        random_probe(fact.target_true),
        tuple(random_probe(fact.target_true) for _ in fact.paraphrases),
        tuple(random_probe(True) for _ in fact.neighbors),
        tuple(Answer(form, "asked", dice.choice(said)) for form in FORMS if dice.random() < 0.8),
    )


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_is_the_mean_of_those_of_facts(seed):
    dice = random.Random(seed)
    facts = [random_fact(dice, index) for index in range(12)]
    readings = [random_reading(dice, fact) for fact in facts]
    whole = summary(facts, readings)
    assert whole.keys() == {*METRICS, "score"}
    found = fact_metrics(facts, readings)
    assert found == Verification(tuple(facts), tuple(readings)).rows()
    assert {(row.fact, row.metric) for row in found} == {
        (name, metric) for name in fact_names(facts) for metric in METRICS
    }
    for metric in METRICS:
        values = [row.value for row in found if row.metric == metric and row.value is not None]
        assert whole[metric] == (pytest.approx(math.fsum(values) / len(values)) if values else None)
    scored = [whole[name] for name in ("efficacy", "generalization", "specificity")]
    assert whole["score"] == metrics.harmonic_mean(scored)


def test_a_fact_without_an_id_is_called_by_its_place():
    facts = [Fact("{} is", "A", "b", id="x"), Fact("{} is", "C", "d")]
    assert fact_names(facts) == ["x", "facts[1]"]


def test_facts_with_the_same_id_are_refused():
    facts = [Fact("{} is", "A", "b", id="7"), Fact("{} is", "B", "b"), Fact("{} is", "C", "d", id="7")]
    with pytest.raises(ValueError, match=r"facts\[0\] and facts\[2\] both have the id '7'"):
        fact_metrics(facts, [])


@pytest.mark.parametrize(
    ("answer", "target", "contained"),
    [
        ("वह काला है", "काला", True),
        ("वह कील है", "काला", False),
        ("🇯🇵.", "🇯🇵", True),
        ("🇫🇷🇯🇵", "🇯🇵", True),
        ("🇫🇷", "🇯🇵", False),
        ("written in C++", "C#", False),
        ("written in C#", "C#", True),
        ("in C", "C++", False),
        ("-5 degrees", "5", False),
        ("is -5.", "-5", True),
        ("café", "café", True),
        ("AT&T Inc.", "AT&T", True),
        ("costs $5", "5", True),
    ],
)
def test_vowel_signs_symbols_and_signs_count(answer, target, contained):
    assert metrics.contained_match(answer, target) is contained


def test_a_prompt_without_spaces_that_an_answer_repeats_is_left_out():
    assert metrics.without_prompt("法国的首都是东京", "法国的首都是") == "东京"
    assert metrics.without_prompt("The cat sat", "The ca") == "The cat sat"


def test_several_questions_of_a_fact_count_as_their_mean() -> None:
    one, other = (Fact("{} is in", name, "Rome", "Paris") for name in ("The tower", "The bridge"))
    readings = [
        Reading(answers=(Answer("question", "q", "In Rome."), Answer("question", "r", "Rome, not Paris"))),
        Reading(answers=(Answer("question", "q", "In Rome"), Answer("question", "r", "Oslo"))),
    ]
    found = summary([one, other], readings)
    assert (found["question_contained"], found["question_contained_true"]) == (75.0, 25.0)
    assert found["chat_contained"] is None
