"""The lines of a run's table: what each edits, and the moments at which it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from factpatch.evaluation.metrics import fact_names
from factpatch.facts import Fact
from factpatch.lab.runs.config import DatasetConfig, MethodConfig
from factpatch.lab.runs.rows import When


@dataclass(frozen=True)
class Moment:
    """A moment in the stream of edits, and the facts that are then asked about."""

    when: When
    places: Sequence[int]
    """Of these facts in the order of editing."""
    edits: int = 0
    """How many facts have been edited."""
    batch: int | None = None
    """The batch that was just written, from 1."""

    @property
    def name(self) -> str:
        """As used in file names."""
        return self.when.value if self.batch is None else f"{self.when.value}.{self.batch:04d}"

    @property
    def earlier(self) -> int:
        """How many facts had been edited before the last batch."""
        return self.edits - len(self.places)

    def passed(self, every: int) -> bool:
        """Whether the last batch brought the number of edits to a multiple of `every`, or past it."""
        return self.edits // every > self.earlier // every


@dataclass(frozen=True)
class Plan:
    """One line of a run's table: a method on facts, with a seed."""

    method: MethodConfig
    dataset: DatasetConfig
    seed: int
    facts: tuple[Fact, ...]
    batch_size: int
    directory: Path
    """Where its session and its measurements are."""
    unedited: Path
    """Where the measurements of the unedited model are."""

    @property
    def name(self) -> str:
        return f"{self.method.label} on {self.dataset.name}, seed {self.seed}"

    @property
    def about(self) -> dict[str, Any]:
        """What the record of the line begins with."""
        about = {"label": self.method.label, "method": self.method.name, "dataset": self.dataset.name}
        return {**about, "seed": self.seed, "facts": len(self.facts)}

    @property
    def batches(self) -> list[tuple[Fact, ...]]:
        size = self.batch_size
        return [self.facts[start : start + size] for start in range(0, len(self.facts), size)]

    @property
    def finished(self) -> bool:
        """Whether everything is edited and measured."""
        return (self.directory / "row.json").is_file()

    @property
    def before(self) -> Moment:
        """The moment before the first edit."""
        return Moment(When.BEFORE, range(len(self.facts)))

    def written(self, batch: int) -> Moment:
        """The moment after a batch, from 1."""
        first = self.batch_size * (batch - 1)
        edits = min(first + self.batch_size, len(self.facts))
        return Moment(When.WRITTEN, range(first, edits), edits, batch)

    def end(self, batch: int) -> Moment:
        """The moment after the last batch, from 1, with the facts in force: not those that a later one has replaced."""
        edits = self.written(batch).edits
        return Moment(When.END, self.in_force(edits), edits)

    def in_force(self, edits: int) -> list[int]:
        """The places of the facts that none of the first `edits` facts has replaced."""
        return sorted({fact.key: place for place, fact in enumerate(self.facts[:edits])}.values())

    def named(self, place: int | None) -> dict[str, Any]:
        """The fields of a result row that say which fact it is about; None for the model."""
        if place is None:
            return {"batch": None, "place": None, "fact": None}
        return {"batch": 1 + place // self.batch_size, "place": place, "fact": self._names[place]}

    @cached_property
    def _names(self) -> list[str]:
        return fact_names(self.facts)
