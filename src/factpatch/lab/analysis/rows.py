"""What an analysis finds: a row for each number, and their means with standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from factpatch.evaluation.intervals import Interval, Mean, difference, mean
from factpatch.support.files import csv_text

DIRECT, DISTRIBUTED, UNEDITED = "direct", "distributed", "unedited"


@dataclass(frozen=True)
class Place:
    """What a number is about, besides the fact. What does not apply is None."""

    layer: int | None = None
    """The layer that is, or would be, written."""
    residual: str | None = None
    """Whether its residual is optimized at that layer (direct) or is a share of another layer's (distributed)."""
    spread: str | None = None
    """How the residual is shared out: even or sqrt."""
    part: str | None = None
    """What is varied, in an analysis that varies several things."""
    last: int | None = None
    """The layer whose residual is shared out, where it is not always the last critical one."""
    distance: int | None = None
    """How many critical layers lie behind the written one, up to that layer: the paper's L − l."""
    size: int | None = None
    """How many facts a batch has."""
    earlier: int | None = None
    """How many facts were edited before."""

    @property
    def label(self) -> str:
        """The residual and the spread in words, as in a legend; empty where neither applies."""
        return ", ".join(part for part in (self.residual, self.spread) if part is not None)


@dataclass(frozen=True)
class Row:
    """One number."""

    place: Place
    measure: str
    of: str
    """The fact that it is about, or the batch of facts."""
    value: float | None
    """None where there is none, or none that is finite."""


@dataclass(frozen=True)
class Findings:
    """All numbers of one analysis."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """What a reader should know of these numbers: what is missing, and why."""

    def means(self) -> dict[tuple[Place, str], Mean]:
        """The mean over facts, or over batches of facts, by place and measure, in the order of the rows."""
        return self._means

    @cached_property
    def _means(self) -> dict[tuple[Place, str], Mean]:
        groups: dict[tuple[Place, str], list[float | None]] = {}
        for row in self.rows:
            groups.setdefault((row.place, row.measure), []).append(row.value)
        return {key: mean(values) for key, values in groups.items()}

    def curve(self, measure: str, along: str, **where: Any) -> list[tuple[int, Mean]]:
        """The means of a measure along a field of its places.

        Args:
            along: The field.
            where: What other fields have to be.
        """
        return [
            (getattr(place, along), found)
            for (place, name), found in self.means().items()
            if name == measure and found.value is not None and _fits(place, where)
        ]

    def of_facts(self, measure: str, **where: Any) -> dict[str, float | None]:
        """The values of a measure at one place, by the fact."""
        return {row.of: row.value for row in self.rows if row.measure == measure and _fits(row.place, where)}

    def among(self, name: str, **where: Any) -> list[Any]:
        """The values that a field of the places takes, in the order of the rows."""
        found = (getattr(row.place, name) for row in self.rows if _fits(row.place, where))
        return [value for value in dict.fromkeys(found) if value is not None]

    @property
    def measures(self) -> list[str]:
        """In the order of the rows."""
        return list(dict.fromkeys(row.measure for row in self.rows))

    @property
    def columns(self) -> list[str]:
        """The fields of the places that apply to some row."""
        return [one.name for one in fields(Place) if any(getattr(row.place, one.name) is not None for row in self.rows)]

    def summary(self) -> list[dict[str, Any]]:
        """A record for each mean: the fields that apply, the measure, mean, standard error and how many it is of."""
        return [
            {
                **{name: getattr(place, name) for name in self.columns},
                "measure": measure,
                "mean": found.value,
                "error": found.error,
                "count": found.facts,
            }
            for (place, measure), found in self.means().items()
        ]

    def csv(self) -> str:
        """The summary, a line for each record; what does not apply is empty."""
        heads = [*self.columns, "measure", "mean", "error", "count"]
        return csv_text(heads, ([record[head] for head in heads] for record in self.summary()))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record: the summary, and every value by its fact."""
        values = [{**_given(row.place), "measure": row.measure, "of": row.of, "value": row.value} for row in self.rows]
        return {"notes": list(self.notes), "summary": self.summary(), "values": values}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Findings:
        """The inverse of `to_dict`.

        Raises:
            KeyError: The record lacks something.
            TypeError: A place has an unknown field.
        """
        return cls(tuple(_row(dict(value)) for value in record["values"]), tuple(record["notes"]))


def rows_of(place: Place, measure: str, names: Sequence[str], values: Iterable[float | None]) -> Iterator[Row]:
    """A row for each fact; what is not finite counts as missing."""
    for name, value in zip(names, values, strict=True):
        yield Row(place, measure, name, None if value is None or not math.isfinite(value) else value)


def number(found: Mean | None, digits: int = 3) -> str:
    """As `0.954 ± 0.012`; a dash where there is none."""
    if found is None or found.value is None:
        return "–"
    # What is the same for every fact comes out with an error of some rounding.
    spread = 0.0 if found.error is not None and found.error < 1e-12 * abs(found.value) else found.error
    error = "" if spread is None else f" ± {spread:.{max(1, digits - 1)}g}"
    return f"{found.value:.{digits}g}{error}"


def gap(findings: Findings, measure: str, layer: int, spread: str) -> Interval:
    """How much more the direct residual gives than the distributed one at a layer, on the same facts."""
    direct = findings.of_facts(measure, layer=layer, residual=DIRECT)
    return difference(direct, findings.of_facts(measure, layer=layer, residual=DISTRIBUTED, spread=spread))


def _fits(place: Place, where: Mapping[str, Any]) -> bool:
    return all(getattr(place, name) == value for name, value in where.items())


def _given(place: Place) -> dict[str, Any]:
    return {name: value for name, value in asdict(place).items() if value is not None}


def _row(value: dict[str, Any]) -> Row:
    measure, of, found = value.pop("measure"), value.pop("of"), value.pop("value")
    return Row(Place(**value), measure, of, found)
