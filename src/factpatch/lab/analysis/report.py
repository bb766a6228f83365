"""What analyses found as one page of HTML that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from factpatch.lab.analysis.charts import charts, keys
from factpatch.lab.analysis.rows import Findings, Place, number
from factpatch.lab.analysis.table import Analysis, Outcome
from factpatch.lab.drawing.charts import Chart, Key
from factpatch.lab.drawing.render import render, write_page


@dataclass(frozen=True)
class Section:
    """What the page says of one analysis."""

    analysis: Analysis
    failed: str | None
    sentences: list[str]
    notes: tuple[str, ...]
    charts: list[Chart]
    keys: list[Key]
    columns: list[str]
    """What a line of the table is about."""
    measures: list[str]
    lines: list[tuple[list[str], list[str]]]
    """What each line is about, and its means with their standard errors."""


def write_report(path: Path, sections: Sequence[Section], about: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
    """Write a page about some analyses, whole or not at all. The same findings give the same page.

    Args:
        sections: As `section` makes them.
        about: What is analyzed.
        notes: What holds of all analyses.
    """
    settings = yaml.safe_dump(dict(about), sort_keys=False, allow_unicode=True)
    content = render("lab/analysis/report.html.jinja", sections=sections, about=about, notes=notes, settings=settings)
    write_page(content, path)


def section(outcome: Outcome) -> Section:
    """What a page says of an analysis, its charts drawn."""
    analysis, findings = outcome.analysis, outcome.findings
    if findings is None:
        return Section(analysis, outcome.failed, [], (), [], [], [], [], [])
    panels = analysis.panels(findings)
    return Section(
        analysis,
        None,
        analysis.say(findings),
        findings.notes,
        charts(panels),
        keys(panels),
        findings.columns,
        findings.measures,
        _lines(findings),
    )


def _lines(findings: Findings) -> list[tuple[list[str], list[str]]]:
    means = findings.means()
    places: dict[Place, None] = dict.fromkeys(place for place, _ in means)
    return [
        (
            ["" if (value := getattr(place, name)) is None else str(value) for name in findings.columns],
            [number(means.get((place, measure))) for measure in findings.measures],
        )
        for place in places
    ]
