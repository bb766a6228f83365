"""Carry analyses out: find, write, draw, and resume where a process that was stopped left off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from factpatch.data.records import DataFileError
from factpatch.lab.analysis.directory import AnalysisDirectory
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
        study = study.kept(directory.part, SharedTargets(directory.path / "targets", directory.about["weights"]))
        kept = {name: Outcome(row, found) for name, row in ANALYSES.items() if (found := directory.found(name))}
        # Each is drawn once, however often the page is written.
        sections = {name: section(outcome) for name, outcome in kept.items()}
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
                sections[name] = section(outcome)
            ordered = [sections[known] for known in ANALYSES if known in sections]
            write_report(directory.path / PAGE, ordered, directory.about, notes)
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
