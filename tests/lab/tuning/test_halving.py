"""Successive halving and the order of preference, on made-up numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from factpatch import Fact
from factpatch.lab.tuning.candidates import Candidate, grid, windows
from factpatch.lab.tuning.search import best_of, halving
from factpatch.lab.tuning.trial import Trial


def trial(name: int, score: float, perplexity: float, error: str | None = None, facts: int = 4) -> Trial:
    candidate = Candidate((name,), (), 0.5)
    return Trial(candidate, facts, {}, score, score, score, perplexity, 0.0, error)


def names(trials: Sequence[Trial]) -> list[int]:
    return [made.candidate.critical_layers[0] for made in trials]


def test_among_equally_good_ones_the_gentlest_is_preferred() -> None:
    trials = [trial(0, 90.0, 1.02), trial(1, 89.5, 1.01), trial(2, 85.0, 1.001), trial(3, 99.0, 1.5)]
    assert names(best_of(trials, 1.03, near=1.0)) == [1, 0, 2, 3]


def test_a_failed_edit_comes_last() -> None:
    trials = [trial(0, 0.0, float("inf"), "singular"), trial(1, 50.0, 2.0), trial(2, 40.0, 1.0)]
    assert names(best_of(trials, 1.03, near=1.0)) == [2, 1, 0]


def test_rounds_take_more_facts_and_fewer_candidates() -> None:
    facts = [Fact("{} is", f"S{number}", "new") for number in range(16)]
    candidates = [Candidate((name,), (), 0.5) for name in range(9)]
    made: list[tuple[int, int]] = []

    def measure(candidate: Candidate, some: Sequence[Fact]) -> Trial:
        (name,) = candidate.critical_layers
        made.append((name, len(some)))
        return trial(name, 10.0 * name, 1.0, facts=len(some))

    def order(trials: Sequence[Trial]) -> list[Trial]:
        return best_of(trials, 1.03, near=1.0)

    last = halving(candidates, facts, measure, order, until=time.monotonic() + 60)
    assert names(last) == [8]
    assert made == [*((name, 4) for name in range(9)), *((name, 8) for name in (8, 7, 6)), (8, 16)]


def test_without_time_there_is_one_trial() -> None:
    facts = [Fact("{} is", f"S{number}", "new") for number in range(8)]
    made: list[Any] = []

    def measure(candidate: Candidate, some: Sequence[Fact]) -> Trial:
        made.append(candidate)
        return trial(*candidate.critical_layers, 50.0, 1.0)

    candidates = [Candidate((name,), (), 0.5) for name in range(5)]
    last = halving(candidates, facts, measure, list, until=time.monotonic() - 1)
    assert made == candidates[:1]
    assert names(last) == [0]


@pytest.mark.parametrize("round_failing", [8, 16])
def test_after_a_round_of_failures_the_round_before_decides(round_failing: int) -> None:
    facts = [Fact("{} is", f"S{number}", "new") for number in range(16)]

    def measure(candidate: Candidate, some: Sequence[Fact]) -> Trial:
        error = "out of memory" if len(some) >= round_failing else None
        return trial(*candidate.critical_layers, 50.0, 1.0, error, len(some))

    candidates = [Candidate((name,), (), 0.5) for name in range(9)]
    last = halving(candidates, facts, measure, list, until=time.monotonic() + 60)
    assert {(made.error, made.facts) for made in last} == {(None, round_failing // 2)}


def test_the_usual_candidate_comes_first_and_then_each_single_change() -> None:
    found = grid([(1, 2), (3, 4)], [{"target.clamp": 1.0}, {"target.clamp": 2.0}], [0.9, 0.5])
    assert len(set(found)) == len(found) == 8
    assert found[0] == Candidate((1, 2), (("target.clamp", 1.0),), 0.9)
    usual = found[0]
    for one in found[1:4]:
        differing = [
            one.critical_layers != usual.critical_layers, one.target != usual.target, one.written != usual.written
        ]  # fmt: skip
        assert sum(differing) == 1


def test_windows_fit_into_any_depth() -> None:
    for depth in range(1, 100):
        found = windows(depth)
        assert len(set(found)) == len(found) > 0
        for window in found:
            assert list(window) == list(range(window[0], window[-1] + 1))
            assert 0 <= window[0] <= window[-1] < depth
            assert len(window) == min(5, depth)
