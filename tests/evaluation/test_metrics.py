"""Every formula against an example worked by hand."""

import pytest

from factpatch.evaluation import metrics


def test_efficacy_counts_facts_whose_new_object_has_the_lower_nll():
    assert metrics.efficacy([(1.0, 2.0), (2.0, 1.0), (0.5, 3.0), (4.0, 5.0)]) == 75.0


def test_a_tie_is_no_success_for_either_object():
    assert metrics.efficacy([(1.0, 1.0)]) == 0.0
    assert metrics.specificity([[(1.0, 1.0)]]) == 0.0


def test_efficacy_leaves_out_facts_without_a_true_object():
    assert metrics.efficacy([(1.0, 2.0), (9.0, None)]) == 100.0
    assert metrics.efficacy([(9.0, None)]) is None
    assert metrics.efficacy([]) is None


def test_generalization_averages_within_a_fact_before_it_averages_facts():
    # One of two, then three of three: (1/2 + 1) / 2, and not 4/5.
    facts = [[(1.0, 2.0), (2.0, 1.0)], [(1.0, 2.0)] * 3]
    assert metrics.generalization(facts) == 75.0


def test_specificity_averages_within_a_fact_before_it_averages_facts():
    # The true object wins in one of four, then in one of one: (1/4 + 1) / 2.
    facts = [[(2.0, 1.0), (1.0, 2.0), (1.0, 2.0), (1.0, 2.0)], [(2.0, 1.0)]]
    assert metrics.specificity(facts) == 62.5


def test_facts_without_probes_do_not_enter_a_mean():
    assert metrics.generalization([[], [(1.0, 2.0)]]) == 100.0
    assert metrics.generalization([[], []]) is None
    assert metrics.specificity([[]]) is None


def test_strict_metrics_want_every_token():
    assert metrics.strict_efficacy([(True, True), (True, False), (False,), (True,)]) == 50.0
    assert metrics.strict_generalization([[(True,), (True, False)], [(True, True)], []]) == 75.0
    assert metrics.strict_specificity([[(True,)], [(False,)]]) == 50.0
    assert metrics.strict_specificity([[], []]) is None


def test_token_accuracy_averages_tokens_then_prompts_then_facts():
    # Fact 1: (1/2 + 1) / 2 = 3/4. Fact 2: 1/4. Together 1/2.
    assert metrics.token_accuracy([[(True, False), (True,)], [(True, False, False, False)]]) == 50.0


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
    assert metrics.exact([(answer, target)]) == 100.0 * exact
    assert metrics.contained([(answer, target)]) == 100.0 * contained


def test_matches_leave_out_facts_that_lack_an_answer_or_an_object():
    answers = [("Paris", "Paris"), ("Rome", "Paris"), (None, "Paris"), ("Paris", None)]
    assert metrics.exact(answers) == metrics.contained(answers) == 50.0
    assert metrics.exact(answers[2:]) is metrics.contained([]) is None


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
    assert metrics.behind(answer, "The capital of France is") == rest


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
    assert metrics.mean_of_means([[], [None]]) is None
