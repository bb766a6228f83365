"""How the residual that a layer is given differs from its own: the paper's sections 4.1 and 4.2, figures 2, 3 and 5."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from factpatch.lab.analysis.findings import (
    DIRECT,
    DISTRIBUTED,
    Finding,
    Findings,
    Place,
    by_layer,
    findings_of,
    gap,
    over_layers,
)
from factpatch.lab.analysis.simulated import simulated_probabilities
from factpatch.lab.analysis.study import Study


def contribution(study: Study) -> Findings:
    """Add each residual to the value at each critical layer, and see how much likelier the new object becomes.

    The score is P(new object | prompt) with the residual added minus the same without, of the bare prompt and of all
    tokens of the object. Nothing is written, so nothing depends on whether a key would recall its value.
    Source: section 4.1.1, figure 2 and equation 9.
    """
    numbers: list[Finding] = []
    for layer in study.layers:
        places, residuals = zip(*study.residuals(layer), strict=True)
        shifts = [torch.zeros_like(residuals[0]), *residuals]
        before, *after = simulated_probabilities(study.lm, study.facts, layer, study.editor.method.optimized, shifts)
        for place, probability in zip(places, after, strict=True):
            numbers += findings_of(place, "score", study.names, (probability - before).tolist())
            numbers += findings_of(place, "probability", study.names, probability.tolist())
    return Findings(tuple(numbers))


contribution_panels = over_layers(("score", "Contribution of a residual", "mean score"))


def contribution_in_words(findings: Findings) -> list[str]:
    """The scores and their differences."""
    spreads = findings.among("spread")
    gaps = {
        spread: ", ".join(
            f"{gap(findings, 'score', layer, spread).text('.3g', sign=True)} at layer {layer}"
            for layer in findings.among("layer")
        )
        for spread in spreads
    }
    return [
        *(
            by_layer(findings, f"Distributed, {spread}, mean score", "score", residual=DISTRIBUTED, spread=spread)
            for spread in spreads
        ),
        by_layer(findings, "Direct, mean score", "score", residual=DIRECT),
        *(f"Direct − distributed, {spread} [95 % interval]: {course}." for spread, course in gaps.items()),
    ]


def similarity(study: Study) -> Findings:
    """Cosines of distributed and direct at each critical layer, fact by fact.

    Of the residuals, δ of the last layer and δ of this one: sharing out only scales, so no spread matters. Of the
    memories that an edit of this layer would store, h + share · δ of the last layer and h + δ of this one, with h the
    unedited value here. And of the memory of the last layer and that of this one, which is how section 4.1.1 writes
    the distributed memory; there too the divisor does not matter. Source: section 4.1.2 and figure 3.
    """
    numbers: list[Finding] = []
    last = study.residual(study.last)
    for layer in study.layers:
        direct, present = study.residual(layer), study.present(layer)
        numbers += findings_of(Place(layer), "residual", study.names, cosines(last, direct))
        for spread in study.spreads:
            stored = present + study.share(spread, layer) * last
            place = Place(layer, spread=spread)
            numbers += findings_of(place, "memory", study.names, cosines(stored, present + direct))
        there = study.present(study.last) + last
        numbers += findings_of(Place(layer), "last_memory", study.names, cosines(there, present + direct))
    return Findings(tuple(numbers), tuple(_without_direction(study)))


def cosines(one: Tensor, other: Tensor) -> list[float]:
    """The cosine of each pair of rows; NaN where one is zero."""
    found: list[float] = ((one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))).tolist()
    return found


def _without_direction(study: Study) -> Iterator[str]:
    for layer in (study.last, *study.layers[:-1]):
        known = int((study.residual(layer) == 0).all(dim=-1).sum())
        if known:
            facts = "1 fact was" if known == 1 else f"Each of {known} facts was"
            yield f"{facts} known at layer {layer}: " + (
                "nothing of it is distributed, and its residuals have no cosine at any layer."
                if layer == study.last
                else "its direct residual there is zero and has no direction."
            )


similarity_panels = over_layers(
    ("residual", "Residuals, distributed and direct", "cosine"),
    ("memory", "Memories, distributed and direct", "cosine"),
    ("last_memory", "Memories of both layers", "cosine"),
)


def similarity_in_words(findings: Findings) -> list[str]:
    """The cosines."""
    return [
        by_layer(findings, "Cosine of residuals", "residual"),
        *(
            by_layer(findings, f"Cosine of memories, {spread}", "memory", spread=spread)
            for spread in findings.among("spread")
        ),
        by_layer(findings, "Cosine of the last layer's memory and the layer's own", "last_memory"),
    ]


def distance(study: Study) -> Findings:
    """‖R^l* − R^L‖ at each critical layer l, with R^l* the direct residual there and R^L that of the last layer.

    For each fact the Euclidean norm, and of all facts together the spectral norm of the (n, d_value) matrix, which is
    what the bound has. `error` is the same with the residual shared out, ‖R^l* − share · R^L‖: what the solver is given
    too much or too little. Source: figure 5.
    """
    numbers: list[Finding] = []
    last = study.residual(study.last)
    together = f"all {len(study.facts)} facts"
    for layer in study.layers:
        direct = study.residual(layer)
        norms, apart = direct.norm(dim=-1), (direct - last).norm(dim=-1)
        for measure, values in (("distance", apart), ("relative", apart / norms), ("norm", norms)):
            numbers += findings_of(Place(layer), measure, study.names, values.tolist())
        spectral = float(torch.linalg.matrix_norm(direct - last, 2))
        numbers += findings_of(Place(layer), "spectral", [together], [spectral])
        for spread in study.spreads:
            errors = (direct - study.share(spread, layer) * last).norm(dim=-1)
            numbers += findings_of(Place(layer, spread=spread), "error", study.names, errors.tolist())
    return Findings(tuple(numbers))


distance_panels = over_layers(
    ("distance", "Distance of the residuals, per fact", "‖R^l* − R^L‖"),
    ("spectral", "Distance of the residuals, all facts", "‖R^l* − R^L‖₂"),
    ("error", "Error of the distributed residual", "‖R^l* − R^l‖"),
)


def distance_in_words(findings: Findings) -> list[str]:
    """The distances."""
    return [
        by_layer(findings, "‖R^l* − R^L‖ per fact", "distance"),
        by_layer(findings, "For scale, ‖R^l*‖ per fact", "norm"),
        *(
            by_layer(findings, f"Error of the residual that the solver is given, {spread}", "error", spread=spread)
            for spread in findings.among("spread")
        ),
    ]
