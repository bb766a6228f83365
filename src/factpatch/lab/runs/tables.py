"""Tables in the paper's layout: a line for each method, a column for each metric of each dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from factpatch.evaluation.intervals import mean
from factpatch.evaluation.metrics import harmonic_mean
from factpatch.lab.runs.rows import When
from factpatch.support.files import csv_text

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"


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
        heads = [column.head for column in self.columns]
        rows = [f"| {self.stub} | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
        for label, cells in self.lines:
            texts = (
                f"**{text}**" if cell.improved else text for cell, text in zip(cells, self._texts(cells), strict=True)
            )
            rows.append(f"| {label} | {' | '.join(texts)} |")
        return "\n".join(rows) + "\n"

    def latex(self) -> str:
        """A `tabular`; improvements are red, as in the paper, which takes the package `xcolor`."""
        heads = " & ".join(_escaped(column.head) for column in self.columns)
        rows = [
            rf"\begin{{tabular}}{{l{'c' * len(self.columns)}}}",
            r"\hline",
            rf"{self.stub.capitalize()} & {heads} \\",
            r"\hline",
        ]
        for label, cells in self.lines:
            texts = (
                rf"\textcolor{{red}}{{{text}}}" if cell.improved else text
                for cell, text in zip(cells, map(_escaped, self._texts(cells)), strict=True)
            )
            rows.append(rf"{_escaped(label)} & {' & '.join(texts)} \\")
        return "\n".join([*rows, r"\hline", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """Numbers in full: a column for the mean and one for the standard error, if there is one."""
        heads, lines = [self.stub], []
        for column in self.columns:
            heads += [column.name, f"{column.name}.error"] if column.error else [column.name]
        for label, cells in self.lines:
            line: list[object] = [label]
            for column, cell in zip(self.columns, cells, strict=True):
                line += [cell.mean, cell.error] if column.error else [cell.mean]
            lines.append(line)
        return csv_text(heads, lines)

    def _texts(self, cells: Sequence[Cell]) -> list[str]:
        return [cell.text(column.decimals) for column, cell in zip(self.columns, cells, strict=True)]


def comparison(
    title: str, rows: pd.DataFrame, labels: Sequence[str], columns: Sequence[Column], pairs: dict[str, str]
) -> Table:
    """The unedited model and every method after the last edit.

    Args:
        rows: As `read_rows` gives them.
        labels: The methods, in the order of the lines.
        pairs: For a method the one it should improve on.
    """
    means = {label: [_mean(rows, label, column) for column in columns] for label in ("", *labels)}
    end = rows[rows["when"] == When.END.value]
    # With the same seeds two methods were measured on the same facts.
    seeds = end.groupby(["label", "dataset"])["seed"].agg(frozenset).to_dict()
    lines = [("unedited", tuple(means[""]))]
    for label in labels:
        other = pairs.get(label, "")
        bases = means[other] if other in labels else [Cell(None)] * len(columns)
        cells = (
            _beside(cell, base, column)
            if seeds.get((label, column.dataset)) == seeds.get((other, column.dataset))
            else cell
            for cell, base, column in zip(means[label], bases, columns, strict=True)
        )
        lines.append((label, tuple(cells)))
    return Table(title, tuple(columns), tuple(lines))


def improvements(table: Table, pairs: dict[str, str]) -> dict[str, float | None]:
    """For each pair the average over columns of how much better the first is than the second, in percent of the second.

    Columns in which the second is 0 or nothing was measured are left out, those that follow from others, and those in
    which the two are not of the same facts. Source: arXiv:2502.03748, table 3.
    """
    cells = dict(table.lines)
    averages: dict[str, float | None] = {}
    for label, base in pairs.items():
        if label not in cells or base not in cells:
            continue
        changes = [
            (1 if column.higher_is_better else -1) * 100 * (cell.mean - cell.base) / abs(cell.base)
            for column, cell in zip(table.columns, cells[label], strict=True)
            if cell.mean is not None and cell.base and not column.parts
        ]
        averages[label] = math.fsum(changes) / len(changes) if changes else None
    return averages


def better(new: float | None, old: float | None, column: Column) -> bool:
    """Whether one mean is better than another."""
    if new is None or old is None:
        return False
    return new > old if column.higher_is_better else new < old


def _beside(cell: Cell, other: Cell, column: Column) -> Cell:
    return replace(cell, base=other.mean, improved=better(cell.mean, other.mean, column))


def _mean(rows: pd.DataFrame, label: str, column: Column) -> Cell:
    if column.parts:
        parts = (_mean(rows, label, replace(column, metric=metric, parts=())) for metric in column.parts)
        return Cell(harmonic_mean(part.mean for part in parts))
    measured = rows[(rows["dataset"] == column.dataset) & (rows["metric"] == column.metric)]
    when = When.END if label else When.BEFORE
    chosen = measured[(measured["label"] == label) & (measured["when"] == when.value)].dropna(subset=["value"])
    ends = measured[measured["when"] == When.END.value]
    if len(ends):  # where a fact that a later one replaced is not asked about
        chosen = chosen[chosen["fact"].isin(ends["fact"])]
    # Facts are the sample: what several seeds give for a fact is one value.
    by_fact = chosen.groupby("fact", dropna=False)["value"].mean()
    found = mean(by_fact.tolist())
    return Cell(found.value, found.error)


def _escaped(text: str) -> str:
    plain = text.replace("±", r"$\pm$").replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$").replace("–", "--")
    return plain.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&").replace("#", r"\#")
