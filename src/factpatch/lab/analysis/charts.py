"""Panels drawn with matplotlib: as one figure in files, or as charts of a page with a legend beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from factpatch.evaluation.intervals import Mean
from factpatch.lab.analysis.rows import UNEDITED, Findings, Place
from factpatch.lab.drawing.charts import Chart, Key, chart, key
from factpatch.lab.drawing.plots import COLORS, MARKERS
from factpatch.lab.drawing.plots import panels as axes_for

_DASHES = ("-", "--", "-.", ":")
_GRAY = "#767676"
_RADAR = 4.0  # inches
Style = tuple[str, str, str]
"""Color, dash and marker."""


def styles(panels: Sequence[Panel]) -> dict[str, Style]:
    """A style for each label, the same in all panels."""
    labels = dict.fromkeys(label for panel in panels for label in panel.labels)
    drawn = [label for label in labels if label != UNEDITED]
    found = {
        label: (COLORS[place % len(COLORS)], _DASHES[place % len(_DASHES)], MARKERS[place % len(MARKERS)])
        for place, label in enumerate(drawn)
    }
    return {label: found.get(label, (_GRAY, ":", ".")) for label in labels}


def figure(panels: Sequence[Panel]) -> Any:
    """All panels side by side, as a figure of matplotlib."""
    from matplotlib.lines import Line2D

    chosen = styles(panels)
    made, axes = axes_for(len(panels), projection="polar" if _radial(panels) else None)
    for panel, axis in zip(panels, axes, strict=True):
        _draw(axis, panel, chosen)
        axis.set_title(panel.title, fontsize="medium")
    handles = [Line2D([], [], **_line(style), label=label) for label, style in chosen.items() if label]
    if handles:
        made.legend(handles=handles, loc="outside lower center", ncols=min(4, len(panels)), fontsize="small")
    return made


def charts(panels: Sequence[Panel]) -> list[Chart]:
    """Each panel for itself."""
    chosen = styles(panels)
    return [_chart(panel, chosen) for panel in panels]


def keys(panels: Sequence[Panel]) -> list[Key]:
    """The legend of the charts."""
    return [key(label, *style) for label, style in styles(panels).items() if label]


def _chart(panel: Panel, chosen: dict[str, Style]) -> Chart:
    radial = _radial([panel])
    size: dict[str, Any] = {"height": _RADAR, "projection": "polar"} if radial else {}
    return chart(panel.title, panel.alt, lambda axis: _draw(axis, panel, chosen), **size)


def _radial(panels: Sequence[Panel]) -> bool:
    return any(isinstance(panel, Radar) for panel in panels)


def _draw(axis: Any, panel: Panel, chosen: dict[str, Style]) -> None:
    if isinstance(panel, Radar):
        _radar(axis, panel, chosen)
    else:
        _lines(axis, panel, chosen)


def _lines(axis: Any, panel: Lines, chosen: dict[str, Style]) -> None:
    ticks = sorted({x for curve in panel.curves for x, _ in curve.points})
    for curve in panel.curves:
        places = [x for x, _ in curve.points]
        means = [math.nan if found.value is None else found.value for _, found in curve.points]
        errors = [math.nan if found.error is None else found.error for _, found in curve.points]
        axis.errorbar(places, means, yerr=errors, capsize=2, **_line(chosen[curve.label]))
    if panel.log_x:
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlabel=panel.x, ylabel=panel.y)
    low, high = axis.get_ylim()
    low = min(low, 0.0)
    axis.set_ylim(low, high + 0.05 * (high - low))
    axis.grid(axis="y", alpha=0.3)


def _radar(axis: Any, panel: Radar, chosen: dict[str, Style]) -> None:
    angles = [2 * math.pi * place / len(panel.axes) for place in range(len(panel.axes))]
    for label, corners in panel.polygons:
        axis.plot([*angles, angles[0]], [*corners, corners[0]], **_line(chosen[label]))
    axis.set_theta_offset(math.pi / 2)
    axis.set_theta_direction(-1)
    axis.set_xticks(angles, [name.removeprefix("token_") for name in panel.axes])
    # Clockwise from the top: beside the circle, and not over its edge.
    for text, angle in zip(axis.get_xticklabels(), angles, strict=True):
        sine = round(math.sin(angle), 6)
        text.set_horizontalalignment("left" if sine > 0 else "right" if sine < 0 else "center")
    axis.tick_params(axis="x", pad=2, labelsize="small")
    axis.set_ylim(0, 100)
    axis.set_yticks([25, 50, 75, 100], ["", "50", "", "100"])


def _line(style: Style) -> dict[str, Any]:
    color, dash, marker = style
    return {"color": color, "linestyle": dash, "marker": marker, "markersize": 4, "linewidth": 1.5}


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
