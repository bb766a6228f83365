"""Read a run back, and draw up from it what the paper shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factpatch.evaluation.text import GREEDY, TEXT_METRICS
from factpatch.lab.runs.config import RunConfig
from factpatch.lab.runs.directory import Plan, RunDirectory, RunError
from factpatch.lab.runs.inputs import fact_key
from factpatch.lab.runs.rows import When, read_rows
from factpatch.lab.runs.tables import Column, Table, comparison

if TYPE_CHECKING:
    import pandas as pd

# The paper's columns: what a dataset with true objects is scored by, and one without; texts have a dataset of either.
_COMPARED = (
    ("efficacy", "Efficacy"),
    ("generalization", "Generalization"),
    ("specificity", "Specificity"),
)
_BY_TOKEN = (
    ("token_efficacy", "Efficacy"),
    ("token_generalization", "Generalization"),
    ("token_specificity", "Specificity"),
)
_TEXTS = (
    ("fluency", "Fluency"),
    ("consistency", "Consistency"),
    (f"{GREEDY}fluency", "Greedy fluency"),
    (f"{GREEDY}consistency", "Greedy consistency"),
)
_SCORED = ("Efficacy", "Generalization", "Specificity")


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
    def labels(self) -> list[str]:
        """The methods with a line that is through, or failed, in the run's order."""
        there = {record["label"] for record in self.records}
        return [method.label for method in self.directory.config.methods if method.label in there]

    @property
    def failed(self) -> dict[str, str]:
        """Why a line of the table has no end, by what it is."""
        return {
            f"{record['label']} on {record['dataset']}, seed {record['seed']}": record["failed"]
            for record in self.records
            if "failed" in record
        }

    @property
    def methods(self) -> dict[str, str]:
        """The method of each label."""
        return {method.label: method.name for method in self.directory.config.methods}

    @property
    def mean_over_seeds(self) -> str:
        """What to say of numbers that several seeds gave; empty for one seed."""
        seeds = len(self.directory.config.seeds)
        return f"mean over {seeds} seeds" if seeds > 1 else ""

    def columns(self) -> list[Column]:
        """The paper's columns for each dataset, as far as they were measured; the score stands behind its parts."""
        found = []
        for dataset in self.directory.config.datasets:
            rows = self.rows[self.rows["dataset"] == dataset.name]
            known = set(rows["metric"][rows["value"].notna()])
            wanted = (*(_COMPARED if "efficacy" in known else _BY_TOKEN), *_TEXTS)
            columns = [Column(dataset.name, metric, header) for metric, header in wanted if metric in known]
            parts = tuple(column.metric for column in columns if column.header in _SCORED)
            if len(parts) == len(_SCORED):
                columns.insert(len(parts), Column(dataset.name, "score", "Score", parts=parts, error=False))
            found += columns
        return found

    def notes(self, dataset: str) -> list[str]:
        """What to know of the columns of a dataset: over how many facts their means are, and what is missing.

        The facts are those that methods were asked about at the end; of the unedited model, if none was yet.
        """
        rows = self.rows[(self.rows["dataset"] == dataset) & self.rows["value"].notna()]
        ends, before = (rows[rows["when"] == when.value] for when in (When.END, When.BEFORE))
        counts = (before if ends.empty else ends).groupby("metric")["fact"].nunique()
        by_count: dict[int, list[str]] = {}
        for column in self.columns():
            if column.dataset == dataset and not column.parts:
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

    def drift_columns(self) -> list[Column]:
        """How far hidden states moved, for each dataset."""
        return [
            Column(dataset.name, f"drift.{metric}", metric.replace("_", " "), higher, 4)
            for dataset in self.directory.config.datasets
            for metric, higher in (("relative_shift", False), ("cka", True), ("mean_distance", False))
        ]

    def pairs(self, pairs: dict[str, str]) -> dict[str, str]:
        """For each label the one it should improve on, from pairs of methods."""
        found = {}
        for label, name in self.methods.items():
            bases = [other for other, method in self.methods.items() if method == pairs.get(name)]
            if len(bases) == 1:  # of several labels of a method none is the one to compare with
                found[label] = bases[0]
        return found

    def table(self, title: str, pairs: dict[str, str]) -> Table:
        """Every finished method in the paper's layout; see `comparison`."""
        return comparison(title, self.rows, self.labels, self.columns(), self.pairs(pairs))


def read_results(path: str | Path) -> Results:
    """Read a run's directory, finished or not.

    Raises:
        RunError: It is not the directory of a run, or nothing has been measured in it.
    """
    directory = RunDirectory(path)
    plans = list(directory.plans())
    files = [file for plan in plans for file in _files(plan)]
    if not files:
        raise RunError(f"{directory.path}: nothing has been measured there yet; factpatch run goes on with it.")
    finished = [plan for plan in plans if plan.finished]
    records = (json.loads((plan.directory / "row.json").read_text("utf-8")) for plan in finished)
    missing = tuple(plan.name for plan in plans if not plan.finished)
    rows = read_rows(list(dict.fromkeys(files)))
    rows["fact"] = list(_names(rows, plans))
    rows["metric"] = _metrics(rows["metric"], directory.config)
    return Results(directory, rows, tuple(records), missing)


def _names(rows: pd.DataFrame, plans: Sequence[Plan]) -> Iterator[str | None]:
    """What each row's fact is called; a place is not enough, since with another seed another fact may be there."""
    facts = {(plan.dataset.name, plan.seed): plan.facts for plan in plans}
    for dataset, seed, place in zip(rows["dataset"], rows["seed"], rows["place"], strict=True):
        if place != place:  # about the model
            yield None
        else:
            fact = facts[dataset, seed][int(place)]
            yield fact.id or fact_key(fact)


def _metrics(names: pd.Series, config: RunConfig) -> pd.Series:
    """What the metrics are called now: an older factpatch did not tell greedy texts from others by their names."""
    text = config.evaluate.text
    if text is None or text.sampling != ("greedy",):
        return names
    return names.replace({name: f"{GREEDY}{name}" for name in TEXT_METRICS})


def _files(plan: Plan) -> Iterator[Path]:
    yield from sorted(plan.unedited.glob("*.parquet"))
    yield from sorted((plan.directory / "measured").glob("*.parquet"))
