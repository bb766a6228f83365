"""What is drawn up from a run, by the name that a reproduction gives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from factpatch.plots import save_figure
from factpatch.runs.contrasts import compared
from factpatch.runs.figures import capability_curves, hidden_state_maps
from factpatch.runs.outcomes import outcomes
from factpatch.runs.reproductions import PAIRS, Output
from factpatch.runs.results import Results
from factpatch.runs.tables import Cell, Column, Table, comparison, improvements
from factpatch.runs.written import write_table


@dataclass(frozen=True)
class Drawn:
    """A table or a figure: what of it is shown, and where it was written."""

    table: Table | None = None
    said: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def draw_up(output: Output, results: Results, folder: Path, name: str) -> Drawn:
    """Draw up one output and write it to files that are called `name`."""
    return _OUTPUTS[output](results, folder, name)


def _comparison(results: Results, folder: Path, name: str) -> Drawn:
    table, pairs = results.table(name, PAIRS), results.pairs(PAIRS)
    both = [
        cell.improved
        for _, cells in table.lines
        for column, cell in zip(table.columns, cells, strict=True)
        if cell.mean is not None and cell.base is not None and not column.parts
    ]
    improved, known = sum(both), len(both)
    said = [f"With BLUE, {improved} of {known} numbers are better."] if known else []
    contrasts = [one for some in compared(results, outcomes(results), pairs).values() for one in some]
    notes = _notes(results)
    return Drawn(table, (*notes, *said), tuple(write_table(table, folder, name, contrasts, notes)))


def _notes(results: Results) -> list[str]:
    names = [dataset.name for dataset in results.directory.config.datasets]
    return [f"{name}: {note}" if len(names) > 1 else note for name in names for note in results.notes(name)]


def _improvements(results: Results, folder: Path, name: str) -> Drawn:
    averages = improvements(results.table(name, PAIRS), results.pairs(PAIRS))
    if not averages:
        return Drawn(said=("No method was measured with BLUE and without it.",))
    said = [
        f"{label}: {'not measured' if average is None else f'{average:+.2f} %'} on average"
        for label, average in averages.items()
    ]
    # As in the paper: a line for the model, a column for each method.
    columns = tuple(Column("", label, f"{label}, %", error=False) for label in averages)
    line = tuple(Cell(average) for average in averages.values())
    table = Table(name, columns, ((results.directory.config.model, line),), "model")
    files = write_table(table, folder, f"{name}.improvement")
    return Drawn(said=("Improvement by BLUE, averaged over the columns:", *said), files=tuple(files))


def _capability(results: Results, folder: Path, name: str) -> Drawn:
    files: list[Path] = []
    datasets = results.directory.config.datasets
    for dataset in datasets:
        figure = capability_curves(results, dataset.name)
        files += save_figure(figure, folder, f"{name}.{dataset.name}" if len(datasets) > 1 else name)
    return Drawn(files=tuple(files))


def _hidden_states(results: Results, folder: Path, name: str) -> Drawn:
    table = comparison(name, results.rows, results.labels, results.drift_columns(), results.pairs(PAIRS))
    files = write_table(table, folder, name)
    config = results.directory.config
    for dataset in config.datasets:
        for seed in config.seeds:
            parts = [
                name,
                *([dataset.name] if len(config.datasets) > 1 else []),
                *([str(seed)] if len(config.seeds) > 1 else []),
            ]
            files += save_figure(hidden_state_maps(results, dataset.name, seed), folder, ".".join(parts))
    return Drawn(table, files=tuple(files))


_OUTPUTS: dict[Output, Callable[[Results, Path, str], Drawn]] = {
    "comparison": _comparison,
    "improvements": _improvements,
    "capability": _capability,
    "hidden_states": _hidden_states,
}
