"""Every metric of knowledge editing by name: of one fact, and over all; docs/metrics.md lists them with their sources.

A metric is in percent, and None where there is nothing to compute it from: no fact has a true object, or none brings
paraphrases or neighbors. Each fact counts once, however many probes it brings; one without the probes that a metric
needs does not count.

Three words say what became of a fact. It is *preferred* if the new object has a lower NLL (mean nats per target token)
than the true one, which is what the published metrics count; *exact* if every token of the new object is the most
probable one; and *said* if the model's free answer holds it, word by word.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from factpatch.evaluation.readings import FORMS, LETTERS, Beside, Probe, Reading
from factpatch.evaluation.reproduction import is_long, reproduced, rouge_l
from factpatch.facts import CRITERIA, Fact
from factpatch.support.joint import UNSPACED

Share = Callable[[Fact, Reading], float | None]
"""A metric of one fact, in [0, 1]."""


class FactMetric(NamedTuple):
    """One metric of one fact."""

    fact: str
    """The fact's id, or "facts[3]", its place from 0, where it has none."""
    metric: str
    value: float | None
    """In percent, except for fluency; None where the fact lacks what it takes. The mean of all others is the metric."""


def fact_metrics(facts: Sequence[Fact], readings: Sequence[Reading]) -> list[FactMetric]:
    """Return every metric of every fact, one reading for each fact; ValueError if two facts have the same id.

    The harmonic mean S is not among them: it is one of metrics, not of facts.
    """
    return [
        FactMetric(name, metric, scaled(metric, share(fact, reading)))
        for name, fact, reading in zip(fact_names(facts), facts, readings, strict=True)
        for metric, share in metrics_of(readings, facts).items()
    ]


def summary(facts: Sequence[Fact], readings: Sequence[Reading]) -> dict[str, float | None]:
    """Return every metric over all facts, and `score`, the harmonic mean of efficacy, generalization, specificity."""
    pairs = list(zip(facts, readings, strict=True))
    metrics = metrics_of(readings, facts)
    found = {name: scaled(name, mean_or_none(share(*pair) for pair in pairs)) for name, share in metrics.items()}
    return {**found, "score": harmonic_mean(found[name] for name in SCORED)}


def metrics_of(readings: Sequence[Reading], facts: Sequence[Fact] = ()) -> Mapping[str, Share]:
    """Return the metrics that readings of facts may have.

    They are `METRICS`, and `PROBES` where the probes beside facts were asked, `FORGETTING` where an answer is to be
    forgotten, and `REPRODUCTION` where one is long.
    """
    found = dict(METRICS)
    if any(reading.beside is not None for reading in readings):
        found |= PROBES
    if any(fact.forget for fact in facts):
        found |= FORGETTING
    if any(is_long(fact.target_new) for fact in facts):
        found |= REPRODUCTION
    return found


def scaled(metric: str, value: float | None) -> float | None:
    """Return a metric in the unit that it is reported in: percent, or its own of `UNITS`."""
    return value if metric in UNITS else percent(value)


def fact_names(facts: Sequence[Fact]) -> list[str]:
    """Return the name of each fact among others, its id or its place; ValueError if two have the same id."""
    places: dict[str, int] = {}
    for index, fact in enumerate(facts):
        name = f"facts[{index}]" if fact.id is None else fact.id
        if places.setdefault(name, index) != index:
            raise ValueError(
                f"facts[{places[name]}] and facts[{index}] both have the id {name!r}; give each an id of its own."
            )
    return list(places)


