"""How far the residual of the last layer is from that of each layer: the paper's figure 5."""

from __future__ import annotations

import torch

from factpatch.lab.analysis.charts import Panel, over_layers
from factpatch.lab.analysis.rows import Findings, Place, Row, number, rows_of
from factpatch.lab.analysis.study import Study


def distance(study: Study) -> Findings:
    """‖R^l* − R^L‖ at each critical layer l, with R^l* the direct residual there and R^L that of the last layer.

    For each fact the Euclidean norm, and of all facts together the spectral norm of the (n, d_value) matrix, which is
    what the bound has. `error` is the same with the residual shared out, ‖R^l* − share · R^L‖: what the solver is given
    too much or too little.
    """
    rows: list[Row] = []
    last = study.residual(study.last)
    together = f"all {len(study.facts)} facts"
    for layer in study.layers:
        direct = study.residual(layer)
        norms = direct.norm(dim=-1)
        rows += rows_of(Place(layer), "distance", study.names, (direct - last).norm(dim=-1).tolist())
        rows += rows_of(Place(layer), "relative", study.names, ((direct - last).norm(dim=-1) / norms).tolist())
        rows += rows_of(Place(layer), "norm", study.names, norms.tolist())
        rows += rows_of(Place(layer), "spectral", [together], [float(torch.linalg.matrix_norm(direct - last, 2))])
        for spread in study.spreads:
            given = study.share(spread, layer) * last
            errors = (direct - given).norm(dim=-1).tolist()
            rows += rows_of(Place(layer, spread=spread), "error", study.names, errors)
    return Findings(tuple(rows))


def panels(findings: Findings) -> list[Panel]:
    """Figure 5, for a fact and for all facts together, and what is left of it when the residual is shared out."""
    return [
        over_layers(findings, "distance", "Distance of the residuals, per fact", "‖R^l* − R^L‖"),
        over_layers(findings, "spectral", "Distance of the residuals, all facts", "‖R^l* − R^L‖₂"),
        over_layers(findings, "error", "Error of the distributed residual", "‖R^l* − R^l‖"),
    ]


def say(findings: Findings) -> list[str]:
    """The distances in words."""
    said = []
    for measure, name in (("distance", "‖R^l* − R^L‖ per fact"), ("norm", "For scale, ‖R^l*‖ per fact")):
        told = ", ".join(f"{number(found)} at layer {layer}" for layer, found in findings.curve(measure, "layer"))
        said.append(f"{name}: {told}.")
    for spread in findings.among("spread"):
        curve = findings.curve("error", "layer", spread=spread)
        said.append(
            f"Error of the residual that the solver is given, {spread}: "
            + ", ".join(f"{number(found)} at layer {layer}" for layer, found in curve)
            + "."
        )
    return said
