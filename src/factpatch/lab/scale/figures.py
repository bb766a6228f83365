"""The simulation, drawn: how much faster a batch becomes with more workers, and where more of them stop paying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from factpatch.lab.drawing.charts import GRAY, Panel, Styles
from factpatch.lab.scale.simulate import PAYS, Point, last_that_pays


def speedups(title: str, curves: Mapping[str, Sequence[Point]]) -> Panel:
    """A panel: the speedup over one worker by the number of workers, a curve for each label.

    A filled marker is the last number of workers from which twice as many save a tenth of the time.
    """
    ends = "; ".join(
        f"{label} up to {last_that_pays(points).workers} workers, {last_that_pays(points).speedup:.1f} times as fast"
        for label, points in curves.items()
    )
    alt = f"Speedup of {title} over the number of workers. Twice as many save {100 * PAYS:.0f} % or more: {ends}."
    return Panel(title, alt, partial(_speedups, curves=curves), labels=list(curves))


def _speedups(axis: Any, styles: Styles, curves: Mapping[str, Sequence[Point]]) -> None:
    counts = sorted({point.workers for points in curves.values() for point in points})
    axis.plot(counts, counts, color=GRAY, linestyle=":", linewidth=1)
    for label, points in curves.items():
        style = {**styles[label].line, "markerfacecolor": "white"}
        axis.plot([point.workers for point in points], [point.speedup for point in points], **style)
        last = last_that_pays(points)
        axis.plot([last.workers], [last.speedup], **{**styles[label].line, "markersize": 8})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set(xlabel="workers", ylabel="times as fast as one")