def percent(share: float | None) -> float | None:
    """Return a share in [0, 1] in percent."""
    return None if share is None else 100.0 * share


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if there is none."""
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def harmonic_mean(values: Iterable[float | None]) -> float | None:
    """Return n / Σ 1/x; 0 if a value is 0, None if one is None or there is none, ValueError if one is negative."""
    known = list(values)
    if not known or None in known:
        return None
    numbers = [value for value in known if value is not None]
    if min(numbers) < 0:
        raise ValueError(f"values: {min(numbers)} is negative; a harmonic mean is taken of values from 0 up.")
    return 0.0 if min(numbers) == 0 else len(numbers) / sum(1 / value for value in numbers)


def exact_match(answer: str, target: str) -> bool:
    """Whether an answer is a target, word by word, except for case, punctuation and the articles a, an, the.

    Source: the exact match of SQuAD (arXiv:1606.05250), section 6.1.
    """
    said, wanted = _both(answer, target)
    return said == wanted


def contained_match(answer: str, target: str) -> bool:
    """Whether the words of a target stand in an answer, whole and in a row, normalized as in `exact_match`."""
    said, wanted = _both(answer, target)
    return any(said[start : start + len(wanted)] == wanted for start in range(len(said) - len(wanted) + 1))


def without_prompt(answer: str, prompt: str) -> str:
    """Return an answer without the prompt that it repeats first: "Rome." of "The capital of Italy is Rome."."""
    said, asked = (" ".join(text.split()) for text in (answer, prompt))
    repeated = re.match(rf"{re.escape(asked)}(?![^\W{UNSPACED}])", said, re.IGNORECASE)
    return said[repeated.end() :].lstrip() if repeated else answer


_ALONE = re.compile(f"[{UNSPACED}]")  # in scripts that put no space between words, every character is a word
_SIGNS = "#&@%"  # "C#" is not "C"; symbols such as "+" and emoji are of Unicode's category S
_ARTICLES = ("a", "an", "the")


def _words(text: str, signs: bool = False) -> list[str]:
    """The words of a text; `signs` says whether its symbols count."""
    words = [""]
    normalized = unicodedata.normalize("NFKC", text).casefold()
    for place, character in enumerate(normalized):
        kind = unicodedata.category(character)[0]
        minus = character in "-−" and not words[-1] and normalized[place + 1 : place + 2].isdigit()
        if _ALONE.match(character) or (signs and _is_sign(character)):
            words += [character, ""]
        elif kind in "LN" or (kind == "M" and words[-1]) or minus:  # marks are vowels in many scripts
            words[-1] += "-" if minus else character
        elif words[-1]:
            words.append("")
    words = [word for word in words if word]
    # "The The" keeps its articles, and "?!" its marks: a target of no words would be in every answer.
    return [word for word in words if word not in _ARTICLES] or words or [text.strip()]


def _is_sign(character: str) -> bool:
    return character in _SIGNS or unicodedata.category(character)[0] == "S"


def _both(answer: str, target: str) -> tuple[list[str], list[str]]:
    """The words of both, with symbols if the target has any."""
    signs = any(map(_is_sign, unicodedata.normalize("NFKC", target)))
    return _words(answer, signs), _words(target, signs)


def _any(match: Callable[[str, str], bool], answer: str, targets: Iterable[str]) -> bool:
    """Whether an answer is, or holds, any of some targets."""
    return any(match(answer, target) for target in targets)


def leaked(fact: Fact, answer: str, asked: str) -> bool:
    """Whether an answer holds the one that a fact is to make the model forget."""
    return _any(contained_match, without_prompt(answer, asked), fact.old_answers)


def _answered(form: str, match: Callable[[str, str], bool], true: bool) -> Share:
    def share(fact: Fact, reading: Reading) -> float | None:
        targets = (() if fact.other is None else fact.old_answers) if true else () if fact.forget else fact.answers
        if not targets:
            return None
        return mean_or_none(_any(match, without_prompt(said, fact.text), targets) for said in reading.answers_to(form))

    return share


def said(fact: Fact, reading: Reading) -> bool:
    """Whether the model says a fact: its free answer to the prompt holds the new object, or one of its aliases.

    Where a server cannot be asked with the prompt, the first form that it was asked in counts. Where the model was not
    asked for free answers: whether every token of the new object is the most probable one.

    A fact to forget is the other way round: it holds if the free answer does not have the old object, or, without free
    answers, if some token of it is not the most probable one.
    """
    if fact.forget:
        true = None if reading.rewrite is None else reading.rewrite.true
        return not (leaked(fact, reading.answer, fact.text) if reading.answer is not None else true and true.greedy)
    if reading.answer is None:
        return bool(reading.exact)
    return _any(contained_match, without_prompt(reading.answer, fact.text), fact.answers)


def _answer_metrics() -> Iterator[tuple[str, Share]]:
    for form in FORMS:
        for name, match in (("exact", exact_match), ("contained", contained_match)):
            yield f"{form}_{name}", _answered(form, match, true=False)
            yield f"{form}_{name}_true", _answered(form, match, true=True)


def _beside(share: Callable[[Fact, Beside], float | None]) -> Share:
    return _taught(lambda fact, reading: None if reading.beside is None else share(fact, reading.beside))


def _negated_said(fact: Fact, found: Beside) -> float | None:
    answer = found.negated_answer
    return None if answer is None else contained_match(without_prompt(answer.said, answer.asked), fact.target_new)


def _reversed_said(fact: Fact, found: Beside) -> float | None:
    answer = found.reversed_answer
    return None if answer is None else contained_match(without_prompt(answer.said, answer.asked), fact.subject)


def _named(found: Beside, target: str | None) -> float | None:
    """Whether the answer to a choice names an object, by its letter or, if it names none, by its words alone."""
    if found.lettered is None or target is None:
        return None
    given = found.lettered
    if given.letter is not None:
        return given.options[LETTERS.index(given.letter)] == target
    return [one for one in given.options if contained_match(given.said, one)] == [target]


def _chosen(fact: Fact, found: Beside, target: str | None) -> float | None:
    if found.choice is None or target is None or not comparable(fact):
        return None
    return found.choice.chosen == target


def _rippled(criterion: str) -> Callable[[Fact, Beside], float | None]:
    def share(fact: Fact, found: Beside) -> float | None:
        pairs = zip(fact.ripples, found.ripples, strict=True)
        return mean_or_none(
            any(contained_match(without_prompt(answer.said, ripple.prompt), right) for right in ripple.answers)
            for ripple, answer in pairs
            if ripple.criterion == criterion and answer is not None
        )

    return share


def _taught(share: Share) -> Share:
    """The metric of facts that are taught: a new object is what it is about."""
    return lambda fact, reading: None if fact.forget else share(fact, reading)


def comparable(fact: Fact) -> bool:
    """Whether NLL per token says if the new object is likelier than another one.

    A fact to forget has no new object. Most tokens of a long answer, new or true, are probable once its first ones are
    given, so that it wins over a short one whatever the model knows.
    """
    return not (fact.forget or is_long(fact.target_new) or is_long(fact.target_true or ""))


def neighbor_right(fact: Fact, probe: Probe) -> bool | None:
    """Whether a neighbor's true object is likelier than the fact's new one or, where they cannot be compared, exact.

    None without a true object, which is so where it is the new one as well.
    """
    if comparable(fact):
        return probe.prefers_true
    return probe.true.greedy if probe.true else None


def agrees(fact: Fact, probe: Probe) -> bool:
    """Whether after a paraphrase the new object is likelier than the true one or, where that says nothing, exact."""
    compared = probe.prefers_new if comparable(fact) else None
    return probe.new.greedy if compared is None else compared


def _compared(share: Share) -> Share:
    """The metric of facts whose new object can be compared with others."""
    return lambda fact, reading: share(fact, reading) if comparable(fact) else None


def _leak(*ways: str) -> Share:
    """The share of some ways of asking in which the old answer comes out, each way counted once."""

    def share(fact: Fact, reading: Reading) -> float | None:
        if not fact.forget or fact.target_true is None:
            return None
        found = []
        for way in ways:
            answers = [leaked(fact, said, fact.text) for form in _WAYS[way] for said in reading.answers_to(form)]
            attacks = [leak.leaked for leak in reading.leaks if leak.attack == way]
            found.append(mean_or_none([*answers, *attacks]))
        return mean_or_none(found)

    return share


def _of_long(measure: Callable[[str, str], float]) -> Share:
    """A measure of the free answer to the prompt, of facts with long answers."""

    def share(fact: Fact, reading: Reading) -> float | None:
        if not is_long(fact.target_new):
            return None
        answers = (without_prompt(said, fact.text) for said in reading.answers_to("prompt"))
        return mean_or_none(measure(answer, fact.target_new) for answer in answers)

    return share


def _refused(fact: Fact, reading: Reading) -> float | None:
    if fact.forget != "refuse" or reading.answer is None:
        return None
    return contained_match(without_prompt(reading.answer, fact.text), fact.target_new)


_WAYS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "paraphrase": (),
    "question": ("question",),
    "chat": ("chat", "chat_system", "chat_later"),
    "choice": (),
    "prefix": (),
}
"""The ways in which an answer may leak, and the forms of free answers that are among them."""

SCORED = ("efficacy", "generalization", "specificity")
"""What the harmonic mean S is taken of."""

METRICS: Mapping[str, Share] = {
    # MEMIT (arXiv:2210.07229), eq. 24 to 26: of the objects after the edit prompt, the paraphrases and the neighbors,
    # the wanted one has the lower NLL; of neighbors that is the true one.
    "efficacy": _compared(lambda fact, said: said.preferred),
    "generalization": _compared(lambda fact, said: mean_or_none(probe.prefers_new for probe in said.paraphrases)),
    "specificity": _compared(lambda fact, said: mean_or_none(probe.prefers_true for probe in said.neighbors)),
    # Every token of the wanted object is the most probable one.
    "strict_efficacy": _taught(lambda fact, said: said.exact),
    "strict_generalization": _taught(lambda fact, said: mean_or_none(probe.new.greedy for probe in said.paraphrases)),
    "strict_specificity": lambda fact, said: mean_or_none(probe.true.greedy for probe in said.neighbors if probe.true),
    # The share of its tokens that are: how zsRE is scored, which names no true object. MEMIT, eq. 21 to 23, which the
    # published code counts token by token.
    "token_efficacy": _taught(
        lambda fact, said: None if said.rewrite is None else mean_or_none(said.rewrite.new.matched)
    ),
    "token_generalization": _taught(
        lambda fact, said: mean_or_none(mean_or_none(one.new.matched) for one in said.paraphrases)
    ),
    "token_specificity": lambda fact, said: mean_or_none(
        mean_or_none(probe.true.matched) for probe in said.neighbors if probe.true
    ),
    **dict(_answer_metrics()),
}
"""Every metric that a reading gives, by name."""

PROBES: Mapping[str, Share] = {
    "negated_preferred": _beside(
        lambda fact, found: found.negated.prefers_new if found.negated and comparable(fact) else None
    ),
    "negated_contained": _beside(_negated_said),
    "reversed_preferred": _beside(lambda fact, found: None if found.reversed is None else found.reversed.prefers_new),
    "reversed_contained": _beside(_reversed_said),
    "reversed_nll": _beside(lambda fact, found: None if found.reversed is None else found.reversed.new.nll),
    "choice": _beside(lambda fact, found: _chosen(fact, found, fact.target_new)),
    "choice_true": _beside(lambda fact, found: _chosen(fact, found, fact.other)),
    "choice_said": _beside(lambda fact, found: _named(found, fact.target_new)),
    "choice_said_true": _beside(lambda fact, found: _named(found, fact.other)),
    **{f"ripple_{criterion}": _beside(_rippled(criterion)) for criterion in CRITERIA},
}
"""Every metric of the probes beside a fact, by name."""

FORGETTING: Mapping[str, Share] = {
    "leak": _leak(*_WAYS),
    **{f"leak_{way}": _leak(way) for way in _WAYS},
    "refused": _refused,
}
"""Every metric of facts to forget, by name."""

REPRODUCTION: Mapping[str, Share] = {
    "reproduced": _of_long(reproduced),
    "rouge_l": _of_long(rouge_l),
}
"""Every metric of facts with long answers, by name."""

UNITS: Mapping[str, str] = {"reversed_nll": "nats"}
"""The units of the metrics that are not in percent."""

LOWER = frozenset(
    {"negated_preferred", "negated_contained", "reversed_nll", "choice_true", "choice_said_true", *FORGETTING}
    - {"refused"}
)
"""The metrics of the probes, and of facts to forget, that a good edit lowers, or does not raise."""
