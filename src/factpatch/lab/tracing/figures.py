"""Heat maps of traces, of one fact and of the average, and the averages as curves with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from factpatch.evaluation.intervals import Mean
from factpatch.lab.drawing.plots import COLORS, MARKERS, panels
from factpatch.lab.tracing.averages import interval
from factpatch.lab.tracing.critical import CriticalLayers
from factpatch.lab.tracing.restoring import KINDS
from factpatch.lab.tracing.trace import Trace

_WIDTH = 4.2  # inches of a panel
_ROW = 0.24
_BAR = 1.5  # beside all panels
_MAP = "viridis"

Averages = Mapping[str, Mapping[str, Sequence[Mean]]]
"""By kind and position, the mean of each layer."""


def fact_heat_maps(one: Trace) -> Any:
    """The probability of the answer with each state restored, a panel for each kind, as the paper's Figure 1.

    The scale goes from the probability with the subject corrupted to that of the clean run. Subject tokens are starred.

    Returns:
        A figure of matplotlib.
    """
    labels = [f"{_shown(token)}{'*' if index in one.subject else ''}" for index, token in enumerate(one.tokens)]
    figure, axes = _maps(len(one.restored), len(labels))
    low, high = sorted((one.corrupted, one.clean))
    for axis, (kind, table) in zip(axes, one.restored.items(), strict=True):
        drawn = _heat_map(axis, table.tolist(), labels, kind, low, high)
    figure.colorbar(drawn, ax=axes).ax.set_ylabel(f"p({_shown(one.answer)})", parse_math=False)
    figure.suptitle(f"clean {one.clean:.3f}, corrupted {one.corrupted:.3f}", fontsize=9)
    return figure


def average_heat_maps(averages: Averages) -> Any:
    """The average indirect effect by position and layer, a panel for each kind, all on one scale.

    Returns:
        A figure of matplotlib.
    """
    figure, axes = _maps(len(averages), len(next(iter(averages.values()))))
    tables = {
        kind: [[math.nan if mean.value is None else mean.value for mean in means] for means in positions.values()]
        for kind, positions in averages.items()
    }
    known = [value for table in tables.values() for row in table for value in row if not math.isnan(value)]
    for axis, (kind, table) in zip(axes, tables.items(), strict=True):
        drawn = _heat_map(axis, table, list(averages[kind]), kind, min(0.0, *known), max(known))
    figure.colorbar(drawn, ax=axes, label="average indirect effect")
    return figure


def average_curves(averages: Averages, critical: CriticalLayers | None = None) -> Any:
    """The average indirect effect over layers with 95 % intervals, a panel for each kind, a curve for each position.

    Args:
        averages: What is drawn.
        critical: Layers to be shaded.

    Returns:
        A figure of matplotlib.
    """
    figure, axes = panels(len(averages), columns=len(averages), size=(_WIDTH, 3.4), sharey=True)
    for axis, (kind, positions) in zip(axes, averages.items(), strict=True):
        for (position, means), color, marker in zip(positions.items(), COLORS, MARKERS, strict=False):
            known = [(layer, mean) for layer, mean in enumerate(means) if mean.value is not None]
            layers = [layer for layer, _ in known]
            axis.plot(
                layers, [mean.value for _, mean in known], color=color, marker=marker, markersize=3, label=position
            )
            bounds = [interval(mean) for _, mean in known]
            if bounds and None not in bounds:
                low, high = zip(*[bound for bound in bounds if bound is not None], strict=True)
                axis.fill_between(layers, low, high, color=color, alpha=0.2, linewidth=0)
        if critical is not None and critical.layers:
            axis.axvspan(critical.layers[0] - 0.5, critical.layers[-1] + 0.5, color="#767676", alpha=0.15, linewidth=0)
        axis.axhline(0, color="#767676", linewidth=0.8)
        axis.set_title(KINDS[kind].about, fontsize=9)
        axis.set(xlabel="layer")
    axes[0].set(ylabel="average indirect effect")
    axes[0].legend(fontsize="x-small", frameon=False)
    return figure


def _maps(count: int, rows: int) -> tuple[Any, list[Any]]:
    return panels(count, columns=count, size=(_WIDTH + _BAR / count, 1.4 + _ROW * rows), sharey=True)


def _heat_map(
    axis: Any, table: Sequence[Sequence[float]], labels: Sequence[str], kind: str, low: float, high: float
) -> Any:
    drawn = axis.imshow(table, aspect="auto", cmap=_MAP, vmin=low, vmax=high, interpolation="nearest")
    # A label may hold dollar signs, which are no formula.
    axis.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    axis.set_title(KINDS[kind].about, fontsize=9)
    axis.set(xlabel="layer")
    return drawn


def _shown(token: str) -> str:
    """A token as a label: on one line, with its spaces seen only where there is nothing else."""
    return "".join(character if character.isprintable() else "?" for character in token.strip()) or repr(token)[1:-1]
