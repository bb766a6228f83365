"""Figures of matplotlib: heat maps of one trace and of the averages, and the averages as curves with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from factpatch.evaluation.intervals import Mean
from factpatch.lab.drawing.charts import COLORS, GRAY, MARKERS, Panel, Style, Styles, figure
from factpatch.lab.tracing.averages import interval
from factpatch.lab.tracing.critical import CriticalLayers
from factpatch.lab.tracing.restoring import KINDS
from factpatch.lab.tracing.trace import Trace

_WIDTH = 4.2  # inches of a panel
_ROW = 0.24
_BAR = 1.5  # next to all panels

Averages = Mapping[str, Mapping[str, Sequence[Mean]]]
"""By kind and position, the mean of each layer."""


def fact_heat_maps(one: Trace) -> Any:
    """The probability of the answer with each state restored, a panel for each kind, as the paper's Figure 1.

    The scale goes from the probability with the subject corrupted to that of the clean run. Subject tokens are starred.
    """
    labels = [f"{_shown(token)}{'*' if index in one.subject else ''}" for index, token in enumerate(one.tokens)]
    tables = {kind: table.tolist() for kind, table in one.restored.items()}
    low, high = sorted((one.corrupted, one.clean))
    title = f"clean {one.clean:.3f}, corrupted {one.corrupted:.3f}"
    return _heat_maps(tables, labels, low, high, f"p({_shown(one.answer)})", title)


def average_heat_maps(averages: Averages) -> Any:
    """The average indirect effect by position and layer, a panel for each kind, all on one scale."""
    tables = {
        kind: [[math.nan if mean.value is None else mean.value for mean in means] for means in positions.values()]
        for kind, positions in averages.items()
    }
    known = [value for table in tables.values() for row in table for value in row if not math.isnan(value)]
    labels = list(next(iter(averages.values())))
    return _heat_maps(tables, labels, min(0.0, *known), max(known), "average indirect effect")


def average_curves(averages: Averages, critical: CriticalLayers | None = None) -> Any:
    """The average indirect effect over layers with 95 % intervals, a curve for each position, over critical layers."""

    def draw(axis: Any, styles: Styles, positions: Mapping[str, Sequence[Mean]]) -> None:
        for position, means in positions.items():
            known = [(layer, mean) for layer, mean in enumerate(means) if mean.value is not None]
            layers, values = [layer for layer, _ in known], [mean.value for _, mean in known]
            axis.plot(layers, values, label=position, **{**styles[position].line, "markersize": 3})
            bounds = [bound for _, mean in known if (bound := interval(mean)) is not None]
            if bounds and len(bounds) == len(known):
                axis.fill_between(layers, *zip(*bounds, strict=True), color=styles[position].color, alpha=0.2, lw=0)
        if critical is not None and critical.layers:
            axis.axvspan(critical.layers[0] - 0.5, critical.layers[-1] + 0.5, color=GRAY, alpha=0.15, linewidth=0)
        axis.axhline(0, color=GRAY, linewidth=0.8)
        axis.set(xlabel="layer", ylabel="average indirect effect")

    styles = {
        position: Style(color, marker=marker)
        for position, color, marker in zip(next(iter(averages.values())), COLORS, MARKERS, strict=False)
    }
    panels = [Panel(KINDS[kind].about, "", partial(draw, positions=positions)) for kind, positions in averages.items()]
    return figure(panels, styles, columns=len(panels), size=(_WIDTH, 3.8), sharey=True)


def _heat_maps(
    tables: Mapping[str, Sequence[Sequence[float]]],
    labels: Sequence[str],
    low: float,
    high: float,
    unit: str,
    title: str = "",
) -> Any:
    """A panel for each kind: a line for each label, a column for each layer; all have one scale from low to high."""

    def draw(axis: Any, styles: Styles, table: Sequence[Sequence[float]]) -> None:
        axis.imshow(table, aspect="auto", cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.set(xlabel="layer")

    panels = [Panel(KINDS[kind].about, "", partial(draw, table=table)) for kind, table in tables.items()]
    size = (_WIDTH + _BAR / len(panels), 1.4 + _ROW * len(labels))
    made = figure(panels, {}, title=title, columns=len(panels), size=size, sharey=True)
    # Text of a model may hold dollar signs, which are no formula.
    made.colorbar(made.axes[0].images[0], ax=made.axes).ax.set_ylabel(unit, parse_math=False)
    return made


def _shown(token: str) -> str:
    """A token as a label: on one line, with its spaces seen only where there is nothing else."""
    return "".join(character if character.isprintable() else "?" for character in token.strip()) or repr(token)[1:-1]
