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
    explained: str
    """What is measured, for a reader of the page."""
    paper: str
    """What the paper finds."""
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
        "Each residual is added to the value of one critical layer at the subject's last token; nothing is written. "
        "The score is the probability of the whole new object with it minus the probability without.",
        "With the distributed residual only the last critical layer comes near 1, those before it score ever less, the "
        "first below 0.1; with the direct residual every layer comes near 1.",
        residuals.contribution,
        residuals.contribution_panels,
        residuals.contribution_in_words,
    ),
    Analysis(
        "similarity",
        "Similarity of the residuals",
        "section 4.1.2, figure 3",
        "The cosine of the last critical layer's residual, which is what gets distributed, and the direct residual of "
        "each layer; and of the memories that the layer would store with either.",
        "The cosine falls from layer to layer, the farther the residual is distributed.",
        residuals.similarity,
        residuals.similarity_panels,
        residuals.similarity_in_words,
    ),
    Analysis(
        "distance",
        "Distance of the residuals",
        "section 4.2, figure 5",
        "The norm of the difference between the direct residual of each layer and the last layer's; and how far the "
        "residual that a layer is given is from the direct one.",
        "‖R^l* − R^L‖ grows with the distance from the last layer.",
        residuals.distance,
        residuals.distance_panels,
        residuals.distance_in_words,
    ),
    Analysis(
        "single-layer",
        "Editing a single layer",
        "section 4.1.2, figures 4 and 8",
        "All facts are edited in one batch at one critical layer alone, with the distributed or with the direct "
        "residual. Fluency and consistency are drawn in percent of the largest shown.",
        "Specificity and fluency hardly differ. Efficacy with the direct residual is on average three times that with "
        "the distributed one, generalization twice, consistency a tenth higher.",
        edits.single_layer,
        edits.single_layer_panels,
        edits.single_layer_in_words,
    ),
    Analysis(
        "steps",
        "Optimization steps",
        "section 4.3, table 1",
        "Every critical layer is written toward its own target, in ascending order, and the updates of each target are "
        "counted.",
        "The first layer takes most of the updates; at the last ones nearly all facts are known before the first "
        "update: Llama3-8B, layers 4 to 8, 25.0, 11.10, 0.63, 0.0, 0.0.",
        edits.steps,
        edits.steps_panels,
        edits.steps_in_words,
    ),
    Analysis(
        "bound",
        "Error of the weight shift and its bound",
        "section 4.2, theorem 4.1, lemma 4.2",
        "‖Δ* − Δ‖₂ between the shift for the direct residual and the shift for the distributed one, and its bound "
        "(‖R^l* − R^L‖₂ + c ‖R^l‖₂) ‖Q‖₂, with c = m − 1 for the even and √m − 1 for the square-root spread, m layers "
        "being left. Varied are the distance, the size of the batch, and the facts that were edited before.",
        "The bound grows with the distance, with the size of the batch and with the number of edits.",
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
