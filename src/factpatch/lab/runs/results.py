"""Read a run back: its result rows, what is finished and what failed, and the paper's columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factpatch.evaluation.metrics import SCORED
from factpatch.evaluation.text import GREEDY, TEXT_METRICS
from factpatch.lab.runs.directory import RunDirectory, RunError
from factpatch.lab.runs.inputs import fact_key
from factpatch.lab.runs.plan import Plan
from factpatch.lab.runs.rows import When, read_rows
from factpatch.lab.runs.tables import Column, Table, comparison
from factpatch.support.words import counted

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """What a run has measured so far."""

    directory: RunDirectory
    rows: pd.DataFrame
    """The columns are the fields of `ResultRow`; a fact without an id is called by its key."""
    records: tuple[dict[str, Any], ...]
    """row.json of every finished line of the table: settings, seconds, bytes."""
    missing: tuple[str, ...]
    """The lines that are not finished."""

    @property
    def datasets(self) -> list[str]:
        """The names of the datasets, in the run's order."""
        return [dataset.name for dataset in self.directory.config.datasets]

    @property
    def methods(self) -> dict[str, str]:
        """The method of each label, in the run's order."""
        return {method.label: method.name for method in self.directory.config.methods}

    @property
    def labels(self) -> list[str]:
        """The methods with a finished or failed line, in the run's order."""
        finished = {record["label"] for record in self.records}
        return [label for label in self.methods if label in finished]

    @property
    def failed(self) -> dict[str, str]:
        """Why a line of the table failed, by what it is."""
        return {
            f"{record['label']} on {record['dataset']}, seed {record['seed']}": record["failed"]
            for record in self.records
            if "failed" in record
        }

    @property
    def stopped(self) -> dict[str, str]:
        """Where and why a line stopped for the budget, by what it is."""
        return {
            f"{record['label']} on {record['dataset']}, seed {record['seed']}": (
                f"stopped {_where(record)}; with the next batch, {record['stopped']['reason']}."
            )
            for record in self.records
            if "stopped" in record
        }

    @property
    def mean_over_seeds(self) -> str:
        """What to say of numbers that several seeds gave; empty for one seed."""
        seeds = len(self.directory.config.seeds)
        return f"mean over {seeds} seeds" if seeds > 1 else ""

    def columns(self, dataset: str) -> list[Column]:
        """The paper's columns for a dataset, as far as they were measured; the score follows its parts."""
        known = self._known(dataset)
        # A dataset without true objects, or of long answers alone, is scored by tokens.
        prefix = "" if SCORED[0] in known else "token_"
        texts = [f"{sampling}{name}" for sampling in ("", GREEDY) for name in ("fluency", "consistency")]
        wanted = {
            **{f"{prefix}{name}": name.capitalize() for name in SCORED},
            **{name: _header(name) for name in texts},
        }
        columns = [Column(dataset, metric, header) for metric, header in wanted.items() if metric in known]
        parts = tuple(f"{prefix}{name}" for name in SCORED)
        if known.issuperset(parts):
            columns.insert(len(parts), Column(dataset, "score", "Score", parts=parts, error=False))
        return columns

    def drift_columns(self, dataset: str) -> list[Column]:
        """How far hidden states moved."""
        metrics = {"relative_shift": False, "cka": True, "mean_distance": False}
        return [Column(dataset, f"drift.{one}", one.replace("_", " "), higher, 4) for one, higher in metrics.items()]

    def notes(self, dataset: str) -> list[str]:
        """What to know of the columns of a dataset: over how many facts their means are, and what is missing.

        The facts are those that methods were asked about at the end; of the unedited model, if none was yet.
        """
        rows = self.rows[(self.rows["dataset"] == dataset) & self.rows["value"].notna()]
        ends, before = (rows[rows["when"] == when.value] for when in (When.END, When.BEFORE))
        counts = (before if ends.empty else ends).groupby("metric")["fact"].nunique()
        by_count: dict[int, list[str]] = {}
        for column in self.columns(dataset):
            if not column.parts:
                by_count.setdefault(int(counts.get(column.metric, 0)), []).append(column.header)
        found = []
        if by_count:
            most, *others = sorted(by_count, reverse=True)
            fewer = [f"; n = {count:,} for {' and '.join(by_count[count])}" for count in others]
            found.append(f"n = {most:,} facts{''.join(fewer)}.")
        texts, compared = (counts.index.str.endswith(metric).any() for metric in ("fluency", "consistency"))
        if texts and not compared:
            found.append("Consistency is missing: there were no reference texts for these facts.")
        return found

    def pairs(self, pairs: Mapping[str, str]) -> dict[str, str]:
        """For each label the one it should improve on, from pairs of methods."""
        found = {}
        for label, name in self.methods.items():
            bases = [other for other, method in self.methods.items() if method == pairs.get(name)]
            if len(bases) == 1:  # of several labels of a method none is the one to compare with
                found[label] = bases[0]
        return found

    def table(self, title: str, pairs: Mapping[str, str]) -> Table:
        """Every finished method in the paper's layout; see `comparison`."""
        columns = [column for dataset in self.datasets for column in self.columns(dataset)]
        return comparison(title, self.rows, self.labels, columns, self.pairs(pairs))

    def _known(self, dataset: str) -> set[str]:
        """The metrics that have values."""
        return set(self.rows["metric"][(self.rows["dataset"] == dataset) & self.rows["value"].notna()])


def _header(metric: str) -> str:
    return metric.replace("_", " ").capitalize()


def read_results(path: str | Path) -> Results:
    """Read a run's directory, finished or not.

    Raises:
        RunError: It is not the directory of a run, or nothing has been measured in it.
    """
    directory = RunDirectory(path)
    plans = list(directory.plans())
    folders = dict.fromkeys(folder for plan in plans for folder in (plan.unedited, plan.directory / "measured"))
    files = [file for folder in folders for file in sorted(folder.glob("*.parquet"))]
    if not files:
        raise RunError(f"{directory.path}: nothing has been measured there yet; `factpatch run` continues it.")
    records = [json.loads((plan.directory / "row.json").read_text("utf-8")) for plan in plans if plan.finished]
    rows = read_rows(files)
    rows["fact"] = list(_keys(rows, plans))
    text = directory.config.evaluate.text
    if text is not None and text.sampling == ("greedy",):
        # Older versions of factpatch did not tell greedy texts from others by the names of their metrics.
        rows["metric"] = rows["metric"].replace({name: f"{GREEDY}{name}" for name in TEXT_METRICS})
    return Results(directory, rows, tuple(records), tuple(plan.name for plan in plans if not plan.finished))


def _keys(rows: pd.DataFrame, plans: Sequence[Plan]) -> Iterator[str | None]:
    """What each row's fact is called; a place is not enough, since with another seed another fact may be there."""
    names = {(plan.dataset.name, plan.seed): [fact.id or fact_key(fact) for fact in plan.facts] for plan in plans}
    for dataset, seed, place in zip(rows["dataset"], rows["seed"], rows["place"], strict=True):
        yield None if place != place else names[dataset, seed][int(place)]  # NaN: about the model


def _where(record: Mapping[str, Any]) -> str:
    """Where a line stopped for the budget."""
    if record["stopped"].get("mending"):
        return "while lost facts were edited again"
    return f"after {record['stopped']['edited']:,} of {counted(record['facts'], 'fact')}, which its numbers are about"
