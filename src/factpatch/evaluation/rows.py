"""Every metric by name, over all facts or fact by fact, from one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from factpatch.evaluation import metrics, text
from factpatch.evaluation.generation import Generation
from factpatch.evaluation.questions import FORMS
from factpatch.evaluation.readings import Probe, Reading
from factpatch.facts import Fact

Pairs = Sequence[tuple[Fact, Reading]]
Metric = Callable[[Pairs], float | None]
TEXT_METRICS = ("fluency", "consistency", "empty_texts")
GREEDY = "greedy_"
"""What the names of these begin with where the most probable token was always taken."""


class Row(NamedTuple):
    """One number about one fact."""

    fact: str
    """The fact's id, or "facts[3]", its place from 0, where it has none."""
    metric: str
    value: float | None
    """In percent, but for fluency; None where the fact lacks what it takes. The metric is the mean of all others."""


def rows(facts: Sequence[Fact], readings: Sequence[Reading]) -> list[Row]:
    """Return every metric of every fact, one reading for each fact.

    The mean of a metric's rows that are not None is what `summary` gives for all facts, since a metric weighs facts
    alike. The harmonic mean S has no rows: it is one of metrics, not of facts.

    Raises:
        ValueError: Two facts have the same id.
    """
    found = []
    for name, fact, reading in zip(fact_names(facts), facts, readings, strict=True):
        found += [Row(name, metric, of_fact([(fact, reading)])) for metric, of_fact in METRICS.items()]
    return found


def text_rows(
    facts: Sequence[Fact],
    generations: Sequence[Sequence[Generation]],
    references: Sequence[Sequence[str] | None] | None = None,
    tfidf: text.Similarity | None = None,
    prefix: str = "",
) -> list[Row]:
    """Return fluency, consistency and the share of empty texts of every fact.

    Args:
        facts: The facts.
        generations: For each fact the texts that a model wrote about its subject.
        references: For each fact its reference texts, or None where there are none: consistency is None there.
        tfidf: Compares texts; without it, consistency is None.
        prefix: What the metrics' names begin with, such as `GREEDY` for texts that were not sampled.

    Raises:
        ValueError: Two facts have the same id, or the lists differ in length.
    """
    references = [None] * len(facts) if references is None else references
    found = []
    for name, texts, given in zip(fact_names(facts), generations, references, strict=True):
        found += [
            Row(name, f"{prefix}fluency", text.fluency(texts)),
            Row(name, f"{prefix}consistency", None if tfidf is None else text.consistency(texts, given, tfidf)),
            Row(name, f"{prefix}empty_texts", text.empty_texts(texts)),
        ]
    return found


def fact_names(facts: Sequence[Fact]) -> list[str]:
    """What each fact is called in rows: its id, or its place.

    Raises:
        ValueError: Two facts are called the same, so that their rows could not be told apart.
    """
    places: dict[str, int] = {}
    for index, fact in enumerate(facts):
        name = f"facts[{index}]" if fact.id is None else fact.id
        if places.setdefault(name, index) != index:
            raise ValueError(
                f"facts[{places[name]}] and facts[{index}] both have the id {name!r}; give each an id of its own."
            )
    return list(places)


def summary(facts: Sequence[Fact], readings: Sequence[Reading]) -> dict[str, float | None]:
    """Return every metric over all facts, and `score`, the harmonic mean of efficacy, generalization, specificity."""
    pairs = list(zip(facts, readings, strict=True))
    found = {name: metric(pairs) for name, metric in METRICS.items()}
    return {**found, "score": metrics.harmonic_mean(found[name] for name in SCORED)}


def _new(probes: Iterable[Probe]) -> list[metrics.Matched]:
    return [probe.new.matched for probe in probes]


def _true(probes: Iterable[Probe]) -> list[metrics.Matched]:
    return [probe.true.matched for probe in probes if probe.true is not None]


def _answered(form: str, rate: Callable[[Any], float | None], target: Callable[[Fact], str | None]) -> Metric:
    def metric(pairs: Pairs) -> float | None:
        said = [(reading.said(form), fact) for fact, reading in pairs]
        return rate((None if one is None else metrics.behind(one, fact.text), target(fact)) for one, fact in said)

    return metric


def _answer_metrics() -> Iterable[tuple[str, Metric]]:
    for form in FORMS:
        for match, rate in (("exact", metrics.exact), ("contained", metrics.contained)):
            yield f"{form}_{match}", _answered(form, rate, lambda fact: fact.target_new)
            yield f"{form}_{match}_true", _answered(form, rate, lambda fact: fact.target_true)


SCORED = ("efficacy", "generalization", "specificity")
"""What the harmonic mean S is taken of."""

METRICS: Mapping[str, Metric] = {
    "efficacy": lambda pairs: metrics.efficacy(r.rewrite.nlls for _, r in pairs),
    "generalization": lambda pairs: metrics.generalization([p.nlls for p in r.paraphrases] for _, r in pairs),
    "specificity": lambda pairs: metrics.specificity([p.nlls for p in r.neighbors] for _, r in pairs),
    "strict_efficacy": lambda pairs: metrics.strict_efficacy(r.rewrite.new.matched for _, r in pairs),
    "strict_generalization": lambda pairs: metrics.strict_generalization(_new(r.paraphrases) for _, r in pairs),
    "strict_specificity": lambda pairs: metrics.strict_specificity(_true(r.neighbors) for _, r in pairs),
    "token_efficacy": lambda pairs: metrics.token_accuracy(_new([r.rewrite]) for _, r in pairs),
    "token_generalization": lambda pairs: metrics.token_accuracy(_new(r.paraphrases) for _, r in pairs),
    "token_specificity": lambda pairs: metrics.token_accuracy(_true(r.neighbors) for _, r in pairs),
    **dict(_answer_metrics()),
}
"""Every metric that a reading gives, by name."""
