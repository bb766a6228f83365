"""The charts of the page about runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from factpatch.page.charts import Chart, Draw, Key, chart, key
from factpatch.plots import AFTER, BEFORE
from factpatch.runs.directory import Plan
from factpatch.runs.figures import (
    capability_panel,
    capability_rows,
    capability_tasks,
    hidden_state_panel,
    mapped,
    over_edits,
    styles,
)
from factpatch.runs.results import Results
from factpatch.runs.rows import When
from factpatch.runs.tables import Column, Table

_BAR = 0.3  # inches
_PLAIN = "#767676"


def bar_charts(table: Table) -> Iterator[Chart]:
    """One for each column: a bar for each method with its standard error, and a line for the unedited model."""
    for index, column in enumerate(table.columns):
        cells = [(label, line[index]) for label, line in table.lines]
        # The perplexity of a model that collapsed may be infinite.
        shown = [(label, cell) for label, cell in cells if cell.mean is not None and math.isfinite(cell.mean)]
        if not shown:
            continue
        drawn = _bars(column, [(label, cell.mean or 0.0, cell.error) for label, cell in shown])
        said = ", ".join(f"{label} {cell.text(column.decimals)}" for label, cell in cells)
        direction = "higher is better" if column.higher_is_better else "lower is better"
        title = f"{column.header} ({direction})"
        yield chart(title, f"Bar chart of {column.header}: {said}.", drawn, 0.5 + _BAR * len(shown))


def forgetting_charts(results: Results, dataset: str) -> Iterator[Chart]:
    """One for each method: success of each batch right after it was written, and after the last one."""
    rows = results.rows[results.rows["dataset"] == dataset]
    known = set(rows["metric"][rows["value"].notna()])
    metric = "efficacy" if "efficacy" in known else "token_efficacy"
    rows = rows[(rows["metric"] == metric) & rows["value"].notna()]
    for label in dict.fromkeys(plan.method.label for plan in results.directory.plans()):
        of_label = rows[rows["label"] == label]
        curves = [
            (name, style, of_label[of_label["when"] == when.value].groupby("batch")["value"].mean())
            for when, style, name in (
                (When.WRITTEN, "o-", "right after it was written"),
                (When.END, "s--", "after the last batch"),
            )
        ]
        if any(curve.empty for _, _, curve in curves):
            continue
        means = [f"{curve.mean():.1f} % {name}" for name, _, curve in curves]
        yield chart(
            label, f"Efficacy of each batch under {label}: on average {' and '.join(means)}.", _forgetting(curves)
        )


def capability_charts(results: Results) -> Iterator[Chart]:
    """One for each dataset and task: F1 over the number of edits, a curve for each method."""
    datasets = [dataset.name for dataset in results.directory.config.datasets]
    for dataset, task in product(datasets, capability_tasks(results)):
        rows = capability_rows(results, dataset, task)
        curves = {label: over_edits(rows[rows["label"] == label]).dropna() for label in results.labels}
        ends = ", ".join(f"{label} {curve.iloc[-1]:.1f} %" for label, curve in curves.items() if len(curve))
        title = f"{task}, {dataset}" if len(datasets) > 1 else task
        yield chart(title, f"F1 in {title} over edits; at the end: {ends}.", _capability(results, dataset, task))


def hidden_state_charts(results: Results) -> Iterator[Chart]:
    """One for each method, dataset and seed whose hidden states were kept."""
    for plan in mapped(results):
        yield chart(
            plan.name,
            f"Map of hidden states before and after {plan.name}; the numbers are in the table.",
            _hidden_states(plan),
        )


def method_keys(results: Results) -> list[Key]:
    """The legend of charts with a curve for each method."""
    return [key(label, style.color, style.dash, style.marker) for label, style in styles(results).items()]


def written_keys() -> list[Key]:
    """The legend of the charts of forgetting."""
    return [key("right after it was written", BEFORE, "-", "o"), key("after the last batch", AFTER, "--", "s")]


def state_keys() -> list[Key]:
    """The legend of the maps."""
    return [key("before", BEFORE, "", "o"), key("after", AFTER, "", "o")]


def _bars(column: Column, values: Sequence[tuple[str, float, float | None]]) -> Draw:
    def draw(axis: Any) -> None:
        labels, means, errors = zip(*values, strict=True)
        colors = [_PLAIN if place == 0 and label == "unedited" else BEFORE for place, label in enumerate(labels)]
        known = [math.nan if error is None else error for error in errors]
        bars = axis.barh(range(len(labels)), means, xerr=known, color=colors, height=0.7, error_kw={"capsize": 2})
        axis.bar_label(bars, [f" {mean:,.{column.decimals}f}" for mean in means], fontsize=9, padding=2)
        axis.set_yticks(range(len(labels)), labels)
        axis.invert_yaxis()
        axis.margins(x=0.22)
        axis.axvline(means[0], color=_PLAIN, linestyle=":", linewidth=1)
        if max(means) > 100 * max(min(means), 1e-9) and not column.higher_is_better:
            axis.set_xscale("log")

    return draw


def _forgetting(curves: Sequence[tuple[str, str, Any]]) -> Draw:
    def draw(axis: Any) -> None:
        for (_, style, curve), color in zip(curves, (BEFORE, AFTER), strict=True):
            axis.plot(curve.index, curve, style, color=color, markersize=4)
        first, second = (curve for _, _, curve in curves)
        if first.index.equals(second.index):
            axis.fill_between(
                first.index,
                first,
                second,
                where=first >= second,
                interpolate=True,
                color=_PLAIN,
                alpha=0.15,
                linewidth=0,
            )
        axis.set(xlabel="batch", ylabel="efficacy, %", ylim=(-4, 104))
        axis.xaxis.get_major_locator().set_params(integer=True)

    return draw


def _capability(results: Results, dataset: str, task: str) -> Draw:
    return lambda axis: capability_panel(axis, results, dataset, task)


def _hidden_states(plan: Plan) -> Draw:
    def draw(axis: Any) -> None:
        hidden_state_panel(axis, plan)
        axis.spines[:].set_visible(True)
        for points in axis.collections:
            # A thousand points as a picture take a tenth of the room that they take as shapes.
            points.set_rasterized(True)

    return draw
