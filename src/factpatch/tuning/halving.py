"""Successive halving: many candidates on few facts, the better ones on more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from factpatch.facts import Fact
from factpatch.tuning.candidates import Candidate
from factpatch.tuning.trial import Trial

# Of each round one in so many goes on, on this many times as many facts. Source: arXiv:1502.07943, with η = 3.
KEPT = 3
GROWTH = 2
ROUNDS = 3


def best_of(trials: Sequence[Trial], most_perplexity: float, near: float) -> list[Trial]:
    """Trials in the order of preference.

    First those that keep to the perplexity allowed. Among these, those within `near` points of the best S count as
    equally good, since so few facts do not tell them apart, and the one with the lowest perplexity is preferred; behind
    them come the others by S. Trials over the limit come last, by perplexity.

    Args:
        most_perplexity: edited over unedited.
        near: points of S.
    """
    allowed = [trial for trial in trials if trial.error is None and trial.perplexity <= most_perplexity]
    highest = max((trial.score for trial in allowed), default=0.0)

    def rank(trial: Trial) -> tuple[int, float]:
        if trial not in allowed:
            return 2, trial.perplexity
        return (0, trial.perplexity) if trial.score >= highest - near else (1, -trial.score)

    return sorted(trials, key=rank)


def halving(
    candidates: Sequence[Candidate],
    facts: Sequence[Fact],
    measure: Callable[[Candidate, Sequence[Fact]], Trial],
    order: Callable[[Sequence[Trial]], list[Trial]],
    until: float,
    tried: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Measure candidates in rounds and return the trials of the last round that has any that succeeded, best first.

    Args:
        candidates: the most usual first. Where time runs out, those at the end are not tried.
        facts: the last round takes all of them, each round before it `GROWTH` times fewer.
        measure: makes a trial.
        order: puts trials in the order of preference.
        until: when, by `time.monotonic`, all rounds should be over; each gets an equal part of the time, and what
            earlier ones left. A trial that has begun is finished, and none begins afterwards but the first of all.
        tried: called after each trial.
    """
    best: list[Trial] = []
    for number in range(ROUNDS):
        left = ROUNDS - number
        part = facts[: max(2, len(facts) // GROWTH ** (left - 1))]
        stop = time.monotonic() + (until - time.monotonic()) / left
        trials: list[Trial] = []
        longest = 0.0
        for candidate in candidates:
            begin = time.monotonic()
            if begin + longest > stop and (best or trials):
                break
            trials.append(measure(candidate, part))
            tried(trials[-1])
            longest = max(longest, time.monotonic() - begin)
        if best and all(trial.error is not None for trial in trials):  # or there are none
            break
        best = order(trials)
        candidates = [trial.candidate for trial in best[: max(1, len(best) // KEPT)]]
    return best
