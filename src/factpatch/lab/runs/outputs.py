"""What is drawn up from a run, by the name that a reproduction gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from factpatch.lab.drawing.charts import figure, save_figure
from factpatch.lab.drawing.shapes import STATES
from factpatch.lab.runs.contrasts import Contrast, compared
from factpatch.lab.runs.figures import capability, hidden_states, mapped, method_styles
from factpatch.lab.runs.outcomes import outcomes
from factpatch.lab.runs.reproductions import PAIRS, Output
from factpatch.lab.runs.results import Results
from factpatch.lab.runs.tables import MISSING, Cell, Column, Table, comparison, improvements
from factpatch.support.files import atomic_write, csv_text


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
    for dataset in results.directory.config.datasets:
        drawn = figure(capability(results, dataset.name), method_styles(results), title=results.mean_over_seeds)
        files += save_figure(drawn, folder, _named(results, name, dataset=dataset.name))
    return Drawn(files=tuple(files))


def _hidden_states(results: Results, folder: Path, name: str) -> Drawn:
    table = comparison(name, results.rows, results.labels, results.drift_columns(), results.pairs(PAIRS))
    files = write_table(table, folder, name)
    config = results.directory.config
    for dataset, seed in product((one.name for one in config.datasets), config.seeds):
        plans = [plan for plan in mapped(results) if (plan.dataset.name, plan.seed) == (dataset, seed)]
        drawn = figure(hidden_states(plans), STATES)
        files += save_figure(drawn, folder, _named(results, name, dataset=dataset, seed=seed))
    return Drawn(table, files=tuple(files))


def _named(results: Results, name: str, dataset: str, seed: int | None = None) -> str:
    """The name of a file with what tells it from others of the same run."""
    config = results.directory.config
    parts = [name, *([dataset] if len(config.datasets) > 1 else [])]
    return ".".join([*parts, *([str(seed)] if seed is not None and len(config.seeds) > 1 else [])])


_OUTPUTS: dict[Output, Callable[[Results, Path, str], Drawn]] = {
    "comparison": _comparison,
    "improvements": _improvements,
    "capability": _capability,
    "hidden_states": _hidden_states,
}


_MARKS = {"better": "**", "worse": "*", "no clear difference": ""}


def write_table(
    table: Table, folder: Path, name: str, contrasts: Sequence[Contrast] = (), notes: Sequence[str] = ()
) -> list[Path]:
    """Write a table as Markdown, LaTeX and CSV.

    Args:
        contrasts: Differences between its lines, which go below the table in Markdown and into a CSV of their own.
        notes: Sentences about its columns, which go below the table in Markdown and are comments in LaTeX.
    """
    contents = {
        ".md": table.markdown()
        + "".join(f"\n{note}\n" for note in notes)
        + (differences_markdown(table.columns, contrasts) if contrasts else ""),
        ".tex": table.latex() + "".join(f"% {note}\n" for note in notes),
        ".csv": table.csv(),
    }
    if contrasts:
        contents[".differences.csv"] = differences_csv(contrasts)
    written = [folder / f"{name}{suffix}" for suffix in contents]
    for path, content in zip(written, contents.values(), strict=True):
        atomic_write(path, partial(Path.write_text, data=content, encoding="utf-8"))
    return written


def differences_markdown(columns: Sequence[Column], contrasts: Sequence[Contrast]) -> str:
    """A line for each pair of methods, a column for each metric; what is clearly better is bold, worse is slanted."""
    found: dict[str, dict[Column, str]] = {}
    for one in contrasts:
        mark = _MARKS[one.verdict]
        found.setdefault(one.pair, {})[one.column] = f"{mark}{one.interval.text(sign=True)}{mark}"
    rows = [
        "",
        "Differences on the same facts, with 95 % bootstrap intervals; bold: clearly better, slanted: clearly worse.",
        "",
        f"| difference | {' | '.join(column.head for column in columns)} |",
        "|---" * (1 + len(columns)) + "|",
        *(
            f"| {pair} | {' | '.join(texts.get(column, MISSING) for column in columns)} |"
            for pair, texts in found.items()
        ),
    ]
    return "\n".join(rows) + "\n"


def differences_csv(contrasts: Sequence[Contrast]) -> str:
    """Numbers in full: a line for each pair of methods and each metric."""
    heads = ["method", "base", "dataset", "metric", "difference", "low", "high", "facts", "verdict"]
    lines = (
        [
            one.label,
            one.base,
            one.column.dataset,
            one.column.metric,
            one.interval.value,
            one.interval.low,
            one.interval.high,
            one.interval.facts,
            one.verdict,
        ]
        for one in contrasts
    )
    return csv_text(heads, lines)
