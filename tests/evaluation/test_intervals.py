"""Errors and intervals: against formulas, against simulated data, and where there is nothing to say."""

import math

import numpy as np
import pytest

from factpatch.evaluation import intervals
from factpatch.evaluation.metrics import harmonic_mean


def values(numbers):
    return {str(index): number for index, number in enumerate(numbers)}


def test_the_standard_error_is_the_sample_deviation_over_the_root_of_n():
    # Deviations -2, 0, 2: variance 8 / 2, error sqrt(4 / 3).
    assert intervals.mean([1.0, 3.0, None, 5.0]) == intervals.Mean(3.0, pytest.approx(math.sqrt(4 / 3)), 3, 1)


def test_a_mean_of_one_fact_has_no_error_and_of_none_no_value():
    assert intervals.mean([2.0, None]) == intervals.Mean(2.0, None, 1, 1)
    assert intervals.mean([None]) == intervals.Mean(None, None, 0, 1)
    assert intervals.mean([]) == intervals.Mean(None, None, 0)


def test_an_interval_of_a_difference_is_about_two_errors_of_the_paired_differences():
    random = np.random.default_rng(1)
    hard = random.normal(50, 20, 400)
    first, second = hard + random.normal(3, 2, 400), hard
    found = intervals.difference(values(first), values(second))
    error = intervals.mean(list(first - second)).error
    assert found.value == pytest.approx((first - second).mean())
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.2 * error)
    assert found.reason is None


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(2)
    covered = 0
    for trial in range(300):
        first, second = random.random((2, 60)) < [[0.7], [0.5]]
        found = intervals.difference(
            values(100.0 * first), values(100.0 * second), seed=trial, level=0.9, resamples=400
        )
        covered += found.low <= 20 <= found.high
    # 0.9 within four standard errors of 300 trials.
    assert abs(covered / 300 - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 300)


def test_an_interval_depends_on_the_seed_alone_and_names_it(monkeypatch):
    first, second = values([1.0, 5.0, 2.0, 8.0]), values([2.0, 1.0, 0.0, 3.0])
    one, two = (intervals.difference(first, second, seed=seed, resamples=200) for seed in (4, 5))
    assert one == intervals.difference(first, second, seed=4, resamples=200)
    assert (one.seed, one.resamples, one.level, one.facts) == (4, 200, 0.95, 4)
    assert (one.low, one.high) != (two.low, two.high)
    assert one.value == two.value


def test_facts_without_a_value_on_either_side_do_not_count():
    first, second = values([1.0, None, 3.0, 9.0]), values([0.0, 5.0, 1.0, None])
    assert intervals.difference(first, second) == intervals.difference(values([1.0, 3.0]), values([0.0, 1.0]))


def test_equal_differences_give_an_interval_of_no_width():
    found = intervals.difference(values([2.0, 3.0, 4.0]), values([1.0, 2.0, 3.0]))
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


def test_the_score_is_the_harmonic_mean_of_the_means_each_over_the_facts_that_have_it():
    efficacy, generalization = values([100.0, 0.0, 100.0]), values([50.0, None, 100.0])
    specificity = values([80.0, 60.0, None])
    found = intervals.score([efficacy, generalization, specificity])
    assert found.value == pytest.approx(harmonic_mean([200 / 3, 75.0, 70.0]))
    assert found.low < found.value < found.high
    assert found.low >= 0


def test_a_metric_of_zero_makes_the_score_zero():
    found = intervals.score([values([0.0, 0.0]), values([100.0, 50.0])])
    assert (found.low, found.value, found.high) == (0.0, 0.0, 0.0)


def test_the_same_method_twice_has_no_difference_in_score():
    metrics = [values([100.0, 0.0, 100.0]), values([50.0, 60.0, 90.0])]
    found = intervals.score_difference(metrics, metrics)
    assert (found.low, found.value, found.high) == (0.0, 0.0, 0.0)
    better = [values([100.0, 100.0, 100.0]), values([60.0, 70.0, 100.0])]
    assert intervals.score_difference(better, metrics).low > 0


def test_resampling_in_parts_draws_as_many(monkeypatch):
    first, second = values(np.arange(50.0)), values(np.zeros(50))
    whole = intervals.difference(first, second, resamples=2000)
    monkeypatch.setattr(intervals, "_ENTRIES", 1000)
    parts = intervals.difference(first, second, resamples=2000)
    assert parts.low == pytest.approx(whole.low, abs=1.0)
    assert parts.high == pytest.approx(whole.high, abs=1.0)


@pytest.mark.parametrize(
    ("numbers", "value", "reason"),
    [([5.0], 5.0, "one fact says nothing about others"), ([], None, "no fact"), ([None], None, "no fact")],
)
def test_too_few_facts_give_no_interval_but_a_reason(numbers, value, reason):
    found = intervals.difference(values(numbers), values([None if one is None else 0.0 for one in numbers]))
    assert (found.value, found.low, found.high) == (value, None, None)
    assert reason in found.reason


def test_a_score_without_one_of_its_metrics_has_a_reason():
    found = intervals.score([values([1.0, 2.0]), values([None, None])])
    assert found.value is found.low is None
    assert "no fact has the values" in found.reason


def test_unusable_arguments_are_refused():
    one = values([1.0, 2.0])
    with pytest.raises(ValueError, match="different facts: '2'"):
        intervals.difference(one, values([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="second: has 1 metrics and first 2"):
        intervals.score_difference([one, one], [one])
    with pytest.raises(ValueError, match=r"metrics=\[\]"):
        intervals.score([])
    with pytest.raises(ValueError, match="level=95"):
        intervals.difference(one, one, level=95)
    with pytest.raises(ValueError, match="resamples=0"):
        intervals.difference(one, one, resamples=0)
