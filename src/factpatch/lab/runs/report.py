"""Runs as one page of HTML that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from factpatch.evaluation.metrics import LOWER, PROBES
from factpatch.evaluation.readings import FORMS
from factpatch.lab.drawing.charts import charts, legend
from factpatch.lab.drawing.render import render, write_page
from factpatch.lab.drawing.shapes import STATES
from factpatch.lab.runs.execute import check_extra
from factpatch.lab.runs.figures import (
    FORGETTING,
    bars,
    capability,
    curves,
    forgetting,
    hidden_states,
    mapped,
    method_styles,
)
from factpatch.lab.runs.measures import UNTOUCHED
from factpatch.lab.runs.outcomes import Outcome, State, answers, in_a_sentence, outcomes, worst
from factpatch.lab.runs.pace import in_words
from factpatch.lab.runs.reproductions import blue_pairs
from factpatch.lab.runs.results import Results
from factpatch.lab.runs.tables import MISSING, Column, comparison, contrasts, scored


def write_report(runs: Sequence[Results], path: Path, limit: int) -> None:
    """Write a page about some runs, whole or not at all. The same runs give the same page.

    Args:
        runs: From `read_results`, finished or not.
        limit: How many of the worst facts of each method and dataset to show.

    Raises:
        ImportError: A package of the extra `runs` is not installed.
    """
    write_page(report_page(runs, limit), path)


def report_page(runs: Sequence[Results], limit: int) -> str:
    check_extra("a report")
    return render("lab/runs/report.html.jinja", sections=[_section(run, limit) for run in runs], State=State)


def _section(results: Results, limit: int) -> dict[str, Any]:
    """What the template says of one run."""
    record, methods = results.directory.record, method_styles(results)
    found = outcomes(results)
    seconds: dict[str, Counter[str]] = {}
    for one in results.records:
        seconds.setdefault(one["label"], Counter()).update(one.get("seconds", {}))
    times = {label: {stage: in_words(took) for stage, took in spent.items()} for label, spent in seconds.items()}
    # A line that failed has none.
    settings = {one["label"]: _flat(one["settings"]) for one in results.records if "settings" in one}
    drift = [
        column
        for dataset in results.datasets
        for column in results.drift_columns(dataset)
        if (results.rows["metric"] == column.metric).any()
    ]
    pairs = results.pairs(blue_pairs())
    return {
        "name": results.directory.path.resolve().name,
        "results": results,
        "config": yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True),
        "versions": _versions(record),
        "settings": _side_by_side(settings, results.labels),
        "stages": _side_by_side(times, results.labels),
        "datasets": [_dataset(results, found, name, limit) for name in results.datasets],
        "session": [one for name in results.datasets for one in charts(curves(results, name), methods)],
        "capability": [one for name in results.datasets for one in charts(capability(results, name), methods)],
        "maps": charts(hidden_states(mapped(results)), STATES),
        "legends": {"forgetting": legend(FORGETTING), "methods": legend(methods), "maps": legend(STATES)},
        "drift": comparison("drift", results.rows, results.labels, drift, pairs) if drift else None,
    }


def _versions(record: Mapping[str, Any]) -> dict[str, Any]:
    """The versions that the run began with, those that continued it, and the machine."""
    recorded = [record["versions"], *record.get("later_versions", [])]
    versions = {
        name: ", later ".join(dict.fromkeys(one[name] for one in recorded if name in one)) for name in recorded[0]
    }
    return {**versions, **{name: record[name] for name in ("python", "machine", "threads") if name in record}}


def _dataset(results: Results, found: Mapping[tuple[str, str], list[Outcome]], name: str, limit: int) -> dict[str, Any]:
    """What the template says of one dataset; by the method's label, where it is of one method."""
    of = {label: some for (label, dataset), some in found.items() if dataset == name}
    columns, pairs = results.columns(name), results.pairs(blue_pairs())
    table = comparison(name, results.rows, list(of), [*columns, *_more_columns(results, name)], pairs)
    scores = {label: scored(results.rows, label, columns) for label in of}
    return {
        "name": name,
        "sentences": {label: in_a_sentence(results, label, name, some) for label, some in of.items()},
        "table": table,
        "notes": results.notes(name),
        "scores": {label: interval for label, interval in scores.items() if interval is not None},
        "compared": contrasts(results.rows, pairs, columns),
        "bars": charts(bars(table), {}),
        "forgetting": charts(forgetting(results, name), FORGETTING),
        "worst": {label: list(_worst(some, limit)) for label, some in of.items()},
        "failures": {label: sum(one.state is not State.SAID for one in some) for label, some in of.items()},
    }


def _more_columns(results: Results, dataset: str) -> Iterator[Column]:
    """Columns that the paper's tables do not have."""
    rows = results.rows[(results.rows["dataset"] == dataset) & results.rows["value"].notna()]
    values = {metric: some["value"].tolist() for metric, some in rows.groupby("metric")}
    for metric in ("strict_efficacy", *(f"{form}_contained" for form in FORMS), *PROBES):
        if metric in values:
            yield Column(dataset, metric, metric.replace("_", " ").capitalize(), metric not in LOWER)
    if "prompt_contained_true" in values:
        yield Column(dataset, "prompt_contained_true", "Old answer said", higher_is_better=False)
    # Where no neighbor is edited in the run itself, both are the same.
    if UNTOUCHED in values and values[UNTOUCHED] != values.get("specificity"):
        yield Column(dataset, UNTOUCHED, "Specificity, neighbors that are not edited")
    if "perplexity" in values:
        yield Column(dataset, "perplexity", "Perplexity", higher_is_better=False)


def _worst(some: Sequence[Outcome], limit: int) -> Iterator[dict[str, Any]]:
    """The worst facts, with what the model says of them before and after."""
    said: dict[Path, dict[int, str]] = {}
    for one in worst(some, limit):
        files = (one.plan.unedited / "before.facts.jsonl", one.plan.directory / "measured" / "end.facts.jsonl")
        for file in files:
            if file not in said:
                said[file] = answers(file)
        before, after = (said[file].get(one.place) for file in files)
        yield {"outcome": one, "said_before": before, "said": after}


def _flat(settings: Any, prefix: str = "") -> dict[str, str]:
    """Dotted names and their values as text."""
    if not isinstance(settings, dict):
        return {prefix: MISSING if settings is None else str(settings)}
    found: dict[str, str] = {}
    for name, value in settings.items():
        found.update(_flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return found


def _side_by_side(columns: Mapping[str, Mapping[str, str]], labels: Sequence[str]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for label in labels for name in columns.get(label, {}))
    return [(name, [columns.get(label, {}).get(name, MISSING) for label in labels]) for name in names]
