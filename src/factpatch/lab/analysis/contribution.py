"""What a residual contributes where it is added: the paper's section 4.1.1, figure 2 and equation 9."""

from __future__ import annotations

import torch

from factpatch.lab.analysis.charts import Panel, over_layers
from factpatch.lab.analysis.rows import DIRECT, DISTRIBUTED, Findings, Row, gap, number, rows_of
from factpatch.lab.analysis.study import Study
from factpatch.values.simulated import simulated_probabilities


def contribution(study: Study) -> Findings:
    """Add each residual to the value at each critical layer, and see how much likelier the new object becomes.

    The score is P(new object | prompt) with the residual added minus the same without, of the bare prompt and of all
    tokens of the object. Nothing is written, so that nothing depends on whether a key would call its value up.
    """
    rows: list[Row] = []
    for layer in study.layers:
        places, residuals = zip(*study.residuals(layer), strict=True)
        shifts = [torch.zeros_like(residuals[0]), *residuals]
        before, *after = simulated_probabilities(study.lm, study.facts, layer, study.editor.method.target, shifts)
        for place, probability in zip(places, after, strict=True):
            rows += rows_of(place, "score", study.names, (probability - before).tolist())
            rows += rows_of(place, "probability", study.names, probability.tolist())
    return Findings(tuple(rows))


def panels(findings: Findings) -> list[Panel]:
    """Figure 2."""
    return [over_layers(findings, "score", "Contribution of a residual", "mean score")]


def say(findings: Findings) -> list[str]:
    """The scores in words."""
    means = findings.means()
    at = {(place.layer, place.residual, place.spread): m for (place, name), m in means.items() if name == "score"}
    layers, said = findings.among("layer"), []
    for spread in findings.among("spread"):
        scores = ", ".join(f"{number(at[layer, DISTRIBUTED, spread])} at layer {layer}" for layer in layers)
        said.append(f"Distributed, {spread}: mean score {scores}.")
    scores = ", ".join(f"{number(at[layer, DIRECT, None])} at layer {layer}" for layer in layers)
    said.append(f"Direct: mean score {scores}.")
    for spread in findings.among("spread"):
        gaps = ", ".join(
            f"{gap(findings, 'score', layer, spread).text('.3g', sign=True)} at layer {layer}" for layer in layers
        )
        said.append(f"Direct − distributed, {spread} [95 % interval]: {gaps}.")
    return said
