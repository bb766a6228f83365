"""How many steps each layer's own target takes once the layers below are written: the paper's table 1."""

from __future__ import annotations

from factpatch.lab.analysis.charts import Panel, over_layers
from factpatch.lab.analysis.rows import Findings, Place, Row, number, rows_of
from factpatch.lab.analysis.study import Study, undone
from factpatch.strategies import Each


def steps(study: Study) -> Findings:
    """Write every critical layer toward its own target, ascending, and count the updates that each target takes.

    A fact stops when its loss is below the target's `stop_loss`, 0.05 unless it was set otherwise. One that is known
    already takes no update. At most `steps − 1` are made: a fact that needs more is counted with that.
    """
    study.editor.prepare()  # what other analyses then find prepared
    target = study.editor.method.target
    with undone(study.editor.with_spread(Each())) as editor:
        editor.edit(study.facts)
        found = editor.edits[-1].targets
    rows: list[Row] = []
    for layer, values in found.items():
        place = Place(layer)
        updates = values.updates.tolist()
        evaluations = values.evaluations.tolist()
        unfinished = [
            made == target.steps and not loss < target.stop_loss
            for made, loss in zip(evaluations, values.loss.tolist(), strict=True)
        ]
        rows += rows_of(place, "updates", study.names, map(float, updates))
        rows += rows_of(place, "done", study.names, [100.0 * (made == 0) for made in updates])
        rows += rows_of(place, "unfinished", study.names, [100.0 * one for one in unfinished])
        rows += rows_of(place, "loss", study.names, values.loss.tolist())
    note = f"A fact stops below a loss of {target.stop_loss} nats, and takes at most {target.steps - 1} updates."
    return Findings(tuple(rows), (note,))


def panels(findings: Findings) -> list[Panel]:
    """Table 1 as curves."""
    return [
        over_layers(findings, "updates", "Updates that a target takes", "mean updates"),
        over_layers(findings, "done", "Facts known at the first evaluation", "facts, %"),
    ]


def say(findings: Findings) -> list[str]:
    """Table 1 in words."""
    layers = findings.among("layer")
    updates = ", ".join(f"{found.value:.2f}" for _, found in findings.curve("updates", "layer"))
    said = [f"Layers [{layers[0]}–{layers[-1]}]: [{updates}] updates on average."]
    for measure, name in (
        ("done", "Known at the first evaluation, percent of the facts"),
        ("unfinished", "Stopped by the largest number of updates, percent of the facts"),
    ):
        told = ", ".join(f"{number(found)} at layer {layer}" for layer, found in findings.curve(measure, "layer"))
        said.append(f"{name}: {told}.")
    return said
