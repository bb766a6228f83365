"""What analyses found as one page of HTML that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from factpatch.lab.analysis.findings import Findings, number
from factpatch.lab.analysis.table import Outcome
from factpatch.lab.drawing.charts import Chart, charts, legend, styles_of
from factpatch.lab.drawing.render import render, write_page


@dataclass(frozen=True)
class Section:
    """What the page says of one analysis."""

    outcome: Outcome
    sentences: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    legend: list[Chart] = field(default_factory=list)
    lines: list[tuple[list[str], list[str]]] = field(default_factory=list)
    """The table: what each line is about, and its means with their standard errors."""


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
    if outcome.findings is None:
        return Section(outcome)
    panels = outcome.analysis.panels(outcome.findings)
    sentences = outcome.analysis.in_words(outcome.findings)
    return Section(outcome, sentences, charts(panels), legend(styles_of(panels)), _lines(outcome.findings))


def _lines(findings: Findings) -> list[tuple[list[str], list[str]]]:
    return [
        (
            ["" if (value := getattr(place, name)) is None else str(value) for name in findings.columns],
            [number(findings.means.get((place, measure))) for measure in findings.measures],
        )
        for place in dict.fromkeys(place for place, _ in findings.means)
    ]
