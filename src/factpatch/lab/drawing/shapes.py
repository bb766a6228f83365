"""The shapes that charts have: curves of means, radars, maps of states, trade-offs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from factpatch.lab.drawing.charts import AFTER, BEFORE, Panel, Style, Styles, figure, save_plot

if TYPE_CHECKING:
    from torch import Tensor

    from factpatch.evaluation.intervals import Mean

STATES: Styles = {"before the edit": Style(BEFORE, ""), "after the edit": Style(AFTER, "")}


class Curve(NamedTuple):
    """Means along something, each with its standard error."""

    label: str
    """As in a legend; empty for one that needs none."""
    points: Sequence[tuple[int, Mean]]


def lines(title: str, x: str, y: str, curves: Sequence[Curve], log_x: bool = False) -> Panel:
    """Curves in one pair of axes, with error bars; what is above 0 is shown from 0 on."""

    def draw(axis: Any, styles: Styles) -> None:
        for label, points in curves:
            places, means = zip(*points, strict=True)
            values, errors = ([_number(getattr(mean, name)) for mean in means] for name in ("value", "error"))
            axis.errorbar(places, values, yerr=errors, capsize=2, **styles[label].line)
        if log_x:
            axis.set_xscale("log")
            axis.minorticks_off()
        ticks = sorted({place for curve in curves for place, _ in curve.points})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set(xlabel=x, ylabel=y)
        low, high = axis.get_ylim()
        low = min(low, 0.0)
        axis.set_ylim(low, high + 0.05 * (high - low))
        axis.grid(axis="y", alpha=0.3)

    described = (
        f"{label}{': ' if label else ''}" + ", ".join(f"{_number(mean.value):.3g} at {place}" for place, mean in points)
        for label, points in curves
    )
    return Panel(title, f"{title}. {y} by {x}. {'; '.join(described)}.", draw, [curve.label for curve in curves])


def radar(title: str, axes: Sequence[str], polygons: Sequence[tuple[str, Sequence[float]]]) -> Panel:
    """Several metrics at once: a polygon for each label, whose corners lie on one axis a metric, from 0 to 100."""

    def draw(axis: Any, styles: Styles) -> None:
        angles = [2 * math.pi * place / len(axes) for place in range(len(axes))]
        for label, corners in polygons:
            axis.plot([*angles, angles[0]], [*corners, corners[0]], **styles[label].line)
        axis.set_theta_offset(math.pi / 2)
        axis.set_theta_direction(-1)
        axis.set_xticks(angles, [name.removeprefix("token_") for name in axes])
        # Clockwise from the top: next to the circle, and not over its edge.
        for text, angle in zip(axis.get_xticklabels(), angles, strict=True):
            sine = round(math.sin(angle), 6)
            text.set_horizontalalignment("left" if sine > 0 else "right" if sine < 0 else "center")
        axis.tick_params(axis="x", pad=2, labelsize="small")
        axis.set_ylim(0, 100)
        axis.set_yticks([25, 50, 75, 100], ["", "50", "", "100"])

    described = (
        f"{label}: " + ", ".join(f"{name} {corner:.3g}" for name, corner in zip(axes, corners, strict=True))
        for label, corners in polygons
    )
    labels = [label for label, _ in polygons]
    return Panel(title, f"{title}. Radar of metrics. {'; '.join(described)}.", draw, labels, 4.0, "polar")


def states(title: str, alt: str, before: Tensor, after: Tensor) -> Panel:
    """A map of hidden states before and after an edit, in the styles `STATES`; (n, 2) each, from `tsne_map`."""
    return Panel(title, alt, lambda axis, styles: _states(axis, before, after), list(STATES))


def plot_hidden_shift(path: Path, before: Tensor, after: Tensor, title: str = "") -> None:
    """Draw the map of `states` with the distribution along each axis, as Figure 7; raise as `save_plot` does."""

    def draw(main: Any, styles: Styles) -> None:
        _states(main, before, after, size=7)
        top, right = main.inset_axes([0, 1.01, 1, 0.2], sharex=main), main.inset_axes([1.01, 0, 0.2, 1], sharey=main)
        for places, style in zip((before, after), STATES.values(), strict=True):
            x, y = places.T.tolist()
            top.hist(x, bins=40, color=style.color, alpha=0.5)
            right.hist(y, bins=40, color=style.color, alpha=0.5, orientation="horizontal")
        for side in (top, right):
            side.axis("off")

    save_plot(figure([Panel("", "", draw)], STATES, title=title, size=(6, 6)), path)


def plot_tradeoff(path: Path, points: Sequence[tuple[float, float]], chosen: Sequence[bool], title: str = "") -> None:
    """Draw what settings gain against what they cost, the best of each cost joined by a line; raise as `save_plot`.

    Args:
        points: The rise of perplexity in percent and S of each setting.
        chosen: Which of them was chosen.
    """
    styles = {"best at its cost": Style("#999999", marker=""), "tried": Style(BEFORE, ""), "chosen": Style(AFTER, "")}
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)

    def draw(axis: Any, styles: Styles) -> None:
        tried, best = ([point for point, one in zip(points, chosen, strict=True) if one == which] for which in (0, 1))
        for label, some in zip(styles, (front, tried, best), strict=True):
            axis.plot(*zip(*some, strict=True), **styles[label].line) if some else None
        axis.set(xlabel="rise of perplexity in percent", ylabel="S")

    save_plot(figure([Panel(title, "", draw)], styles, size=(6, 6)), path)


def _states(axis: Any, before: Tensor, after: Tensor, size: float = 4) -> None:
    for places, (label, style) in zip((before, after), STATES.items(), strict=True):
        x, y = places.T.tolist()
        # As a picture: a thousand shapes would take ten times the room.
        axis.scatter(x, y, s=size, color=style.color, alpha=0.6, linewidths=0, label=label, rasterized=True)
    # A map of t-SNE has no unit.
    axis.spines[:].set_visible(True)
    axis.set(xticks=[], yticks=[])


def _number(value: float | None) -> float:
    return math.nan if value is None else value
