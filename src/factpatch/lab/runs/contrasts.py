"""How sure a run is that one method differs from another: both on the same facts, with bootstrap intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from factpatch.evaluation.intervals import Interval, Values, difference, score, score_difference
from factpatch.lab.runs.outcomes import Outcome
from factpatch.lab.runs.results import Results
from factpatch.lab.runs.tables import Column

Verdict = Literal["better", "worse", "no clear difference"]


@dataclass(frozen=True)
class Contrast:
    """One number of a method minus that of another."""

    label: str
    base: str
    column: Column
    interval: Interval

    @property
    def pair(self) -> str:
        return f"{self.label} − {self.base}"

    @property
    def verdict(self) -> Verdict:
        """Whether the interval leaves 0 out, and on which side."""
        low, high = self.interval.low, self.interval.high
        if low is None or high is None or low <= 0 <= high:
            return "no clear difference"
        return "better" if (low > 0) == self.column.higher_is_better else "worse"


def contrasts(
    label: str, base: str, first: Sequence[Outcome], second: Sequence[Outcome], columns: Sequence[Column]
) -> list[Contrast]:
    """Compare two methods in each metric of single facts, and in the score.

    The facts are the sample. A fact that was edited with several seeds counts once, with its mean over them: the
    intervals say what other facts would give, and not what other seeds would.

    Args:
        label: The method that is looked at.
        base: The one it is compared with.
        first: What became of the facts of one dataset under `label`.
        second: The same under `base`; facts that only one of them has do not count.
        columns: The metrics.
    """
    common = {one.key for one in first} & {one.key for one in second}
    ours, theirs = ([one for one in some if one.key in common] for some in (first, second))
    return [Contrast(label, base, column, _difference(ours, theirs, column)) for column in columns]


def _difference(first: Sequence[Outcome], second: Sequence[Outcome], column: Column) -> Interval:
    if not column.parts:
        return difference(_values(first, column.metric), _values(second, column.metric))
    return score_difference(*([_values(some, part) for part in column.parts] for some in (first, second)))


def compared(
    results: Results, there: Mapping[tuple[str, str], Sequence[Outcome]], pairs: Mapping[str, str]
) -> dict[str, list[Contrast]]:
    """Compare each method of a run with the one it should improve on, by dataset.

    Args:
        there: What became of the facts, as `outcomes` gives it.
        pairs: The method that each label should improve on.
    """
    found: dict[str, list[Contrast]] = {}
    for dataset in (one.name for one in results.directory.config.datasets):
        columns = [column for column in results.columns() if column.dataset == dataset]
        found[dataset] = [
            contrast
            for label, base in pairs.items()
            if (label, dataset) in there and (base, dataset) in there
            for contrast in contrasts(label, base, there[label, dataset], there[base, dataset], columns)
        ]
    return found


def scored(some: Sequence[Outcome], columns: Sequence[Column]) -> Interval | None:
    """The score of one method, with its interval; None if a part of it was not measured."""
    return next((score([_values(some, part) for part in column.parts]) for column in columns if column.parts), None)


def _values(some: Iterable[Outcome], metric: str) -> Values:
    """The value of each fact, None where it has none; its mean over seeds where there are several."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in some:
        found[one.key] += [one.end[metric]] if metric in one.end else []
    return {key: sum(values) / len(values) if values else None for key, values in found.items()}
