"""The tables and figures of a run, by the name that a reproduction gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from factpatch.lab.drawing.charts import UNEDITED, figure, save_figure
from factpatch.lab.drawing.shapes import STATES
from factpatch.lab.runs.figures import capability, curve_values, curves, hidden_states, mapped, method_styles
from factpatch.lab.runs.reproductions import Output, blue_pairs
from factpatch.lab.runs.results import Results
from factpatch.lab.runs.tables import Cell, Column, Table, comparison, contrasts, improvements, write_table
from factpatch.support.files import atomic_write, csv_text


@dataclass(frozen=True)
class Drawn:
    """A table or a figure: what to print of it, and where it was written."""

    table: Table | None = None
    sentences: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def draw_up(output: Output, results: Results, folder: Path, name: str) -> Drawn:
    """Draw up one output and write it to files that are called `name`."""
    return _OUTPUTS[output](results, folder, name)


def _comparison(results: Results, folder: Path, name: str) -> Drawn:
    with_blue = blue_pairs()
    table, pairs = results.table(name, with_blue), results.pairs(with_blue)
    several = len(results.datasets) > 1
    notes = [f"{one}: {note}" if several else note for one in results.datasets for note in results.notes(one)]
    notes += [f"{line}: {why}" for line, why in results.stopped.items()]
    improved = [
        cell.improved
        for _, cells in table.lines
        for column, cell in zip(table.columns, cells, strict=True)
        if cell.mean is not None and cell.base is not None and not column.parts
    ]
    said = [f"With BLUE, {sum(improved)} of {len(improved)} numbers are better."] if improved else []
    files = write_table(table, folder, name, contrasts(results.rows, pairs, table.columns), notes)
    return Drawn(table, (*notes, *said), tuple(files))


def _improvements(results: Results, folder: Path, name: str) -> Drawn:
    with_blue = blue_pairs()
    averages = improvements(results.table(name, with_blue), results.pairs(with_blue))
    if not averages:
        return Drawn(sentences=("No method was measured with BLUE and without it.",))
    said = [
        f"{label}: {'not measured' if average is None else f'{average:+.2f} %'} on average"
        for label, average in averages.items()
    ]
    # As in the paper: a line for the model, a column for each method.
    columns = tuple(Column("", label, f"{label}, %", error=False) for label in averages)
    line = tuple(Cell(average) for average in averages.values())
    table = Table(name, columns, ((results.directory.config.model, line),), "model")
    files = write_table(table, folder, f"{name}.improvement")
    return Drawn(sentences=("Improvement by BLUE, averaged over the columns:", *said), files=tuple(files))


def _capability(results: Results, folder: Path, name: str) -> Drawn:
    files: list[Path] = []
    for dataset in results.datasets:
        drawn = figure(capability(results, dataset), method_styles(results), title=results.mean_over_seeds)
        files += save_figure(drawn, folder, _named(results, name, dataset))
    return Drawn(files=tuple(files))


def _curves(results: Results, folder: Path, name: str) -> Drawn:
    """The curves of a session as a figure, and as numbers: a line for each point of each metric under each method."""
    files = [folder / f"{name}.curves.csv"]
    lines: list[list[object]] = []
    for dataset in results.datasets:
        for metric, (before, found) in curve_values(results, dataset).items():
            lines += [[UNEDITED, dataset, metric, 0, before]]
            lines += [[label, dataset, metric, edits, v] for label, line in found.items() for edits, v in line.items()]
        drawn = figure(curves(results, dataset), method_styles(results), title=results.mean_over_seeds)
        files += save_figure(drawn, folder, _named(results, f"{name}.curves", dataset))
    text = csv_text(["method", "dataset", "metric", "edits", "value"], lines)
    atomic_write(files[0], lambda draft: draft.write_text(text, "utf-8"))
    return Drawn(files=tuple(files))


def _hidden_states(results: Results, folder: Path, name: str) -> Drawn:
    columns = [column for dataset in results.datasets for column in results.drift_columns(dataset)]
    table = comparison(name, results.rows, results.labels, columns, results.pairs(blue_pairs()))
    files = write_table(table, folder, name)
    for dataset, seed in product(results.datasets, results.directory.config.seeds):
        plans = [plan for plan in mapped(results) if (plan.dataset.name, plan.seed) == (dataset, seed)]
        files += save_figure(figure(hidden_states(plans), STATES), folder, _named(results, name, dataset, seed))
    return Drawn(table, files=tuple(files))


def _named(results: Results, name: str, dataset: str, seed: int | None = None) -> str:
    """The name of a file with what tells it from others of the same run."""
    parts = [name, *([dataset] if len(results.datasets) > 1 else [])]
    several = seed is not None and len(results.directory.config.seeds) > 1
    return ".".join([*parts, *([str(seed)] if several else [])])


_OUTPUTS: dict[Output, Callable[[Results, Path, str], Drawn]] = {
    "comparison": _comparison,
    "improvements": _improvements,
    "capability": _capability,
    "hidden_states": _hidden_states,
    "curves": _curves,
}
