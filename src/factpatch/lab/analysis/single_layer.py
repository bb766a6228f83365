"""What an edit of one layer alone does, with either residual: the paper's figures 4 and 8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from factpatch.evaluation.generation import generate_texts
from factpatch.evaluation.intervals import Mean
from factpatch.evaluation.metrics import fact_metrics
from factpatch.evaluation.text import text_metrics
from factpatch.evaluation.verify import read_facts
from factpatch.lab.analysis.charts import Panel, Radar
from factpatch.lab.analysis.rows import DIRECT, UNEDITED, Findings, Place, Row, gap, number, rows_of
from factpatch.lab.analysis.study import Study, undone
from factpatch.strategies import Spread, Step

# What the paper shows; where facts have no true object, the tokens of their new one tell instead.
COMPARED = ("efficacy", "generalization", "specificity")
BY_TOKEN = tuple(f"token_{name}" for name in COMPARED)
# In other units than percent.
TEXT = ("fluency", "consistency")


@dataclass(frozen=True)
class Alone(Spread):
    """Write one layer with a share of a residual, whatever layers are critical."""

    step: Step

    def steps(self, critical_layers: Sequence[int]) -> list[Step]:
        return [self.step]


def single_layer(study: Study) -> Findings:
    """Edit all facts in one batch at each critical layer alone, with each residual, and measure the model each time.

    The metrics are those of docs/metrics.md. Specificity, fluency and consistency say what the edit does besides.
    """
    study.editor.prepare()  # once for the editors of all layers and residuals
    places = [Place(residual=UNEDITED), *(place for layer in study.layers for place, _ in study.residuals(layer))]
    rows: list[Row] = []
    for place in places:
        name = "-".join(str(part) for part in (place.layer, place.residual, place.spread) if part is not None)
        rows += study.keep(name, partial(_edited, study, place)).rows
    return Findings(tuple(rows), tuple(_missing(rows)))


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


def _measured(study: Study, place: Place) -> Iterator[Row]:
    found = fact_metrics(study.facts, read_facts(study.lm, study.facts, answers=False))
    for one in found:
        if one.metric in (*COMPARED, *BY_TOKEN):
            yield from rows_of(place, one.metric, [one.fact], [one.value])
    options = study.texts
    chosen = study.facts[: options.facts]
    if not any(fact.generation_prompts for fact in chosen):
        return
    references, tfidf = study.references
    texts = generate_texts(
        study.lm, [fact.generation_prompts for fact in chosen], max_new_tokens=options.tokens, seed=options.seed
    )
    given = None if references is None else [references.for_fact(fact) for fact in chosen]
    # The names of all facts: one without an id is called by its place.
    for one in text_metrics(chosen, texts, given, tfidf):
        if one.metric in TEXT:
            yield from rows_of(place, one.metric, [one.fact], [one.value])


def _missing(rows: Sequence[Row]) -> Iterator[str]:
    known = {row.measure for row in rows if row.value is not None}
    reasons = {
        "efficacy": "no fact has a true object, so that success is told by the tokens of the new one",
        "generalization": "no fact has paraphrases and a true object",
        "specificity": "no fact has neighbors",
        "fluency": "no fact has generation prompts, or none was asked for",
        "consistency": "it compares with reference texts, and there are none for these facts",
    }
    for name, reason in reasons.items():
        if name not in known:
            yield f"{name} is missing: {reason}."
        elif len({row.of for row in rows if row.measure == name and row.value is not None}) == 1:
            yield f"{name} is of one fact: it has no standard error, and differences have no interval."


def panels(findings: Findings) -> list[Panel]:
    """A radar for each layer, as figures 4 and 8.

    As there, fluency and consistency are scaled for the eye: in percent of the largest that is shown anywhere.
    """
    means = findings.means()
    names = _shown(findings)
    largest = {
        name: max(found.value or 0.0 for (_, other), found in means.items() if other == name)
        for name in TEXT
        if name in names
    }

    def corner(place: Place, name: str) -> float:
        value = means[place, name].value or 0.0
        return 100 * value / largest[name] if largest.get(name) else value

    places = list(dict.fromkeys(place for place, _ in means))
    unedited = [place for place in places if place.layer is None]
    drawn: list[Panel] = []
    for layer in findings.among("layer"):
        shown = [*(place for place in places if place.layer == layer), *unedited]
        polygons = ((place.label, tuple(corner(place, name) for name in names)) for place in shown)
        drawn.append(Radar(f"Layer {layer} alone", tuple(names), tuple(polygons)))
    return drawn


def say(findings: Findings) -> list[str]:
    """What was learned at each layer in words."""
    means, place = findings.means(), Place(residual=UNEDITED)
    told = ", ".join(f"{name} {number(means[place, name])}" for name in _shown(findings))
    said = [f"Unedited: {told}."]
    for layer in findings.among("layer"):
        for spread in findings.among("spread"):
            told = ", ".join(_compared(findings, means, name, layer, spread) for name in _shown(findings))
            said.append(f"Layer {layer}, direct against distributed, {spread} (difference, 95 % interval): {told}.")
    return said


def _compared(findings: Findings, means: dict[tuple[Place, str], Mean], name: str, layer: int, spread: str) -> str:
    direct = means[Place(layer, DIRECT), name]
    found = gap(findings, name, layer, spread)
    distributed = None if direct.value is None or found.value is None else direct.value - found.value
    shown = "–" if distributed is None else f"{distributed:.3g}"
    return f"{name} {number(direct)} against {shown} ({found.text('.3g', sign=True)})"


def _shown(findings: Findings) -> list[str]:
    """The metrics that there are numbers of."""
    known = {row.measure for row in findings.rows if row.value is not None}
    wanted = COMPARED if "efficacy" in known else BY_TOKEN
    return [name for name in (*wanted, *TEXT) if name in known]
