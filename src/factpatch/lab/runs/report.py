"""Runs as one page of HTML that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from factpatch.evaluation.intervals import Interval
from factpatch.evaluation.readings import FORMS
from factpatch.lab.drawing.render import render, write_page
from factpatch.lab.runs.contrasts import Contrast, compared, scored
from factpatch.lab.runs.execute import check_extra
from factpatch.lab.runs.measures import UNTOUCHED
from factpatch.lab.runs.outcomes import Outcome, State, answers, outcomes, told, worst
from factpatch.lab.runs.pace import in_words
from factpatch.lab.runs.reproductions import PAIRS
from factpatch.lab.runs.results import Results
from factpatch.lab.runs.tables import MISSING, Column, Table, comparison


@dataclass(frozen=True)
class WorstFact:
    """One of the worst facts, with what the model says of it."""

    outcome: Outcome
    said_before: str | None
    said: str | None


@dataclass(frozen=True)
class Dataset:
    """What the page says of one dataset."""

    name: str
    sentences: dict[str, str]
    """Of each method, in plain words."""
    table: Table
    notes: list[str]
    """Below the table."""
    scores: dict[str, Interval]
    compared: list[Contrast]
    bars: list[Any]
    forgetting: list[Any]
    worst: dict[str, list[WorstFact]]
    failures: dict[str, int]
    """Of each method, how many facts are not learned at the end."""


@dataclass(frozen=True)
class Section:
    """What the page says of one run."""

    name: str
    results: Results
    config: str
    versions: dict[str, Any]
    settings: list[tuple[str, list[str]]]
    """A dotted name, and its value in every method."""
    stages: list[tuple[str, list[str]]]
    datasets: list[Dataset] = field(default_factory=list)
    capability: list[Any] = field(default_factory=list)
    maps: list[Any] = field(default_factory=list)
    drift: Table | None = None


def write_report(runs: Sequence[Results], path: Path, limit: int) -> None:
    """Write a page about some runs, whole or not at all. The same runs give the same page.

    Args:
        runs: As `read_results` gives them, finished or not.
        path: The file.
        limit: How many of the worst facts of each method and dataset are shown.

    Raises:
        ImportError: A package of the extra `runs` is not installed.
    """
    write_page(report_page(runs, limit), path)


def report_page(runs: Sequence[Results], limit: int) -> str:
    """Return the page that `write_report` writes."""
    check_extra("a report")
    from factpatch.lab.runs import figures

    sections = [_section(run, limit) for run in runs]
    return render("lab/runs/report.html.jinja", sections=sections, charts=figures, State=State)


def _section(results: Results, limit: int) -> Section:
    from factpatch.lab.runs import figures

    about = results.directory.record
    found = outcomes(results)
    # A line that failed has neither.
    settings = {record["label"]: _flat(record["settings"]) for record in results.records if "settings" in record}
    seconds: dict[str, dict[str, float]] = {}
    for record in results.records:
        spent = seconds.setdefault(record["label"], {})
        for stage, took in record.get("seconds", {}).items():
            spent[stage] = spent.get(stage, 0.0) + took
    times = {label: {stage: in_words(took) for stage, took in spent.items()} for label, spent in seconds.items()}
    return Section(
        name=results.directory.path.resolve().name,
        results=results,
        config=yaml.safe_dump(about["config"], sort_keys=False, allow_unicode=True),
        versions=_versions(about),
        settings=_side_by_side(settings, results.labels),
        stages=_side_by_side(times, results.labels),
        datasets=[
            _dataset(results, found, contrasts, name, limit)
            for name, contrasts in compared(results, found, results.pairs(PAIRS)).items()
        ],
        capability=list(figures.capability_charts(results)),
        maps=list(figures.hidden_state_charts(results)),
        drift=_drift(results),
    )


def _versions(about: dict[str, Any]) -> dict[str, Any]:
    """The versions that the run began with, those that it went on with, and the machine."""
    recorded = [about["versions"], *about.get("later_versions", [])]
    versions = {
        name: ", later ".join(dict.fromkeys(one[name] for one in recorded if name in one)) for name in recorded[0]
    }
    return {**versions, **{name: about[name] for name in ("python", "machine", "threads") if name in about}}


def _dataset(
    results: Results,
    outcomes: dict[tuple[str, str], list[Outcome]],
    compared: list[Contrast],
    name: str,
    limit: int,
) -> Dataset:
    from factpatch.lab.runs import figures

    of = {label: some for (label, dataset), some in outcomes.items() if dataset == name}
    columns = [column for column in results.columns() if column.dataset == name]
    shown = [*columns, *_beside(results, name)]
    table = comparison(name, results.rows, list(of), shown, results.pairs(PAIRS))
    scores = {label: scored(some, columns) for label, some in of.items()}
    return Dataset(
        name=name,
        sentences={label: told(results, label, name, some) for label, some in of.items()},
        table=table,
        notes=results.notes(name),
        scores={label: interval for label, interval in scores.items() if interval is not None},
        compared=compared,
        bars=list(figures.bar_charts(table)),
        forgetting=list(figures.forgetting_charts(results, name)),
        worst={label: list(_worst(some, limit)) for label, some in of.items()},
        failures={label: sum(one.state is not State.LEARNED for one in some) for label, some in of.items()},
    )


def _beside(results: Results, dataset: str) -> Iterator[Column]:
    """Columns that the paper's tables do not have."""
    rows = results.rows[(results.rows["dataset"] == dataset) & results.rows["value"].notna()]
    values = {metric: some["value"] for metric, some in rows.groupby("metric")}
    for metric in ("strict_efficacy", *(f"{form}_contained" for form in FORMS)):
        if metric in values:
            yield Column(dataset, metric, metric.replace("_", " ").capitalize())
    # Where no neighbor is edited in the run itself, both are the same.
    if UNTOUCHED in values and values[UNTOUCHED].tolist() != values["specificity"].tolist():
        yield Column(dataset, UNTOUCHED, "Specificity, neighbors that are not edited")
    if "perplexity" in values:
        yield Column(dataset, "perplexity", "Perplexity", higher_is_better=False)


def _drift(results: Results) -> Table | None:
    columns = [column for column in results.drift_columns() if (results.rows["metric"] == column.metric).any()]
    return comparison("drift", results.rows, results.labels, columns, results.pairs(PAIRS)) if columns else None


def _worst(some: Sequence[Outcome], limit: int) -> Iterator[WorstFact]:
    said: dict[Path, dict[int, str]] = {}
    for one in worst(some, limit):
        files = (one.plan.unedited / "before.facts.jsonl", one.plan.directory / "measured" / "end.facts.jsonl")
        for file in files:
            if file not in said:
                said[file] = answers(file)
        yield WorstFact(one, *(said[file].get(one.place) for file in files))


def _flat(settings: Any, prefix: str = "") -> dict[str, str]:
    """Dotted names and their values as text."""
    if not isinstance(settings, dict):
        return {prefix: MISSING if settings is None else str(settings)}
    found: dict[str, str] = {}
    for name, value in settings.items():
        found.update(_flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return found


def _side_by_side(columns: dict[str, dict[str, str]], labels: Sequence[str]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for label in labels for name in columns.get(label, {}))
    return [(name, [columns.get(label, {}).get(name, MISSING) for label in labels]) for name in names]
