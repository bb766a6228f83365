"""Carry analyses out: find, write, draw, and go on where a process that was stopped was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from factpatch.data.records import DataFileError
from factpatch.lab.analysis.directory import AnalysisDirectory
from factpatch.lab.analysis.findings import Findings
from factpatch.lab.analysis.report import section, write_report
from factpatch.lab.analysis.study import Study
from factpatch.lab.analysis.table import ANALYSES, Analysis, Outcome
from factpatch.lab.drawing.charts import figure, figure_files, save_figure
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
    """Do what is left of some analyses, and write a page about all that the directory has.

    Value targets and what is found are on the disk as soon as they are there: called again after it was stopped, this
    goes on. An analysis that fails does not keep the others from being done.

    Args:
        notes: what a reader of the page should know of the whole.
        done: called after each of the analyses.

    Returns:
        The files that were written, the page last.

    Raises:
        DirectoryError: another process is using the directory, or a file there cannot be read.
    """
    written: list[Path] = []
    with directory.locked():
        study = study.kept(directory.part, SharedTargets(directory.path / "targets", directory.about["weights"]))
        # Each is drawn once, however often the page is written.
        there = {name: directory.found(name) for name in ANALYSES}
        sections = {name: section(Outcome(ANALYSES[name], found)) for name, found in there.items() if found is not None}
        for analysis in analyses:
            name = analysis.name
            outcome = _outcome(study, analysis, there[name], directory.path)
            new = name not in sections
            if outcome.findings is not None:
                # The figure before the numbers, which say that an analysis is done.
                if new or not all(path.is_file() for path in figure_files(directory.path, name)):
                    panels = analysis.panels(outcome.findings)
                    written += save_figure(figure(panels), directory.path, name) if panels else []
                written += directory.write(name, outcome.findings) if new else []
            if new:
                sections[name] = section(outcome)
            ordered = [sections[known] for known in ANALYSES if known in sections]
            write_report(directory.path / PAGE, ordered, directory.about, notes)
            done(outcome)
    return [*written, directory.path / PAGE]


def _outcome(study: Study, analysis: Analysis, findings: Findings | None, path: Path) -> Outcome:
    if findings is not None:
        logger.info("%s: found again in %s", analysis.name, path)
        return Outcome(analysis, findings)
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
