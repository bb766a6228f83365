"""What edits do: of one layer alone with either residual (the paper's figures 4 and 8), and of all (its table 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from factpatch.evaluation.generation import generate_texts
from factpatch.evaluation.metrics import fact_metrics
from factpatch.evaluation.text import text_metrics
from factpatch.lab.analysis.findings import (
    DIRECT,
    Finding,
    Findings,
    Place,
    by_layer,
    findings_of,
    gap,
    number,
    over_layers,
)
from factpatch.lab.analysis.study import Study, undone
from factpatch.lab.drawing.charts import UNEDITED, Panel
from factpatch.lab.drawing.shapes import radar
from factpatch.strategies import Each, Spread, Step

# What the paper shows; where facts have no true object, the tokens of their new one decide instead.
COMPARED = ("efficacy", "generalization", "specificity")
BY_TOKEN = tuple(f"token_{name}" for name in COMPARED)
# In other units than percent.
TEXT = ("fluency", "consistency")

MISSING = {
    "efficacy": "no fact has a true object, or all have long answers, so the tokens of the new one decide",
    "generalization": "no fact has paraphrases and a true object, or all have long answers",
    "specificity": "no fact has neighbors, or all have long answers",
    "fluency": "no fact has generation prompts, or none was asked for",
    "consistency": "it compares with reference texts, and there are none for these facts",
}
"""Why a metric has no values."""


@dataclass(frozen=True)
class Alone(Spread):
    """Write one layer with a share of a residual, whatever layers are critical."""

    step: Step

    def steps(self, critical_layers: Sequence[int]) -> list[Step]:
        return [self.step]


def single_layer(study: Study) -> Findings:
    """Edit all facts in one batch at each critical layer alone, with each residual, and measure the model each time.

    The metrics are those of docs/metrics.md. Specificity, fluency and consistency show side effects of the edit.
    """
    study.editor.prepare()  # once for the editors of all layers and residuals
    places = [Place(residual=UNEDITED), *(place for layer in study.layers for place, _ in study.residuals(layer))]
    numbers: list[Finding] = []
    for place in places:
        name = "-".join(str(part) for part in (place.layer, place.residual, place.spread) if part is not None)
        numbers += study.keep(name, partial(_edited, study, place)).numbers
    return Findings(tuple(numbers), tuple(_missing(numbers)))


def step_at(study: Study, place: Place) -> Step:
    """The write that gives a layer a residual."""
    assert place.layer is not None
    if place.spread is None:
        return Step(place.layer, place.layer, 1.0)
    return Step(place.layer, study.last, study.share(place.spread, place.layer))


def _edited(study: Study, place: Place) -> Findings:
    """The metrics after one edit, or of the unedited model."""
    if place.layer is None:
        return Findings(tuple(_measured(study, place)))
    with undone(study.editor.with_spread(Alone(step_at(study, place)))) as editor:
        editor.edit(study.facts)
        return Findings(tuple(_measured(study, place)))


def _measured(study: Study, place: Place) -> Iterator[Finding]:
    options, found = study.texts, fact_metrics(study.facts, study.readings())
    chosen = study.facts[: options.facts]
    if any(fact.generation_prompts for fact in chosen):
        references, tfidf = study.references
        prompts = [fact.generation_prompts for fact in chosen]
        texts = generate_texts(study.lm, prompts, max_new_tokens=options.tokens, seed=options.seed)
        given = None if references is None else [references.for_fact(fact) for fact in chosen]
        found += text_metrics(chosen, texts, given, tfidf)
    for one in found:
        if one.metric in (*COMPARED, *BY_TOKEN, *TEXT):
            yield from findings_of(place, one.metric, [one.fact], [one.value])


def _missing(numbers: Sequence[Finding]) -> Iterator[str]:
    for name, reason in MISSING.items():
        facts = {one.of for one in numbers if one.measure == name and one.value is not None}
        if not facts:
            yield f"{name} is missing: {reason}."
        elif len(facts) == 1:
            yield f"{name} is of one fact: it has no standard error, and differences have no interval."


def single_layer_panels(findings: Findings) -> list[Panel]:
    """A radar for each layer, as figures 4 and 8.

    As there, fluency and consistency are scaled for the eye: in percent of the largest that is shown anywhere.
    """
    names, corners = _shown(findings), radar_corners(findings)
    return [
        radar(
            f"Layer {layer} alone",
            names,
            [(place.label, [values[name] for name in names]) for place, values in corners.items()
             if place.layer in (layer, None)],
        )
        for layer in findings.among("layer")
    ]  # fmt: skip


def radar_corners(findings: Findings) -> dict[Place, dict[str, float]]:
    """What the radars show of each edit, in percent; the unedited model comes last."""
    names = _shown(findings)
    found: dict[Place, dict[str, float]] = {}
    for place in sorted(dict.fromkeys(place for place, _ in findings.means), key=lambda place: place.layer is None):
        found[place] = {name: findings.means[place, name].value or 0.0 for name in names}
    for name in set(names) & set(TEXT):
        largest = max(values[name] for values in found.values()) or 100.0
        for values in found.values():
            values[name] *= 100 / largest
    return found


def single_layer_in_words(findings: Findings) -> list[str]:
    """What was learned at each layer."""
    names, unedited = _shown(findings), Place(residual=UNEDITED)
    found = [f"Unedited: {', '.join(f'{name} {number(findings.means[unedited, name])}' for name in names)}."]
    for layer in findings.among("layer"):
        for spread in findings.among("spread"):
            compared = ", ".join(_compared(findings, name, layer, spread) for name in names)
            found.append(
                f"Layer {layer}, direct against distributed, {spread} (difference, 95 % interval): {compared}."
            )
    return found


def _compared(findings: Findings, name: str, layer: int, spread: str) -> str:
    direct = findings.means[Place(layer, DIRECT), name]
    found = gap(findings, name, layer, spread)
    distributed = None if direct.value is None or found.value is None else direct.value - found.value
    shown = "–" if distributed is None else f"{distributed:.3g}"
    return f"{name} {number(direct)} against {shown} ({found.text('.3g', sign=True)})"


def _shown(findings: Findings) -> list[str]:
    """The metrics that there are numbers of."""
    known = {measure for (_, measure), found in findings.means.items() if found.value is not None}
    wanted = COMPARED if "efficacy" in known else BY_TOKEN
    return [name for name in (*wanted, *TEXT) if name in known]


def steps(study: Study) -> Findings:
    """Write every critical layer toward its own target, ascending, and count the updates of each target: table 1.

    A fact stops when its loss is below the target's `stop_loss`, 0.05 unless it was set otherwise. One that is already
    known takes no update. At most `steps − 1` are made: a fact that needs more is counted with that.
    """
    study.editor.prepare()  # what other analyses then find prepared
    target = study.editor.method.optimized
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


steps_panels = over_layers(
    ("updates", "Updates that a target takes", "mean updates"),
    ("done", "Facts known at the first evaluation", "facts, %"),
)


def steps_in_words(findings: Findings) -> list[str]:
    """What the paper's table 1 says."""
    layers = findings.among("layer")
    updates = ", ".join(f"{found.value:.2f}" for _, found in findings.curve("updates"))
    return [
        f"Layers [{layers[0]}–{layers[-1]}]: [{updates}] updates on average.",
        by_layer(findings, "Known at the first evaluation, percent of the facts", "done"),
        by_layer(findings, "Stopped by the largest number of updates, percent of the facts", "unfinished"),
    ]
