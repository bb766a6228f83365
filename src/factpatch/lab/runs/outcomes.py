"""What became of each fact of a run: learned, forgotten or never learned, and what the model says now."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from factpatch.facts import Fact
from factpatch.lab.runs.directory import Plan
from factpatch.lab.runs.inputs import fact_key
from factpatch.lab.runs.measures import texts_at
from factpatch.lab.runs.pace import in_words
from factpatch.lab.runs.results import Results
from factpatch.lab.runs.rows import When

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


def told(results: Results, label: str, dataset: str, some: Sequence[Outcome]) -> str:
    """What a method learned, what moved beside it and what it cost. What was not measured is left out.

    Args:
        some: What became of the facts of this dataset under this method; those of several seeds are added up.

    Returns:
        For example "178 of 200 facts learned; 12 more were learned and then forgotten; 350 of 400 paraphrases agree;
        1,620 of 2,000 neighbors are right, 1,750 before; perplexity 20.61 → 21.30 (+3.3 %); editing took 12 min".
    """
    states = [one.state for one in some]
    parts = [f"{states.count(State.LEARNED):,} of {len(some):,} facts learned"]
    if forgotten := states.count(State.FORGOTTEN):
        parts.append(f"{forgotten:,} more {'was' if forgotten == 1 else 'were'} learned and then forgotten")
    agreeing = [(one.paraphrases, len(one.fact.paraphrases)) for one in some if one.paraphrases is not None]
    if agreeing:
        parts.append(f"{sum(yes for yes, _ in agreeing):,} of {sum(all_ for _, all_ in agreeing):,} paraphrases agree")
    beside = [one for one in some if one.neighbors is not None and one.neighbors_before is not None]
    if beside:
        now, was = (sum(getattr(one, name) for one in beside) for name in ("neighbors", "neighbors_before"))
        parts.append(
            f"{now:,} of {sum(len(one.fact.neighbors) for one in beside):,} neighbors are right, {was:,} before"
        )
    before, after = _perplexity(results, "", dataset), _perplexity(results, label, dataset)
    if before is not None and after is not None:
        parts.append(f"perplexity {before:,.2f} → {after:,.2f} ({100 * (after / before - 1):+,.1f} %)")
    records = [one for one in results.records if one["label"] == label and one["dataset"] == dataset]
    took = [seconds for record in records for seconds in record.get("seconds", {}).values()]
    if took:
        shared = math.fsum(record.get("shared_seconds", 0.0) for record in records)
        more = f", besides {in_words(shared)} for value targets that had been optimized before" if shared else ""
        parts.append(f"editing took {in_words(sum(took))}{more}")
    return "; ".join(parts)


def _perplexity(results: Results, label: str, dataset: str) -> float | None:
    rows = results.rows
    when = When.END if label else When.BEFORE
    chosen = rows[
        (rows["metric"] == "perplexity")
        & (rows["label"] == label)
        & (rows["dataset"] == dataset)
        & (rows["when"] == when.value)
    ]["value"].dropna()
    return float(chosen.mean()) if len(chosen) else None
