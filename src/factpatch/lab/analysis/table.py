"""The table of analyses: the name of each, what it measures and how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from factpatch.lab.analysis import bound, edits, residuals
from factpatch.lab.analysis.findings import Findings
from factpatch.lab.analysis.study import Study
from factpatch.lab.drawing.charts import Panel
from factpatch.support.words import suggestion

ALL = "all"


@dataclass(frozen=True)
class Analysis:
    """One analysis of the paper's section 4."""

    name: str
    title: str
    source: str
    """Where in the paper (arXiv:2502.03748)."""
    find: Callable[[Study], Findings]
    panels: Callable[[Findings], list[Panel]]
    in_words: Callable[[Findings], list[str]]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one analysis."""

    analysis: Analysis
    findings: Findings | None = None
    failed: str | None = None
    """Why there are no findings."""


_ROWS = (
    Analysis(
        "contribution",
        "Contribution of the residual",
        "section 4.1.1, figure 2, equation 9",
        residuals.contribution,
        residuals.contribution_panels,
        residuals.contribution_in_words,
    ),
    Analysis(
        "similarity",
        "Similarity of the residuals",
        "section 4.1.2, figure 3",
        residuals.similarity,
        residuals.similarity_panels,
        residuals.similarity_in_words,
    ),
    Analysis(
        "distance",
        "Distance of the residuals",
        "section 4.2, figure 5",
        residuals.distance,
        residuals.distance_panels,
        residuals.distance_in_words,
    ),
    Analysis(
        "single-layer",
        "Editing a single layer",
        "section 4.1.2, figures 4 and 8",
        edits.single_layer,
        edits.single_layer_panels,
        edits.single_layer_in_words,
    ),
    Analysis(
        "steps", "Optimization steps", "section 4.3, table 1", edits.steps, edits.steps_panels, edits.steps_in_words
    ),
    Analysis(
        "bound",
        "Error of the weight shift and its bound",
        "section 4.2, theorem 4.1, lemma 4.2",
        bound.bound,
        bound.panels,
        bound.in_words,
    ),
)
ANALYSES: dict[str, Analysis] = {row.name: row for row in _ROWS}


def analyses_named(names: list[str]) -> list[Analysis]:
    """Look up analyses, in the order of the table; "all" names all.

    Raises:
        ValueError: There is no such analysis; the message suggests the nearest name.
    """
    for name in names:
        if name not in ANALYSES and name != ALL:
            raise ValueError(f"unknown analysis {name!r}.{suggestion(name, [*ANALYSES, ALL])}")
    return [row for name, row in ANALYSES.items() if name in names or ALL in names]
