"""What became of each fact of a run: said, forgotten or never said, and what the model says now."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from factpatch.evaluation.metrics import comparable
from factpatch.facts import Fact
from factpatch.lab.runs.measures import texts_at
from factpatch.lab.runs.pace import in_words
from factpatch.lab.runs.plan import Plan
from factpatch.lab.runs.results import Results
from factpatch.lab.runs.rows import When
from factpatch.lab.runs.tables import values_of_facts

Numbers = Mapping[str, float]
"""Metrics of one fact by name, as far as they have a value."""


_WORDS = ("prompt_contained", "strict_efficacy", "efficacy")


class State(str, Enum):
    """What became of a fact."""

    SAID = "said"
    FORGOTTEN = "said at first, then forgotten"
    FAILED = "not said"
    LOST = "not said at the end"
    """The model was not asked right after it was written."""


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
    def state(self) -> State:
        if _said(self.end):
            return State.SAID
        if not self.written:
            return State.LOST
        return State.FORGOTTEN if _said(self.written) else State.FAILED

    @property
    def paraphrases(self) -> int | None:
        """How many agree at the end."""
        return _count(_agreeing(self.end), len(self.fact.paraphrases))

    @property
    def neighbors(self) -> int | None:
        """How many are right at the end."""
        return _count(self._right(self.end), len(self.fact.neighbors))

    @property
    def neighbors_before(self) -> int | None:
        """How many are right in the unedited model."""
        return _count(self._right(self.before), len(self.fact.neighbors))

    @property
    def harm(self) -> tuple[bool, float, float]:
        """Sorts from the worst to the best: whether it is said, the share of paraphrases, the loss of neighbors."""
        lost = (self._right(self.end) or 0.0) - (self._right(self.before) or 0.0)
        agreeing = _agreeing(self.end)
        return self.state is State.SAID, 100.0 if agreeing is None else agreeing, lost

    @property
    def flawless(self) -> bool:
        """Whether it is said, all paraphrases agree and no neighbor was lost."""
        said, agreeing, lost = self.harm
        return said and agreeing == 100.0 and lost >= 0.0

    def _right(self, numbers: Numbers) -> float | None:
        """The percentage of neighbors that are right, as `metrics.neighbor_right` has it; None if the fact has none."""
        return numbers.get("specificity" if comparable(self.fact) else "strict_specificity")


def outcomes(results: Results) -> dict[tuple[str, str], list[Outcome]]:
    """Return what became of every fact that was asked about at the end, by label and dataset."""
    rows = results.rows[results.rows["place"].notna() & results.rows["value"].notna()]
    # By label, dataset, seed and moment: for each place the metrics.
    numbers: dict[tuple[str, str, int, str], dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    names = ("label", "dataset", "seed", "when", "place", "metric", "value")
    for label, dataset, seed, when, place, metric, value in zip(*(rows[name] for name in names), strict=True):
        numbers[label, dataset, seed, when][int(place)][metric] = value
    found: dict[tuple[str, str], list[Outcome]] = {}
    for plan in results.directory.plans():
        label, dataset = plan.method.label, plan.dataset.name
        before, written, end = (
            numbers[key, dataset, plan.seed, when.value]
            for key, when in (("", When.BEFORE), (label, When.WRITTEN), (label, When.END))
        )
        if end:
            found.setdefault((label, dataset), []).extend(
                Outcome(plan, place, before.get(place, {}), written.get(place, {}), end[place]) for place in sorted(end)
            )
    return found


def worst(some: Iterable[Outcome], limit: int) -> list[Outcome]:
    """The facts with the worst outcome: not said first, then those whose paraphrases or neighbors went wrong."""
    return sorted((one for one in some if not one.flawless), key=lambda one: one.harm)[:limit]


def answers(file: Path) -> dict[int, str]:
    """How the model continued the prompt of each fact, by its place, from the texts of a measurement."""
    return {one["place"]: one["said"] for one in texts_at(file) if one["form"] == "prompt"}


def _said(numbers: Numbers) -> bool:
    """Whether the fact is said or, where that was not measured, exact or, where that was not either, preferred."""
    return next((numbers[name] for name in _WORDS if name in numbers), None) == 100.0


def _agreeing(numbers: Numbers) -> float | None:
    """The percentage of paraphrases that agree: the new object is likelier than the true one or, where none is known,
    exact; None if the fact has none."""
    return numbers.get("generalization", numbers.get("strict_generalization"))


def _count(share: float | None, prompts: int) -> int | None:
    """How many prompts of a fact its percentage stands for."""
    return None if share is None else round(share * prompts / 100)


def in_a_sentence(results: Results, label: str, dataset: str, some: Sequence[Outcome]) -> str:
    """What the model says after a method, the side effects and the cost. What was not measured is left out.

    Returns:
        For example "178 of 200 facts said; 12 more were said and then forgotten; 350 of 400 paraphrases agree;
        1,620 of 2,000 neighbors are right, 1,750 before; perplexity 20.61 → 21.30 (+3.3 %); editing took 12 min".
    """
    states = [one.state for one in some]
    parts = [f"{states.count(State.SAID):,} of {len(some):,} facts said"]
    if forgotten := states.count(State.FORGOTTEN):
        parts.append(f"{forgotten:,} more {'was' if forgotten == 1 else 'were'} said and then forgotten")
    agreeing = [(one.paraphrases, len(one.fact.paraphrases)) for one in some if one.paraphrases is not None]
    if agreeing:
        yes, asked = map(sum, zip(*agreeing, strict=True))
        parts.append(f"{yes:,} of {asked:,} paraphrases agree")
    neighbors = [
        (one.neighbors, len(one.fact.neighbors), one.neighbors_before)
        for one in some
        if one.neighbors is not None and one.neighbors_before is not None
    ]
    if neighbors:
        now, asked, was = map(sum, zip(*neighbors, strict=True))
        parts.append(f"{now:,} of {asked:,} neighbors are right, {was:,} before")
    before, after = (_perplexity(results, one, dataset) for one in ("", label))
    if before is not None and after is not None:
        parts.append(f"perplexity {before:,.2f} → {after:,.2f} ({100 * (after / before - 1):+,.1f} %)")
    records = [one for one in results.records if one["label"] == label and one["dataset"] == dataset]
    took = [seconds for record in records for seconds in record.get("seconds", {}).values()]
    if took:
        shared = math.fsum(record.get("shared_seconds", 0.0) for record in records)
        more = f", plus {in_words(shared)} for value targets that had been optimized before" if shared else ""
        parts.append(f"editing took {in_words(sum(took))}{more}")
    return "; ".join(parts)


def _perplexity(results: Results, label: str, dataset: str) -> float | None:
    values = values_of_facts(results.rows, label, dataset)
    known = values["perplexity"].dropna().tolist() if "perplexity" in values else []
    return known[0] if known else None
