"""How sure a run is that one method differs from another: both on the same facts, with bootstrap intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from factpatch.evaluation.intervals import Interval, Values, difference, score, score_difference
from factpatch.runs.outcomes import Outcome
from factpatch.runs.tables import Column

SCORED = ("Efficacy", "Generalization", "Specificity")
"""The headers of the columns whose harmonic mean is the score."""

Verdict = Literal["better", "worse", "no clear difference"]


@dataclass(frozen=True)
class Contrast:
    """One number of a method minus that of another."""

    label: str
    base: str
    header: str
    interval: Interval
    higher_is_better: bool = True

    @property
    def pair(self) -> str:
        return f"{self.label} − {self.base}"

    @property
    def verdict(self) -> Verdict:
        """Whether the interval leaves 0 out, and on which side."""
        low, high = self.interval.low, self.interval.high
        if low is None or high is None or low <= 0 <= high:
            return "no clear difference"
        return "better" if (low > 0) == self.higher_is_better else "worse"


def contrasts(
    label: str, base: str, first: Sequence[Outcome], second: Sequence[Outcome], columns: Sequence[Column]
) -> list[Contrast]:
    """Compare two methods in each metric, and in the score if all its parts were measured.

    The facts are the sample. A fact that was edited with several seeds counts once, with its mean over them: the
    intervals say what other facts would give, and not what other seeds would.

    Args:
        label: The method that is looked at.
        base: The one it is compared with.
        first: What became of the facts of one dataset under `label`.
        second: The same under `base`; facts that only one of them has do not count.
        columns: The metrics of single facts.
    """
    common = {one.key for one in first} & {one.key for one in second}
    ours, theirs = ([one for one in some if one.key in common] for some in (first, second))
    found = [
        Contrast(
            label,
            base,
            column.header,
            difference(_values(ours, column.metric), _values(theirs, column.metric)),
            column.higher_is_better,
        )
        for column in columns
    ]
    if parts := _parts(columns):
        interval = score_difference(*([_values(some, part.metric) for part in parts] for some in (ours, theirs)))
        found.append(Contrast(label, base, "Score", interval))
    return found


def scored(some: Sequence[Outcome], columns: Sequence[Column]) -> Interval | None:
    """The score of one method, with its interval; None if a part of it was not measured."""
    parts = _parts(columns)
    return score([_values(some, part.metric) for part in parts]) if parts else None


def _parts(columns: Sequence[Column]) -> list[Column]:
    parts = [column for column in columns if column.header in SCORED]
    return parts if len(parts) == len(SCORED) else []


def _values(some: Iterable[Outcome], metric: str) -> Values:
    """The value of each fact, None where it has none; its mean over seeds where there are several."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in some:
        found[one.key] += [one.end[metric]] if metric in one.end else []
    return {key: sum(values) / len(values) if values else None for key, values in found.items()}
