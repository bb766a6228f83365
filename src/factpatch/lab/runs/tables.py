"""Tables in the paper's layout, a line for each method and a column for each metric; and how sure differences are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from factpatch.evaluation.intervals import Interval, Values, difference, mean, score, score_difference
from factpatch.evaluation.metrics import harmonic_mean
from factpatch.lab.drawing.charts import UNEDITED
from factpatch.lab.runs.rows import When
from factpatch.support.files import atomic_write, csv_text

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"
Verdict = Literal["better", "worse", "no clear difference"]
_MARKS = {"better": "**", "worse": "*", "no clear difference": ""}


@dataclass(frozen=True)
class Column:
    """One metric of one dataset."""

    dataset: str
    metric: str
    header: str
    """What stands above it."""
    higher_is_better: bool = True
    decimals: int = 2
    parts: tuple[str, ...] = ()
    """The metrics whose harmonic mean it is; empty for what is measured."""
    error: bool = True
    """Whether its means have a standard error."""

    @property
    def head(self) -> str:
        """What stands above it where several datasets have one."""
        return f"{self.dataset} {self.header} {'↑' if self.higher_is_better else '↓'}".strip()

    @property
    def name(self) -> str:
        """As used in files of numbers."""
        return ".".join(filter(None, (self.dataset, self.metric)))


@dataclass(frozen=True)
class Cell:
    """A mean over facts with its standard error."""

    mean: float | None
    error: float | None = None
    base: float | None = None
    """The mean of the method it is compared with; None if there is none, or it is not of the same facts."""
    improved: bool = False
    """Whether it is better than that."""

    def text(self, decimals: int) -> str:
        """As `99.57±0.24`; a dash where nothing was measured."""
        if self.mean is None:
            return MISSING
        error = "" if self.error is None else f"±{self.error:.{decimals}f}"
        return f"{self.mean:.{decimals}f}{error}"


@dataclass(frozen=True)
class Table:
    """A table with a name, ready to be written in several forms."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[tuple[str, tuple[Cell, ...]], ...]
    """A label and a cell for each column."""
    stub: str = "method"
    """What the labels are."""

    def markdown(self) -> str:
        """Improvements are bold."""
        return _markdown([self.stub, *(column.head for column in self.columns)], self._texts("**{}**"))

    def latex(self) -> str:
        """A `tabular`; improvements are red, as in the paper, which takes the package `xcolor`."""
        heads = [self.stub.capitalize(), *(column.head for column in self.columns)]
        lines = [heads, *self._texts(r"\textcolor{{red}}{{{}}}")]
        first, *rows = (rf"{' & '.join(map(_escaped, line))} \\" for line in lines)
        begin = rf"\begin{{tabular}}{{l{'c' * len(self.columns)}}}"
        return "\n".join([begin, r"\hline", first, r"\hline", *rows, r"\hline", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """Numbers in full: a column for the mean and one for the standard error, if there is one."""
        heads, lines = [self.stub], list[list[object]]([label] for label, _ in self.lines)
        for place, column in enumerate(self.columns):
            heads += [column.name, f"{column.name}.error"] if column.error else [column.name]
            for line, (_, cells) in zip(lines, self.lines, strict=True):
                line += [cells[place].mean, cells[place].error] if column.error else [cells[place].mean]
        return csv_text(heads, lines)

    def _texts(self, improved: str) -> list[list[str]]:
        """The label and the cells of each line; `improved` is the form of those that are."""
        return [
            [
                label,
                *(
                    (improved if cell.improved else "{}").format(cell.text(column.decimals))
                    for column, cell in zip(self.columns, cells, strict=True)
                ),
            ]
            for label, cells in self.lines
        ]


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(line)} |" for line in (heads, *lines)]
    return "\n".join([rows[0], "|---" * len(heads) + "|", *rows[1:]]) + "\n"


def _escaped(text: str) -> str:
    signs = {"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", **{s: f"\\{s}" for s in "_%&#"}}
    return "".join(signs.get(sign, sign) for sign in text)


def values_of_facts(rows: pd.DataFrame, label: str, dataset: str) -> pd.DataFrame:
    """The values of each metric after the last batch, a column for each metric and a line for each fact.

    The facts are the sample: what several seeds give for a fact is one value, their mean. Of the unedited model, whose
    label is empty, the facts are those that methods were asked about at the end; all, if none was yet. A line that is
    called "" holds numbers about the model.
    """
    rows = rows[rows["dataset"] == dataset].assign(fact=rows["fact"].fillna(""))
    ends = rows[rows["when"] == When.END.value]
    chosen = ends[ends["label"] == label] if label else rows[rows["when"] == When.BEFORE.value]
    if not label and len(ends):
        # A fact that a later one replaced is not asked about at the end.
        chosen = chosen[chosen["fact"].isin([*ends["fact"], ""])]
    # In the order of the facts, which the bootstrap's draws follow.
    return chosen.groupby(["fact", "metric"])["value"].mean().unstack().reindex(chosen["fact"].unique())


def comparison(
    title: str, rows: pd.DataFrame, labels: Sequence[str], columns: Sequence[Column], pairs: Mapping[str, str]
) -> Table:
    """The unedited model and every method after the last edit; `pairs` says which one each should improve on."""
    means: dict[str, list[Cell]] = {}
    for label in ("", *labels):
        values = {dataset: values_of_facts(rows, label, dataset) for dataset in {one.dataset for one in columns}}
        means[label] = [_mean(values[column.dataset], column) for column in columns]
    end = rows[rows["when"] == When.END.value]
    # With other seeds, or after another number of batches, two methods were measured on other facts.
    facts = end.dropna(subset="fact").groupby(["label", "dataset"])[["seed", "fact"]]
    asked = {key: frozenset(some.itertuples(index=False, name=None)) for key, some in facts}

    def compared(cell: Cell, label: str, place: int, column: Column) -> Cell:
        base = pairs.get(label, "")
        if base not in labels or asked.get((label, column.dataset)) != asked.get((base, column.dataset)):
            return cell
        other = means[base][place].mean
        if cell.mean is None or other is None:
            return replace(cell, base=other)
        return replace(cell, base=other, improved=cell.mean > other if column.higher_is_better else cell.mean < other)

    lines = [
        (label, tuple(compared(means[label][place], label, place, column) for place, column in enumerate(columns)))
        for label in labels
    ]
    return Table(title, tuple(columns), ((UNEDITED, tuple(means[""])), *lines))


def _mean(values: pd.DataFrame, column: Column) -> Cell:
    found = [
        mean(values[metric].dropna().tolist() if metric in values else [])
        for metric in column.parts or (column.metric,)
    ]
    return Cell(harmonic_mean(one.value for one in found)) if column.parts else Cell(found[0].value, found[0].error)


def improvements(table: Table, pairs: Mapping[str, str]) -> dict[str, float | None]:
    """For each pair the average over columns of how much better the first is than the second, in percent of the second.

    Columns in which the second is 0 or nothing was measured are left out, those that follow from others, and those in
    which the two are not of the same facts. Source: arXiv:2502.03748, table 3.
    """
    cells = dict(table.lines)
    averages: dict[str, float | None] = {}
    for label, base in pairs.items():
        if label in cells and base in cells:
            changes = [
                (1 if column.higher_is_better else -1) * 100 * (cell.mean - cell.base) / abs(cell.base)
                for column, cell in zip(table.columns, cells[label], strict=True)
                if cell.mean is not None and cell.base and not column.parts
            ]
            averages[label] = math.fsum(changes) / len(changes) if changes else None
    return averages


@dataclass(frozen=True)
class Contrast:
    """One number of a method minus that of another, with a bootstrap interval."""

    label: str
    base: str
    column: Column
    interval: Interval

    @property
    def pair(self) -> str:
        return f"{self.label} − {self.base}"

    @property
    def verdict(self) -> Verdict:
        """Whether the interval leaves 0 out, and on which side."""
        low, high = self.interval.low, self.interval.high
        if low is None or high is None or low <= 0 <= high:
            return "no clear difference"
        return "better" if (low > 0) == self.column.higher_is_better else "worse"


def contrasts(rows: pd.DataFrame, pairs: Mapping[str, str], columns: Sequence[Column]) -> list[Contrast]:
    """Compare each method with another one in each metric of single facts, and in the score.

    The facts are the sample, those that both methods were asked about at the end: the intervals say what other facts
    would give, and not what other seeds would.
    """
    found = []
    for (label, base), dataset in product(pairs.items(), dict.fromkeys(column.dataset for column in columns)):
        first, second = (_facts(rows, one, dataset) for one in (label, base))
        common = first.index.intersection(second.index, sort=False)
        for column in (one for one in columns if one.dataset == dataset and len(common)):
            ours, theirs = (
                [_values(some.loc[common], metric) for metric in column.parts or (column.metric,)]
                for some in (first, second)
            )
            interval = score_difference(ours, theirs) if column.parts else difference(ours[0], theirs[0])
            found.append(Contrast(label, base, column, interval))
    return found


def scored(rows: pd.DataFrame, label: str, columns: Sequence[Column]) -> Interval | None:
    """The score of one method, with its interval; None if a part of it was not measured."""
    for column in (one for one in columns if one.parts):
        values = _facts(rows, label, column.dataset)
        return score([_values(values, part) for part in column.parts])
    return None


def _facts(rows: pd.DataFrame, label: str, dataset: str) -> pd.DataFrame:
    """The values of facts that have any."""
    return values_of_facts(rows, label, dataset).drop("", errors="ignore").dropna(how="all")


def _values(values: pd.DataFrame, metric: str) -> Values:
    column = values[metric] if metric in values else dict.fromkeys(values.index, math.nan)
    return {fact: None if math.isnan(value) else value for fact, value in column.items()}


def write_table(
    table: Table, folder: Path, name: str, compared: Sequence[Contrast] = (), notes: Sequence[str] = ()
) -> list[Path]:
    """Write a table as Markdown, LaTeX and CSV, with notes, and differences between its lines in a CSV of their own."""
    markdown = table.markdown() + "".join(f"\n{note}\n" for note in notes)
    contents = {".tex": table.latex() + "".join(f"% {note}\n" for note in notes), ".csv": table.csv()}
    if compared:
        markdown += f"\n{differences_markdown(table.columns, compared)}"
        contents[".differences.csv"] = differences_csv(compared)
    contents = {".md": markdown, **contents}
    written = [folder / f"{name}{suffix}" for suffix in contents]
    for path, content in zip(written, contents.values(), strict=True):
        atomic_write(path, partial(Path.write_text, data=content, encoding="utf-8"))
    return written


def differences_markdown(columns: Sequence[Column], compared: Sequence[Contrast]) -> str:
    """A line for each pair of methods, a column for each metric; what is clearly better is bold, worse is slanted."""
    texts = {
        (one.pair, one.column): f"{_MARKS[one.verdict]}{one.interval.text(sign=True)}{_MARKS[one.verdict]}"
        for one in compared
    }
    lines = [
        [pair, *(texts.get((pair, column), MISSING) for column in columns)]
        for pair in dict.fromkeys(one.pair for one in compared)
    ]
    said = "Differences on the same facts, with 95 % bootstrap intervals; bold: clearly better, slanted: clearly worse."
    return f"{said}\n\n{_markdown(['difference', *(column.head for column in columns)], lines)}"


def differences_csv(compared: Sequence[Contrast]) -> str:
    """Numbers in full: a line for each pair of methods and each metric."""
    heads = ["method", "base", "dataset", "metric", "difference", "low", "high", "facts", "verdict"]
    return csv_text(
        heads,
        (
            [one.label, one.base, one.column.dataset, one.column.metric,
             *(getattr(one.interval, name) for name in ("value", "low", "high", "facts")), one.verdict]
            for one in compared
        ),
    )  # fmt: skip
