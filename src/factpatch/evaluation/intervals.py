"""How sure a mean over facts is: standard errors, and bootstrap intervals of scores and differences.

Facts are the sample, however many prompts each has: values of single facts are given, and facts are resampled. Nothing
here covers what another seed of the edit would give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Values = Mapping[str, float | None]
"""A metric's value for each fact, by the fact's name; None where it has none."""

RESAMPLES = 10_000
LEVEL = 0.95
_ENTRIES = 2**22
"""Values drawn at once."""


@dataclass(frozen=True)
class Mean:
    """A mean over facts."""

    value: float | None
    """The mean; None without facts."""
    error: float | None
    """Its standard error: the sample standard deviation (n − 1) over √n. None for fewer than 2 facts."""
    facts: int
    """n, how many facts have a value."""
    missing: int = 0
    """How many have none."""


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval of a number that is computed from facts."""

    value: float | None
    """The number itself; None where it cannot be computed."""
    low: float | None
    """The interval's lower end; None where there is none."""
    high: float | None
    """Its upper end."""
    facts: int
    """How many facts it rests on."""
    level: float
    """The share of resampled numbers between the ends."""
    resamples: int
    """How often the facts were resampled."""
    seed: int
    """Of the resampling."""
    reason: str | None = None
    """Why there is no interval; None where there is one."""

    def text(self, form: str = ".2f", sign: bool = False) -> str:
        """Return `+3.10 [0.42, 5.91]`; the number alone if there is no interval, a dash if there is no number.

        Args:
            form: The format of each number.
            sign: Whether the number, as a difference, has its sign even where it is not negative.
        """
        if self.value is None or math.isnan(self.value):
            return "–"
        number = format(self.value, f"{'+' if sign else ''}{form}")
        if self.low is None or self.high is None:
            return number
        return f"{number} [{self.low:{form}}, {self.high:{form}}]"


def mean(values: Sequence[float | None]) -> Mean:
    """Return the mean and the standard error of the values that are not None, one value for each fact."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        return Mean(None, None, 0, len(values))
    error = float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else None
    return Mean(float(known.mean()), error, len(known), len(values) - len(known))


def difference(
    first: Values, second: Values, *, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """Return first − second, the difference of the means of two methods on the same facts, with its interval.

    Facts are resampled in pairs, so that what makes a fact hard for both methods cancels. A fact that lacks a value on
    either side does not count.

    Raises:
        ValueError: The two are about different facts, or `level` or `resamples` is out of range.
    """
    pairs = _table([first, second])
    return _bootstrap(pairs[:, :1] - pairs[:, 1:], lambda means: means[:, 0], seed, level, resamples)


def score(metrics: Sequence[Values], *, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES) -> Interval:
    """Return the harmonic mean S of some metrics' means, with its interval.

    Every resample of facts gives all metrics, which are correlated. A metric's mean is over the facts that have it.

    Args:
        metrics: Efficacy, generalization and specificity of the same facts.

    Raises:
        ValueError: The metrics are about different facts, or `level` or `resamples` is out of range.
    """
    return _bootstrap(_table(metrics), _harmonic, seed, level, resamples)


def score_difference(
    first: Sequence[Values],
    second: Sequence[Values],
    *,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return S of one method − S of another on the same facts, with its interval; facts are resampled in pairs.

    Raises:
        ValueError: The metrics are about different facts, or `level` or `resamples` is out of range.
    """
    half = len(first)
    if half != len(second):
        raise ValueError(f"second: has {len(second)} metrics and first {half}; give the same ones.")

    def apart(means: Floats) -> Floats:
        return _harmonic(means[:, :half]) - _harmonic(means[:, half:])

    return _bootstrap(_table([*first, *second]), apart, seed, level, resamples)


def _table(metrics: Sequence[Values]) -> Floats:
    """Metrics as (facts, metrics), NaN for None."""
    if not metrics:
        raise ValueError("metrics=[]: give at least one.")
    names = list(metrics[0])
    if different := {name for values in metrics for name in {*names} ^ {*values}}:
        other = min(different)
        raise ValueError(f"the metrics are about different facts: {other!r} is not among all; give the same facts.")
    columns = [[math.nan if values[name] is None else values[name] for name in names] for values in metrics]
    return np.array(columns, dtype=np.float64).reshape(len(metrics), len(names)).T


def _harmonic(means: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        # 1 / ∞ = 0: as in `metrics.harmonic_mean`, one 0 makes the whole 0.
        found: Floats = means.shape[1] / (1 / means).sum(axis=1)
    return found


def _bootstrap(
    table: Floats, statistic: Callable[[Floats], Floats], seed: int, level: float, resamples: int
) -> Interval:
    """Return the percentile interval of a statistic of column means.

    Args:
        table: (facts, columns), NaN where a fact lacks a value.
        statistic: From means, (resamples, columns), to numbers, (resamples,).
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: give a share between 0 and 1, such as 0.95.")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: give at least 1, better some thousands.")
    table = table[~np.isnan(table).all(axis=1)]
    facts = len(table)
    value = float(statistic(_means(table[None]))[0])

    def without(value: float | None, reason: str) -> Interval:
        return Interval(value, None, None, facts, level, resamples, seed, reason)

    if math.isnan(value):
        return without(None, "no fact has the values that it is computed from")
    if facts < 2:
        return without(value, "one fact says nothing about others; give at least 2")
    random = np.random.default_rng(seed)
    step = max(1, _ENTRIES // table.size)
    drawn = [
        statistic(_means(table[random.integers(facts, size=(min(step, resamples - first), facts))]))
        for first in range(0, resamples, step)
    ]
    # A draw may hold no fact with some metric: it says nothing.
    low, high = np.nanquantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), facts, level, resamples, seed)


def _means(tables: Floats) -> Floats:
    """(resamples, facts, columns) to (resamples, columns): the mean of what is there, NaN where nothing is."""
    present = ~np.isnan(tables)
    with np.errstate(invalid="ignore"):
        found: Floats = np.where(present, tables, 0.0).sum(axis=1) / present.sum(axis=1)
    return found
