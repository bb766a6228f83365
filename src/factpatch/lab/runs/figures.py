"""The charts of a run: the paper's figures, bars of its table, and curves over the edits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from factpatch.evaluation.hidden_states import tsne_map
from factpatch.lab.drawing.charts import AFTER, BEFORE, COLORS, GRAY, MARKERS, UNEDITED, Panel, Style, Styles
from factpatch.lab.drawing.shapes import states
from factpatch.lab.runs.measures import tensors_at
from factpatch.lab.runs.plan import Plan
from factpatch.lab.runs.reproductions import blue_pairs
from factpatch.lab.runs.results import Results
from factpatch.lab.runs.rows import When
from factpatch.lab.runs.tables import Column, Table

if TYPE_CHECKING:
    import pandas as pd

_BAR = 0.3  # inches
FORGETTING: Styles = {"right after it was written": Style(BEFORE), "after the last batch": Style(AFTER, "--", "s")}
"""Of the panels that `forgetting` gives."""


def method_styles(results: Results) -> Styles:
    """Of each method: one color for it with and without BLUE, which is solid; a marker of its own."""
    pairs = blue_pairs()
    bases = [pairs.get(name, name) for name in results.methods.values()]
    places = {base: place for place, base in enumerate(dict.fromkeys(bases))}
    return {
        label: Style(
            COLORS[places[base] % len(COLORS)],
            "-" if results.methods[label] in pairs else "--",
            MARKERS[place % len(MARKERS)],
        )
        for place, (label, base) in enumerate(zip(results.methods, bases, strict=True))
    }


def bars(table: Table) -> list[Panel]:
    """A panel for each column: a bar for each method with its standard error, and a line for the unedited model."""
    found = []
    for index, column in enumerate(table.columns):
        cells = [(label, line[index]) for label, line in table.lines]
        # The perplexity of a model that collapsed may be infinite.
        shown = [(label, cell.mean, cell.error) for label, cell in cells if cell.mean is not None]
        shown = [one for one in shown if math.isfinite(one[1])]
        if shown:
            described = ", ".join(f"{label} {cell.text(column.decimals)}" for label, cell in cells)
            direction = "higher is better" if column.higher_is_better else "lower is better"
            found.append(
                Panel(
                    f"{column.header} ({direction})",
                    f"Bar chart of {column.header}: {described}.",
                    partial(_bars, column=column, values=shown),
                    height=0.5 + _BAR * len(shown),
                )
            )
    return found


def _bars(axis: Any, styles: Styles, column: Column, values: Sequence[tuple[str, float, float | None]]) -> None:
    labels, means, errors = zip(*values, strict=True)
    colors = [GRAY if label == UNEDITED else BEFORE for label in labels]
    known = [math.nan if error is None else error for error in errors]
    drawn = axis.barh(range(len(labels)), means, xerr=known, color=colors, height=0.7, error_kw={"capsize": 2})
    axis.bar_label(drawn, [f" {mean:,.{column.decimals}f}" for mean in means], fontsize=9, padding=2)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.margins(x=0.22)
    axis.axvline(means[0], color=GRAY, linestyle=":", linewidth=1)
    if max(means) > 100 * max(min(means), 1e-9) and not column.higher_is_better:
        axis.set_xscale("log")


def forgetting(results: Results, dataset: str) -> list[Panel]:
    """A panel for each method: efficacy of each batch right after it was written, and after the last one."""
    rows = results.rows[(results.rows["dataset"] == dataset) & results.rows["value"].notna()]
    metric = "efficacy" if (rows["metric"] == "efficacy").any() else "token_efficacy"
    means = rows[rows["metric"] == metric].groupby(["label", "when", "batch"])["value"].mean()
    found = []
    for label in (method.label for method in results.directory.config.methods):
        if not all((label, when.value) in means for when in (When.WRITTEN, When.END)):
            continue
        written, end = (means[label, when.value] for when in (When.WRITTEN, When.END))
        described = " and ".join(
            f"{curve.mean():.1f} % {name}" for curve, name in zip((written, end), FORGETTING, strict=True)
        )
        found.append(
            Panel(
                label,
                f"Efficacy of each batch under {label}: on average {described}.",
                partial(_forgetting, written=written, end=end),
            )
        )
    return found


def _forgetting(axis: Any, styles: Styles, written: pd.Series, end: pd.Series) -> None:
    for curve, style in zip((written, end), styles.values(), strict=True):
        axis.plot(curve.index, curve, **style.line)
    if written.index.equals(end.index):
        lost = {"where": written >= end, "interpolate": True}
        axis.fill_between(written.index, written, end, **lost, color=GRAY, alpha=0.15, linewidth=0)
    axis.set(xlabel="batch", ylabel="efficacy, %", ylim=(-4, 104))
    axis.xaxis.get_major_locator().set_params(integer=True)


def capability(results: Results, dataset: str) -> list[Panel]:
    """A panel for each task: F1 over the number of edits, a curve for each method (the paper's Figure 6)."""
    several = len(results.directory.config.datasets) > 1
    found = []
    for task in capability_tasks(results):
        rows = results.rows
        rows = rows[(rows["metric"] == f"{task}.generated.f1") & (rows["dataset"] == dataset)]
        before, curves = _over_edits(results, rows)
        ends = ", ".join(f"{label} {curve.iloc[-1]:.1f} %" for label, curve in curves.items())
        title = f"{task}, {dataset}" if several else task

        draw = partial(_curves, before=before, curves=curves, unit="F1, weighted, %")
        found.append(Panel(title, f"F1 in {title} over edits; at the end: {ends}.", draw))
    return found


def _over_edits(results: Results, rows: pd.DataFrame) -> tuple[float, dict[str, pd.Series]]:
    """The value of a metric in the unedited model, and by label its values over the number of edits."""
    before = rows[rows["when"] == When.BEFORE.value]["value"].mean()
    after = rows[rows["when"] != When.BEFORE.value]
    # A row that was mended has been measured twice with all of its facts: the end is what it ended with.
    ended = after[after["when"] == When.END.value].set_index(["label", "edits"]).index
    passed = after.set_index(["label", "edits"]).index.isin(ended) & (after["when"] != When.END.value)
    means = after[~passed].groupby(["label", "edits"])["value"].mean().dropna()
    # A method in the middle of its work has a curve, too.
    labels = [method.label for method in results.directory.config.methods]
    return before, {label: means[label] for label in labels if label in means}


def _curves(axis: Any, styles: Styles, before: float, curves: Mapping[str, pd.Series], unit: str) -> None:
    for label, curve in curves.items():
        axis.plot([0, *curve.index], [before, *curve], label=label, **styles[label].line)
    axis.set(xlabel="edits", ylabel=unit)


_PARTS = ("first", "middle", "last")
CURVES = {
    **{f"curve.{part}.strict_efficacy": f"{part} facts, exact" for part in _PARTS},
    **{f"curve.{part}.prompt_contained": f"{part} facts, said" for part in _PARTS},
    "curve.all.specificity": "specificity",
    "perplexity": "perplexity",
}
"""The metrics of `curves`, and what a chart calls each."""


def curve_values(results: Results, dataset: str) -> dict[str, tuple[float, dict[str, pd.Series]]]:
    """By metric of `CURVES`, as far as it was measured: the unedited model's value, and each label's over the edits."""
    rows = results.rows[results.rows["dataset"] == dataset]
    found = {metric: _over_edits(results, rows[rows["metric"] == metric]) for metric in CURVES}
    return {metric: (before, curves) for metric, (before, curves) in found.items() if curves}


def curves(results: Results, dataset: str) -> list[Panel]:
    """A panel for each metric of the curve: its value over the number of edits, a line for each method."""
    several = len(results.directory.config.datasets) > 1
    found = []
    for metric, (before, lines) in curve_values(results, dataset).items():
        percent = metric != "perplexity"
        ends = ", ".join(f"{label} {line.iloc[-1]:.1f}{' %' if percent else ''}" for label, line in lines.items())
        title = f"{CURVES[metric]}, {dataset}" if several else CURVES[metric]
        draw = partial(_curves, before=before, curves=lines, unit="% of facts" if percent else "perplexity")
        found.append(Panel(title, f"{title} over edits; at the end: {ends}.", draw))
    return found


def capability_tasks(results: Results) -> list[str]:
    """The tasks that were measured."""
    metrics = results.rows["metric"]
    return list(dict.fromkeys(metric.split(".")[0] for metric in metrics[metrics.str.endswith(".generated.f1")]))


def hidden_states(plans: Sequence[Plan]) -> list[Panel]:
    """A panel for each line of the table: hidden states before and after, in a plane by t-SNE (Figures 7, 9 and 10)."""
    return [
        states(
            plan.name, f"Map of hidden states before and after {plan.name}; the numbers are in the table.", *_map(plan)
        )
        for plan in plans
    ]


def mapped(results: Results) -> list[Plan]:
    """The lines of the table whose hidden states were kept."""
    file = "measured/end.hidden_states.safetensors"
    return [plan for plan in results.directory.plans() if (plan.directory / file).is_file()]


def _map(plan: Plan) -> tuple[Any, Any]:
    before = tensors_at(plan.unedited / "before.hidden_states")["states"]
    after = tensors_at(plan.directory / "measured" / "end.hidden_states")["states"]
    return tsne_map(before, after)
