"""How alike the distributed residual and the direct one are: the paper's section 4.1.2 and figure 3."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from factpatch.lab.analysis.charts import Panel, over_layers
from factpatch.lab.analysis.rows import Findings, Place, Row, number, rows_of
from factpatch.lab.analysis.study import Study


def similarity(study: Study) -> Findings:
    """Cosines at each critical layer, fact by fact.

    Of the residuals, δ of the last layer and δ of this one: sharing out only scales, so that no spread matters. Of the
    memories that an edit of this layer would store, h + share · δ of the last layer and h + δ of this one, with h the
    unedited value here. And of the memory of the last layer and that of this one, which is how section 4.1.1 writes
    the distributed memory; there too the divisor does not matter.
    """
    rows: list[Row] = []
    last = study.residual(study.last)
    for layer in study.layers:
        direct, present = study.residual(layer), study.present(layer)
        rows += rows_of(Place(layer), "residual", study.names, cosines(last, direct))
        for spread in study.spreads:
            stored = present + study.share(spread, layer) * last
            rows += rows_of(Place(layer, spread=spread), "memory", study.names, cosines(stored, present + direct))
        there = study.present(study.last) + last
        rows += rows_of(Place(layer), "last_memory", study.names, cosines(there, present + direct))
    return Findings(tuple(rows), tuple(_zeros(study)))


def _zeros(study: Study) -> Iterator[str]:
    """What has no direction, since a residual is zero."""
    counts = {layer: int((study.residual(layer) == 0).all(dim=-1).sum()) for layer in study.layers}
    nothing = counts.pop(study.last)
    if nothing:
        yield (
            f"{_facts(nothing)} known at layer {study.last}: nothing of it is distributed, and its residuals have no "
            "cosine at any layer."
        )
    for layer, known in counts.items():
        if known:
            yield f"{_facts(known)} known at layer {layer}: its direct residual there is zero and has no direction."


def _facts(count: int) -> str:
    return "1 fact was" if count == 1 else f"Each of {count} facts was"


def cosines(one: Tensor, other: Tensor) -> list[float]:
    """The cosine of each pair of rows; NaN where one is zero."""
    found: list[float] = ((one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))).tolist()
    return found


def panels(findings: Findings) -> list[Panel]:
    """Figure 3, and the same of the memories."""
    return [
        over_layers(findings, "residual", "Residuals, distributed and direct", "cosine"),
        over_layers(findings, "memory", "Memories, distributed and direct", "cosine"),
        over_layers(findings, "last_memory", "Memories of both layers", "cosine"),
    ]


def say(findings: Findings) -> list[str]:
    """The cosines in words."""
    names = {"residual": "residuals", "memory": "memories", "last_memory": "the last layer's memory and the own one"}
    said = []
    for measure, name in names.items():
        for spread in findings.among("spread") if measure == "memory" else [None]:
            curve = findings.curve(measure, "layer", spread=spread)
            told = ", ".join(f"{number(found)} at layer {layer}" for layer, found in curve)
            said.append(f"Cosine of {name}{f', {spread}' if spread else ''}: {told}.")
    return said
