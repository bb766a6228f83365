"""The paper's figures from a run, and curves over the stream of edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from factpatch.evaluation.hidden_states import tsne_map
from factpatch.lab.drawing.plots import COLORS, MARKERS, draw_states, panels
from factpatch.lab.runs.directory import Plan
from factpatch.lab.runs.measures import tensors_at
from factpatch.lab.runs.reproductions import PAIRS
from factpatch.lab.runs.results import Results
from factpatch.lab.runs.rows import When

if TYPE_CHECKING:
    import pandas as pd


import math
from collections.abc import Iterator, Sequence
from itertools import product

from factpatch.lab.drawing.charts import Chart, Draw, Key, chart, key
from factpatch.lab.drawing.plots import AFTER, BEFORE
from factpatch.lab.runs.tables import Column, Table


@dataclass(frozen=True)
class Style:
    """How a method's curve is drawn."""

    color: str
    dash: str
    marker: str


def styles(results: Results) -> dict[str, Style]:
    """Of each finished method: one color for it with and without BLUE, which is solid; a marker of its own."""
    bases = [PAIRS.get(results.methods[label], results.methods[label]) for label in results.labels]
    places = {base: place for place, base in enumerate(dict.fromkeys(bases))}
    return {
        label: Style(
            COLORS[places[base] % len(COLORS)],
            "-" if results.methods[label] in PAIRS else "--",
            MARKERS[place % len(MARKERS)],
        )
        for place, (label, base) in enumerate(zip(results.labels, bases, strict=True))
    }


def capability_curves(results: Results, dataset: str) -> Any:
    """F1 of every task over the number of edits, plain methods dashed and those with BLUE solid (the paper's Figure 6).

    The title says so if a curve is the mean over several seeds.

    Returns:
        A figure of matplotlib.
    """
    tasks = capability_tasks(results)
    figure, axes = panels(len(tasks))
    for task, axis in zip(tasks, axes, strict=True):
        capability_panel(axis, results, dataset, task)
        axis.set(title=task)
    if tasks:
        axes[0].legend(fontsize="x-small")
    _entitle(figure, results, dataset, results.mean_over_seeds)
    return figure


def capability_tasks(results: Results) -> list[str]:
    """The tasks that were measured."""
    metrics = results.rows["metric"]
    return list(dict.fromkeys(metric.split(".")[0] for metric in metrics[metrics.str.endswith(".generated.f1")]))


def capability_panel(axis: Any, results: Results, dataset: str, task: str) -> None:
    """Draw the curves of one task on one dataset."""
    rows = capability_rows(results, dataset, task)
    before = rows[rows["when"] == When.BEFORE.value]["value"].mean()
    for label, style in styles(results).items():
        points = over_edits(rows[rows["label"] == label])
        axis.plot(
            [0, *points.index], [before, *points], style.dash, color=style.color, marker=style.marker, label=label
        )
    axis.set(xlabel="edits", ylabel="F1, weighted, %")


def capability_rows(results: Results, dataset: str, task: str) -> pd.DataFrame:
    """F1 of one task on one dataset."""
    rows = results.rows
    return rows[(rows["metric"] == f"{task}.generated.f1") & (rows["dataset"] == dataset)]


def hidden_state_maps(results: Results, dataset: str, seed: int) -> Any:
    """Hidden states before and after each method, in a plane by t-SNE (the paper's Figures 7, 9 and 10).

    Args:
        seed: Of the run; the maps themselves are drawn with another one, always the same.

    Returns:
        A figure of matplotlib.
    """
    plans = [plan for plan in mapped(results) if plan.dataset.name == dataset and plan.seed == seed]
    figure, axes = panels(len(plans))
    for plan, axis in zip(plans, axes, strict=True):
        hidden_state_panel(axis, plan)
        axis.set(title=plan.method.label)
    if plans:
        axes[0].legend(fontsize="x-small")
    _entitle(figure, results, dataset, f"seed {seed}" if len(results.directory.config.seeds) > 1 else "")
    return figure


def mapped(results: Results) -> list[Plan]:
    """The lines of the table whose hidden states were kept."""
    file = "measured/end.hidden_states.safetensors"
    return [plan for plan in results.directory.plans() if (plan.directory / file).is_file()]


def hidden_state_panel(axis: Any, plan: Plan) -> None:
    """Draw the map of one line of the table."""
    before = tensors_at(plan.unedited / "before.hidden_states")["states"]
    after = tensors_at(plan.directory / "measured" / "end.hidden_states")["states"]
    draw_states(axis, *tsne_map(before, after))


def over_edits(rows: pd.DataFrame) -> pd.Series:
    """The mean value by the number of edits, after the first of them."""
    after = rows[rows["when"] != When.BEFORE.value]
    return after.groupby("edits")["value"].mean()


def _entitle(figure: Any, results: Results, dataset: str, further: str) -> None:
    """Let the title say what tells a figure from others of the same run."""
    several = len(results.directory.config.datasets) > 1
    if title := ", ".join(filter(None, (dataset if several else "", further))):
        figure.suptitle(title)


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
