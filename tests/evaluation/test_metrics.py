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


def test_greedy_success_normalizes_white_space_and_minds_case():
    answers = [("New  York City.", "New York"), ("\nParis", "Paris"), ("paris", "Paris"), ("in Paris", "Paris")]
    assert metrics.greedy_success(answers) == 50.0
    assert metrics.greedy_success([]) is None


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
