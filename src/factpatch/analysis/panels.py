"""What a figure shows, as data: curves over layers or numbers, and radars of metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from factpatch.analysis.rows import Findings, Place
from factpatch.evaluation.intervals import Mean


@dataclass(frozen=True)
class Curve:
    """Means along something, each with its standard error."""

    label: str
    """As in a legend; empty for one that needs none."""
    points: tuple[tuple[int, Mean], ...]

    def told(self) -> str:
        """The curve in words."""
        told = ", ".join(f"{found.value:.3g} at {x}" for x, found in self.points)
        return f"{self.label}: {told}" if self.label else told


@dataclass(frozen=True)
class Lines:
    """Curves in one pair of axes."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    log_x: bool = False

    @property
    def labels(self) -> list[str]:
        return [curve.label for curve in self.curves]

    @property
    def alt(self) -> str:
        return f"{self.title}. {self.y} by {self.x}. " + "; ".join(curve.told() for curve in self.curves) + "."


@dataclass(frozen=True)
class Radar:
    """Several metrics at once: a polygon for each label, whose corners lie on one axis a metric, from 0 to 100."""

    title: str
    axes: tuple[str, ...]
    polygons: tuple[tuple[str, tuple[float, ...]], ...]

    @property
    def labels(self) -> list[str]:
        return [label for label, _ in self.polygons]

    @property
    def alt(self) -> str:
        told = (
            f"{label}: " + ", ".join(f"{name} {corner:.3g}" for name, corner in zip(self.axes, corners, strict=True))
            for label, corners in self.polygons
        )
        return f"{self.title}. Radar of metrics. " + "; ".join(told) + "."


Panel = Lines | Radar


def over_layers(findings: Findings, measure: str, title: str, y: str) -> Lines:
    """A measure over the layers, a curve for each residual and spread."""
    curves = [
        Curve(label, tuple((place.layer, found) for place, found in members if place.layer is not None))
        for label, members in _by_label(findings, measure)
    ]
    return Lines(title, "layer", y, tuple(curve for curve in curves if curve.points))


def _by_label(findings: Findings, measure: str) -> Iterator[tuple[str, list[tuple[Place, Mean]]]]:
    means = [(place, found) for (place, name), found in findings.means().items() if name == measure]
    known = [(place, found) for place, found in means if found.value is not None]
    for label in dict.fromkeys(place.label for place, _ in known):
        yield label, [(place, found) for place, found in known if place.label == label]


def curve(label: str, points: Sequence[tuple[int, Mean]]) -> Curve:
    """A curve from what `Findings.curve` gives."""
    return Curve(label, tuple(points))
