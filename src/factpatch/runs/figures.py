"""The paper's figures from a run, and curves over the stream of edits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factpatch.evaluation.hidden_states import tsne_map
from factpatch.files import atomic_write
from factpatch.runs.measure import tensors_at
from factpatch.runs.reproductions import PAIRS
from factpatch.runs.results import Results
from factpatch.runs.rows import When

if TYPE_CHECKING:
    import pandas as pd

_WIDTH = 3.2  # inches of one panel


def capability_curves(results: Results) -> Any:
    """F1 of every task over the number of edits, plain methods dashed and those with BLUE solid (the paper's Figure 6).

    Returns:
        A figure of matplotlib.
    """
    rows = results.rows[results.rows["metric"].str.endswith(".generated.f1")]
    tasks = list(dict.fromkeys(metric.split(".")[0] for metric in rows["metric"]))
    figure, axes = _panels(len(tasks))
    for task, axis in zip(tasks, axes, strict=True):
        of_task = rows[rows["metric"] == f"{task}.generated.f1"]
        before = of_task[of_task["when"] == When.BEFORE.value]["value"].mean()
        for label in results.labels:
            points = over_edits(of_task[of_task["label"] == label])
            style = "-" if results.methods[label] in PAIRS else "--"
            axis.plot([0, *points.index], [before, *points], style, label=label, marker=".")
        axis.set(title=task, xlabel="edits", ylabel="F1, weighted, %")
    if tasks:
        axes[0].legend(fontsize="x-small")
    return figure


def hidden_state_maps(results: Results, seed: int = 0) -> Any:
    """Hidden states before and after each method, in a plane by t-SNE (the paper's Figures 7, 9 and 10).

    Returns:
        A figure of matplotlib.
    """
    file = "measured/end.hidden_states.safetensors"
    plans = [plan for plan in results.directory.plans() if (plan.directory / file).is_file()]
    figure, axes = _panels(len(plans))
    for plan, axis in zip(plans, axes, strict=True):
        before = tensors_at(plan.unedited / "before.hidden_states")["states"]
        after = tensors_at(plan.directory / "measured" / "end.hidden_states")["states"]
        perplexity = min(30.0, (2 * len(before) - 1) / 3)
        for states, color, name in zip(
            tsne_map(before, after, seed, perplexity), ("tab:blue", "tab:red"), ("before", "after"), strict=True
        ):
            axis.scatter(states[:, 0], states[:, 1], s=3, c=color, label=name, alpha=0.6)
        axis.set(title=plan.name, xticks=[], yticks=[])
    if plans:
        axes[0].legend(fontsize="x-small")
    return figure


def over_edits(rows: pd.DataFrame) -> pd.Series:
    """The mean value by the number of edits, after the first of them."""
    after = rows[rows["when"] != When.BEFORE.value]
    return after.groupby("edits")["value"].mean()


def save_figure(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG."""
    written = []
    for suffix in ("png", "svg"):
        path = folder / f"{name}.{suffix}"
        # The suffix of a draft says nothing of its format.
        atomic_write(path, partial(figure.savefig, format=suffix, dpi=150))
        written.append(path)
    return written


def _panels(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(4, max(1, count))
    lines = -(-max(1, count) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _WIDTH * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flatten())
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]
