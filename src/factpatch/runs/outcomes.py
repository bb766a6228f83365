"""What became of each fact of a run: learned, forgotten or never learned, and what the model says now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from factpatch.facts import Fact
from factpatch.runs.directory import Plan
from factpatch.runs.measure import texts_at
from factpatch.runs.results import Results
from factpatch.runs.rows import When
from factpatch.runs.selection import fact_key

Numbers = Mapping[str, float]
"""Metrics of one fact by name, as far as they have a value."""


class State(str, Enum):
    """What became of a fact."""

    LEARNED = "learned"
    FORGOTTEN = "learned at first, then forgotten"
    FAILED = "not learned"
    LOST = "not learned at the end"
    """Nobody asked right after it was written."""


@dataclass(frozen=True)
class Outcome:
    """One fact under one method with one seed."""

    plan: Plan
    place: int
    before: Numbers
    written: Numbers
    """Right after its batch; empty if that was not measured."""
    end: Numbers

    @property
    def fact(self) -> Fact:
        return self.plan.facts[self.place]

    @property
    def key(self) -> str:
        """The same for the same fact in any other row of the run, whatever the order of its facts."""
        return fact_key(self.fact)

    @property
    def state(self) -> State:
        if _learned(self.end):
            return State.LEARNED
        if not self.written:
            return State.LOST
        return State.FORGOTTEN if _learned(self.written) else State.FAILED

    @property
    def paraphrases(self) -> int | None:
        """How many agree at the end."""
        return _count(_agreeing(self.end), len(self.fact.paraphrases))

    @property
    def neighbors(self) -> int | None:
        """How many are right at the end."""
        return _count(self.end.get("specificity"), len(self.fact.neighbors))

    @property
    def neighbors_before(self) -> int | None:
        """How many are right in the unedited model."""
        return _count(self.before.get("specificity"), len(self.fact.neighbors))

    @property
    def harm(self) -> tuple[bool, float, float]:
        """Sorts from the worst to the best: whether it is learned, the share of paraphrases, the loss of neighbors."""
        lost = self.end.get("specificity", 0.0) - self.before.get("specificity", 0.0)
        agreeing = _agreeing(self.end)
        return self.state is State.LEARNED, 100.0 if agreeing is None else agreeing, lost

    @property
    def flawless(self) -> bool:
        """Whether there is nothing to say against it."""
        learned, agreeing, lost = self.harm
        return learned and agreeing == 100.0 and lost >= 0.0


def outcomes(results: Results) -> dict[tuple[str, str], list[Outcome]]:
    """Return what became of every fact that was asked about at the end, by label and dataset."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    numbers = _numbers(results)
    for plan in results.directory.plans():
        before, written, end = (
            numbers[label, plan.dataset.name, plan.seed, when.value]
            for label, when in (("", When.BEFORE), (plan.method.label, When.WRITTEN), (plan.method.label, When.END))
        )
        some = [
            Outcome(plan, place, before.get(place, {}), written.get(place, {}), end[place]) for place in sorted(end)
        ]
        if some:
            found.setdefault((plan.method.label, plan.dataset.name), []).extend(some)
    return found


def worst(some: Iterable[Outcome], limit: int) -> list[Outcome]:
    """The facts with the worst outcome: not learned first, then those whose paraphrases or neighbors went wrong."""
    return sorted((one for one in some if not one.flawless), key=lambda one: one.harm)[:limit]


def answers(file: Path) -> dict[int, str]:
    """What the model said behind the prompt of each fact, by the fact's place; empty if that was not asked for.

    Args:
        file: The JSON Lines beside a measurement of the facts.
    """
    return {one["place"]: one["said"] for one in texts_at(file) if one["form"] == "prompt"}


def _numbers(results: Results) -> dict[tuple[str, str, int, str], dict[int, dict[str, float]]]:
    """By label, dataset, seed and moment: for each place the metrics."""
    rows = results.rows[results.rows["place"].notna() & results.rows["value"].notna()]
    found: dict[tuple[str, str, int, str], dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    names = ("label", "dataset", "seed", "when", "place", "metric", "value")
    for label, dataset, seed, when, place, metric, value in zip(*(rows[name] for name in names), strict=True):
        found[label, dataset, seed, when][int(place)][metric] = value
    return found


def _learned(numbers: Numbers) -> bool:
    """As `Reading.learned`: the new object is likelier than the true one or, without a true one, the likeliest."""
    return numbers.get("efficacy", numbers.get("strict_efficacy")) == 100.0


def _agreeing(numbers: Numbers) -> float | None:
    """The percentage of paraphrases that agree, as `_learned` says it of the fact; None if it brings none."""
    return numbers.get("generalization", numbers.get("strict_generalization"))


def _count(share: float | None, prompts: int) -> int | None:
    """How many prompts of a fact its percentage stands for."""
    return None if share is None else round(share * prompts / 100)
