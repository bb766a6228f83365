"""Carry analyses out: find, write, draw, and resume where a process that was stopped left off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from factpatch.data.reading import DataFileError
from factpatch.lab.analysis.directory import AnalysisDirectory
from factpatch.lab.analysis.findings import Findings, number
from factpatch.lab.analysis.study import Study
from factpatch.lab.analysis.table import ANALYSES, Analysis, Outcome
from factpatch.lab.drawing.charts import Chart, charts, figure, figure_files, legend, save_figure, styles_of
from factpatch.lab.drawing.render import render, write_page
from factpatch.model.memory import FAILURES
from factpatch.support.directory import DirectoryError
from factpatch.values.shared import SharedTargets

logger = logging.getLogger(__name__)
PAGE = "report.html"


def analyze(
    study: Study,
    analyses: Sequence[Analysis],
    directory: AnalysisDirectory,
    notes: Sequence[str] = (),
    done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Path]:
    """Do the rest of some analyses, and write a page about all that the directory has.

    Value targets and findings are written as soon as they exist, so a second call continues an interrupted one. An
    analysis that fails does not keep the others from being done.

    Args:
        notes: What a reader of the page should know of the whole.
        done: Called after each of the analyses.

    Returns:
        The files that were written, the page last.

    Raises:
        DirectoryError: Another process is using the directory, or a file there cannot be read.
    """
    written: list[Path] = []
    with directory.locked():
        targets = SharedTargets(directory.path / "targets", directory.about["weights"], study.editor.replicas)
        study = study.kept(directory.part, targets)
        kept = {name: Outcome(row, found) for name, row in ANALYSES.items() if (found := directory.found(name))}
        # Each is drawn once, however often the page is written.
        sections = {name: _section(outcome) for name, outcome in kept.items()}
        for analysis in analyses:
            name = analysis.name
            outcome = kept.get(name) or _found(study, analysis)
            if name in kept:
                logger.info("%s: found in %s", name, directory.path)
            if outcome.findings is not None:
                # The figure before the numbers, which mark an analysis as done.
                if name not in kept or not all(path.is_file() for path in figure_files(directory.path, name)):
                    panels = analysis.panels(outcome.findings)
                    written += save_figure(figure(panels), directory.path, name) if panels else []
                written += [] if name in kept else directory.write(name, outcome.findings)
            if name not in kept:
                sections[name] = _section(outcome)
            ordered = [sections[known] for known in ANALYSES if known in sections]
            _write_page(directory.path / PAGE, ordered, directory.about, notes)
            done(outcome)
    return [*written, directory.path / PAGE]


def _found(study: Study, analysis: Analysis) -> Outcome:
    try:
        findings = analysis.find(study)
    except FAILURES as error:
        if isinstance(error, (DirectoryError, DataFileError)):
            raise
        return Outcome(analysis, failed=str(error))
    if len(study.facts) < 2:
        note = "One fact: means have no standard error and differences no interval. Give at least 2, better 50."
        findings = replace(findings, notes=(*findings.notes, note))
    return Outcome(analysis, findings)


@dataclass(frozen=True)
class Section:
    """What the page says of one analysis."""

    outcome: Outcome
    sentences: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    legend: list[Chart] = field(default_factory=list)
    lines: list[tuple[list[str], list[str]]] = field(default_factory=list)
    """The table: what each line is about, and its means with their standard errors."""


def _write_page(path: Path, sections: Sequence[Section], about: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
    """Write a page about some analyses, whole or not at all. The same findings give the same page."""
    settings = yaml.safe_dump(dict(about), sort_keys=False, allow_unicode=True)
    content = render("lab/analysis/report.html.jinja", sections=sections, about=about, notes=notes, settings=settings)
    write_page(content, path)


def _section(outcome: Outcome) -> Section:
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
