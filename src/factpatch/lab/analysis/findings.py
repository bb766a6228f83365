"""What an analysis finds: numbers of single facts, and their means with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from factpatch.evaluation.intervals import Interval, Mean, difference, mean
from factpatch.lab.drawing.charts import Panel
from factpatch.lab.drawing.shapes import Curve, lines
from factpatch.support.files import csv_text

DIRECT, DISTRIBUTED = "direct", "distributed"


@dataclass(frozen=True)
class Place:
    """What a number is about, apart from the fact. What does not apply is None."""

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
    """How many critical layers follow the written one, up to that layer: the paper's L − l."""
    size: int | None = None
    """How many facts a batch has."""
    earlier: int | None = None
    """How many facts were edited before."""

    @property
    def label(self) -> str:
        """The residual and the spread in words, as in a legend; empty where neither applies."""
        return ", ".join(part for part in (self.residual, self.spread) if part is not None)

    def fits(self, where: Mapping[str, Any]) -> bool:
        """Whether these fields have these values."""
        return all(getattr(self, name) == value for name, value in where.items())


@dataclass(frozen=True)
class Finding:
    """One number."""

    place: Place
    measure: str
    of: str
    """The fact, or the batch of facts."""
    value: float | None
    """None where there is none, or none that is finite."""


@dataclass(frozen=True)
class Findings:
    """All numbers of one analysis."""

    numbers: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    """What a reader should know of these numbers: what is missing, and why."""

    @cached_property
    def means(self) -> Mapping[tuple[Place, str], Mean]:
        """The mean over facts, or over batches of facts, by place and measure, in the order of the numbers."""
        groups: dict[tuple[Place, str], list[float | None]] = {}
        for one in self.numbers:
            groups.setdefault((one.place, one.measure), []).append(one.value)
        return {key: mean(values) for key, values in groups.items()}

    def curve(self, measure: str, along: str = "layer", **where: Any) -> list[tuple[int, Mean]]:
        """The known means of a measure along a field of its places, where other fields have the given values."""
        return [
            (getattr(place, along), found)
            for (place, name), found in self.means.items()
            if name == measure and found.value is not None and place.fits(where)
        ]

    def of_facts(self, measure: str, **where: Any) -> dict[str, float | None]:
        """The values of a measure at one place, by the fact."""
        return {one.of: one.value for one in self.numbers if one.measure == measure and one.place.fits(where)}

    def among(self, name: str, **where: Any) -> list[Any]:
        """The values that a field takes at places where others have the given values, in the order of the numbers."""
        found = dict.fromkeys(getattr(place, name) for place, _ in self.means if place.fits(where))
        return [value for value in found if value is not None]

    @property
    def measures(self) -> list[str]:
        """In the order of the numbers."""
        return list(dict.fromkeys(measure for _, measure in self.means))

    @property
    def columns(self) -> list[str]:
        """The fields of the places that apply to some number."""
        return [one.name for one in fields(Place) if self.among(one.name)]

    def summary(self) -> list[dict[str, Any]]:
        """A record for each mean: the fields that apply, the measure, mean, standard error and count of values."""
        columns = self.columns
        return [
            {
                **{name: getattr(place, name) for name in columns},
                "measure": measure,
                "mean": found.value,
                "error": found.error,
                "count": found.facts,
            }
            for (place, measure), found in self.means.items()
        ]

    def csv(self) -> str:
        """The summary, a line for each record; what does not apply is empty."""
        heads = [*self.columns, "measure", "mean", "error", "count"]
        return csv_text(heads, ([record[head] for head in heads] for record in self.summary()))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record: the summary, and every value by its fact."""

        def given(place: Place) -> dict[str, Any]:
            return {name: value for name, value in asdict(place).items() if value is not None}

        values = [
            {**given(one.place), "measure": one.measure, "of": one.of, "value": one.value} for one in self.numbers
        ]
        return {"notes": list(self.notes), "summary": self.summary(), "values": values}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Findings:
        """The inverse of `to_dict`.

        Raises:
            KeyError: The record lacks something.
            TypeError: A place has an unknown field.
        """

        def finding(measure: str, of: str, value: float | None, **place: Any) -> Finding:
            return Finding(Place(**place), measure, of, value)

        return cls(tuple(finding(**value) for value in record["values"]), tuple(record["notes"]))


def findings_of(place: Place, measure: str, names: Sequence[str], values: Iterable[float | None]) -> Iterator[Finding]:
    """A number for each fact; what is not finite counts as missing."""
    for name, value in zip(names, values, strict=True):
        yield Finding(place, measure, name, None if value is None or not math.isfinite(value) else value)


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


def by_layer(findings: Findings, name: str, measure: str, **where: Any) -> str:
    """A sentence that lists the means of a measure over the layers, as `NAME: 0.1 ± 0.02 at layer 4, ….`"""
    course = ", ".join(f"{number(found)} at layer {layer}" for layer, found in findings.curve(measure, **where))
    return f"{name}: {course}."


def over_layers(*shown: tuple[str, str, str]) -> Callable[[Findings], list[Panel]]:
    """Panels over the layers with a curve for each residual and spread, given measures, titles and vertical axes."""

    def panels(findings: Findings) -> list[Panel]:
        return [lines(title, "layer", y, curves(findings, measure)) for measure, title, y in shown]

    def curves(findings: Findings, measure: str) -> list[Curve]:
        known: dict[str, list[tuple[int, Mean]]] = {}
        for (place, name), found in findings.means.items():
            if name == measure and found.value is not None and place.layer is not None:
                known.setdefault(place.label, []).append((place.layer, found))
        return [Curve(label, points) for label, points in known.items()]

    return panels
