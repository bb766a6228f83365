"""The paper's figures from a run, and curves over the stream of edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from factpatch.evaluation.hidden_states import tsne_map
from factpatch.plots import COLORS, MARKERS, draw_states, panels
from factpatch.runs.directory import Plan
from factpatch.runs.measure import tensors_at
from factpatch.runs.reproductions import PAIRS
from factpatch.runs.results import Results
from factpatch.runs.rows import When

if TYPE_CHECKING:
    import pandas as pd


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
