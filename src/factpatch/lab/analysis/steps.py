"""How many steps each layer's own target takes once the layers below are written: the paper's table 1."""

from __future__ import annotations

from factpatch.lab.analysis.findings import Finding, Findings, Place, by_layer, findings_of, over_layers
from factpatch.lab.analysis.study import Study, undone
from factpatch.strategies import Each


def steps(study: Study) -> Findings:
    """Write every critical layer toward its own target, ascending, and count the updates that each target takes.

    A fact stops when its loss is below the target's `stop_loss`, 0.05 unless it was set otherwise. One that is already
    known takes no update. At most `steps − 1` are made: a fact that needs more is counted with that.
    """
    study.editor.prepare()  # what other analyses then find prepared
    target = study.editor.method.target
    with undone(study.editor.with_spread(Each())) as editor:
        editor.edit(study.facts)
        found = editor.edits[-1].targets
    numbers: list[Finding] = []
    for layer, values in found.items():
        unfinished = (values.evaluations == target.steps) & ~(values.loss < target.stop_loss)
        for measure, value in (
            ("updates", values.updates),
            ("done", 100.0 * (values.updates == 0)),
            ("unfinished", 100.0 * unfinished),
            ("loss", values.loss),
        ):
            numbers += findings_of(Place(layer), measure, study.names, value.double().tolist())
    note = f"A fact stops below a loss of {target.stop_loss} nats, and takes at most {target.steps - 1} updates."
    return Findings(tuple(numbers), (note,))


panels = over_layers(
    ("updates", "Updates that a target takes", "mean updates"),
    ("done", "Facts known at the first evaluation", "facts, %"),
)


def in_words(findings: Findings) -> list[str]:
    """Table 1."""
    layers = findings.among("layer")
    updates = ", ".join(f"{found.value:.2f}" for _, found in findings.curve("updates"))
    return [
        f"Layers [{layers[0]}–{layers[-1]}]: [{updates}] updates on average.",
        by_layer(findings, "Known at the first evaluation, percent of the facts", "done"),
        by_layer(findings, "Stopped by the largest number of updates, percent of the facts", "unfinished"),
    ]
