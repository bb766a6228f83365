"""What a model says of facts, before and after an edit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from factpatch.evaluation.forgetting import leak_count, read_leaks
from factpatch.evaluation.metrics import (
    METRICS,
    FactMetric,
    agrees,
    comparable,
    fact_metrics,
    mean_or_none,
    neighbor_right,
    said,
    summary,
)
from factpatch.evaluation.probabilities import Progress, Request, check_requests, score
from factpatch.evaluation.probes import probe_count, read_probes
from factpatch.evaluation.questions import answer_count, questions, sampled
from factpatch.evaluation.questions import answers as free_answers
from factpatch.evaluation.readings import Probe, Reading
from factpatch.facts import Fact, same_object
from factpatch.model.batching import parts
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model
from factpatch.model.replicas import Replicas
from factpatch.support.words import counted
from factpatch.values.rows import optimization_rows

FACTS_AT_ONCE = 4
"""How many facts a copy of the model is asked about at a time: about a hundred requests."""
_FORMS = {
    "question": "asked a question",
    "chat": "in a chat",
    "chat_system": "with another system turn",
    "chat_later": "later in a chat",
}
"""What `plain_summary` calls the forms other than the prompt."""


@dataclass(frozen=True)
class Verification:
    """What a model says of facts now and, where an earlier verification was given, what it said then.

    Attributes:
        facts: The facts.
        after: One reading for each fact.
        before: The readings of the earlier verification, in the same order, or None.
    """

    facts: tuple[Fact, ...]
    after: tuple[Reading, ...]
    before: tuple[Reading, ...] | None = None

    def summary(self) -> dict[str, dict[str, float | None]]:
        """Return the metrics, each as {"before": percent, "after": percent}; docs/metrics.md says what each is.

        A number is None where it cannot be computed: there is no earlier verification, no fact has a true object, or no
        fact has the probes.
        """
        after = summary(self.facts, self.after)
        before = {} if self.before is None else summary(self.facts, self.before)
        return {name: {"before": before.get(name), "after": value} for name, value in after.items()}

    def rows(self) -> list[FactMetric]:
        """Return every metric of every fact, of what the model says now; see `metrics.fact_metrics`.

        Raises:
            ValueError: Two facts have the same id.
        """
        return fact_metrics(self.facts, self.after)

    def only(self, forgotten: bool) -> Verification:
        """Return what is known of the facts to forget alone, or of those that are taught."""
        places = [place for place, fact in enumerate(self.facts) if bool(fact.forget) is forgotten]
        some = tuple(self.facts[place] for place in places)
        before = None if self.before is None else tuple(self.before[place] for place in places)
        return Verification(some, tuple(self.after[place] for place in places), before)

    def said(self) -> list[bool]:
        """Return for each fact whether the model says it now, or has forgotten it; see `metrics.said`."""
        return [said(fact, reading) for fact, reading in zip(self.facts, self.after, strict=True)]

    def unlearned(self) -> list[Fact]:
        """Return the facts that the model does not say now, or has not forgotten, of those that it was asked about."""
        found = zip(self.facts, self.after, self.said(), strict=True)
        return [fact for fact, reading, held in found if not held and (reading.answers or reading.rewrite is not None)]

    def without_question(self) -> list[Fact]:
        """Return the facts that are asked by their prompt only: no question is left that was not trained.

        That is, they have none, or it was trained, and of their prompt no other can be made.
        """
        return [fact for fact in self.facts if not questions(fact)]

    def unchanged_neighbors(self) -> tuple[int, int] | None:
        """Return how many answers after neighbors' prompts are what they were, and of how many; None if not asked."""
        pairs = [
            (then.said, answer.said)
            for earlier, reading in zip(self.before or (), self.after, strict=False)
            for then, answer in zip(earlier.neighbor_answers, reading.neighbor_answers, strict=True)
        ]
        return (sum(then == answer for then, answer in pairs), len(pairs)) if pairs else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record: the summary, and the readings of each fact."""
        before = (None,) * len(self.facts) if self.before is None else self.before
        facts = [
            {
                "id": fact.id,
                "prompt": fact.text,
                "subject": fact.subject,
                "target_new": fact.target_new,
                "target_true": fact.target_true,
                **({"forget": fact.forget} if fact.forget else {}),
                "before": None if earlier is None else _record(fact, earlier),
                "after": _record(fact, now),
            }
            for fact, earlier, now in zip(self.facts, before, self.after, strict=True)
        ]
        return {"summary": self.summary(), "facts": facts}


def _record(fact: Fact, reading: Reading) -> dict[str, Any]:
    outcome = {"forgotten" if fact.forget else "said": said(fact, reading)}
    return {**outcome, **reading.to_dict(), **({} if comparable(fact) else {"preferred": None})}


def verify(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    before: Verification | None = None,
    *,
    chat: bool = False,
    answers: bool = True,
    probes: bool = False,
    progress: Progress | None = None,
    replicas: Replicas | None = None,
) -> Verification:
    """Ask a model about facts: the probability of the new and the old object and the greedy answer, before and after.

    Paraphrases and neighbors are asked where the facts have them.

    Args:
        model: A transformers model or a `LanguageModel`; it is left as it was.
        tokenizer: Its tokenizer; None with a `LanguageModel`, which has one.
        facts: What to ask about.
        before: An earlier verification of the same facts, made before an edit.
        chat: Whether to ask every prompt as a user's turn of a chat; a `LanguageModel` has that setting already.
        answers: Whether to ask for greedy answers: to the prompt, to questions and, where that suits, in chats.
        probes: Whether to ask beside the facts too: negated and reversed, in a choice, and with their ripples; see
            `probes.read_probes`.
        progress: Called after each batch of probes and answers with their number.
        replicas: The model and its copies, to share the facts among; how many there are changes nothing.

    Raises:
        ValueError: There are no facts, `before` is about other facts, or the model cannot be read.
    """
    facts = tuple(facts)
    if not facts:
        raise ValueError("facts=[]: there is nothing to ask about; give at least one fact.")
    if before is not None and before.facts != facts:
        raise ValueError(f"before: {_difference(before.facts, facts)}; give an earlier verification of the same facts.")
    lm = load_language_model(model, tokenizer, chat=chat)
    ask = Ask(facts, answers, probes)
    readings = ask(lm, range(len(facts)), progress) if replicas is None else _shared(replicas, ask, progress)
    return Verification(facts=facts, after=tuple(readings), before=None if before is None else before.after)


@dataclass(frozen=True)
class Ask:
    """What `verify` asks a model, or a copy of it, about the facts in some places.

    The others count too: of many facts, some are asked in all forms, and choices are among the objects of all.
    """

    facts: tuple[Fact, ...]
    answers: bool
    probes: bool

    def __call__(self, lm: LanguageModel, places: Sequence[int], progress: Progress | None = None) -> list[Reading]:
        some = self._some(places)
        readings = read_facts(lm, some, self.answers, progress, self._sampled(places))
        if self._forget(some):
            leaks = read_leaks(lm, some, self.facts, progress)
            readings = [replace(reading, leaks=found) for reading, found in zip(readings, leaks, strict=True)]
        if not self.probes:
            return readings
        found = read_probes(lm, some, self.facts, progress=progress)
        return [replace(reading, beside=beside) for reading, beside in zip(readings, found, strict=True)]

    def count(self, lm: LanguageModel, places: Sequence[int]) -> int:
        """How many requests that makes, answers included."""
        some = self._some(places)
        scored = sum(len(_requests(fact)) for fact in some)
        scored += probe_count(lm, some, self.facts) if self.probes else 0
        scored += leak_count(lm, some, self.facts) if self._forget(some) else 0
        return scored + (answer_count(lm, some, self._sampled(places)) if self.answers else 0)

    def _forget(self, some: Sequence[Fact]) -> bool:
        return self.answers and any(fact.forget for fact in some)

    def _some(self, places: Sequence[int]) -> list[Fact]:
        return [self.facts[place] for place in places]

    def _sampled(self, places: Sequence[int]) -> frozenset[int]:
        """Which of the facts in these places are asked in all forms."""
        chosen = sampled(self.facts)
        return frozenset(index for index, place in enumerate(places) if place in chosen)


def _shared(replicas: Replicas, ask: Ask, progress: Progress | None) -> list[Reading]:
    """What the copies of a model say, in shards of a fixed size."""
    shards = parts(range(len(ask.facts)), FACTS_AT_ONCE)

    def advance(place: int) -> None:
        if progress is not None:
            progress(ask.count(replicas.lm, shards[place]))

    return [reading for found in replicas.map(ask, shards, advance) for reading in found]


def _difference(earlier: Sequence[Fact], now: Sequence[Fact]) -> str:
    if len(earlier) != len(now):
        return f"it is about {len(earlier)} facts instead of {len(now)}"
    index = next(i for i, (a, b) in enumerate(zip(earlier, now, strict=True)) if a != b)
    return f"its fact {index}, {earlier[index].text!r}, is not the given one, {now[index].text!r}"


def read_facts(
    lm: LanguageModel,
    facts: Sequence[Fact],
    answers: bool = True,
    progress: Progress | None = None,
    chosen: Collection[int] | None = None,
) -> list[Reading]:
    """Read what a model says of facts and their probes, all of them in one pass; one reading for each fact.

    `answers` says whether to ask for greedy answers, see `questions.answers`, and `chosen` which facts to ask in all
    forms, see `questions.asked`; `progress` is called after each batch of requests with their number, of which
    `request_count` gives the total.
    """
    scores = iter(score(lm, [request for fact in facts for request in _requests(fact)], progress))
    silent = progress or (lambda answers: None)
    answered = free_answers(lm, facts, silent, chosen=chosen) if answers else [()] * len(facts)
    readings = []
    for fact, of_fact in zip(facts, answered, strict=True):
        probes = [Probe(prompt, next(scores), None if true is None else next(scores)) for prompt, true in _probes(fact)]
        first_neighbor = 1 + len(fact.paraphrases)
        readings.append(Reading(probes[0], tuple(probes[1:first_neighbor]), tuple(probes[first_neighbor:]), of_fact))
    return readings


def exact(lm: LanguageModel, facts: Sequence[Fact]) -> list[bool]:
    """Whether every token of each fact's new answer is the likeliest after its prompt; nothing else is asked.

    Of a fact to forget, whether that does not hold of the old answer.
    """
    readings = read_facts(lm, bare(facts), answers=False)
    return [said(fact, reading) for fact, reading in zip(facts, readings, strict=True)]


def bare(facts: Sequence[Fact]) -> list[Fact]:
    """The facts without paraphrases and neighbors, so that only they themselves are asked."""
    return [replace(fact, paraphrases=(), neighbors=()) for fact in facts]


def request_count(lm: LanguageModel, facts: Sequence[Fact], answers: bool = True, probes: bool = False) -> int:
    """Return how many requests `verify` makes, answers included: the sum of what it reports as progress."""
    return Ask(tuple(facts), answers, probes).count(lm, range(len(facts)))


def _probes(fact: Fact) -> Iterator[tuple[str, str | None]]:
    """The prompts to ask, each with the true object there: the edit prompt, the paraphrases, the neighbors."""
    for prompt in (fact.text, *fact.paraphrases):
        yield prompt, fact.other
    for neighbor in fact.neighbors:
        yield neighbor.prompt, None if same_object(neighbor.target_true, fact.target_new) else neighbor.target_true


def _requests(fact: Fact) -> list[Request]:
    pairs = ((prompt, target) for prompt, true in _probes(fact) for target in (fact.target_new, true))
    return [Request(prompt, target, fact.space) for prompt, target in pairs if target is not None]


def usable(lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str]) -> tuple[list[Fact], list[str]]:
    """Return the facts that one batch can hold and the model can be edited on and asked, and why others are left out.

    Raises a ValueError if there are facts, and none is left.
    """
    kept: list[Fact] = []
    asked: set[str] = set()
    reasons = []
    for fact in facts:
        try:
            if fact.key in asked:
                raise ValueError("an earlier fact asks the same")
            optimization_rows(lm, [fact], contexts)
            check_requests(lm, _requests(fact))
        except ValueError as error:
            name = "" if fact.id is None else f"{fact.id}: "
            reasons.append(f"left out: {name}{fact.text!r}: {error}")
        else:
            kept.append(fact)
            asked.add(fact.key)
    if facts and not kept:
        raise ValueError(f"none of the {len(facts)} facts can be edited; the first is {reasons[0]}")
    return kept, reasons


def plain_summary(
    verification: Verification,
    perplexity: tuple[float | None, float | None] = (None, None),
    seconds: float | None = None,
    error: float | None = None,
    in_force: int = 0,
) -> str:
    """Say in a sentence without any metric what the model says now, what else moved and what it cost.

    Facts are counted as said, exact and preferred, and those to forget as forgotten; see docs/metrics.md. How many are
    said where the model is asked otherwise follows in percent, of the facts that have a question. Preferred are counted
    among those with a true object that differs. A paraphrase agrees if the new object is likelier than the true one or,
    where none is known, exact. A neighbor has moved if its true object was likelier than the new one before and is not
    now; without an earlier verification, the sentence counts those that are wrong now. Beside a fact to forget and a
    long answer, exact ones count in place of those that are likelier. Where neighbors were asked for answers, it counts
    those that are unchanged. What is not known is left out.

    Returns:
        For example "38 of 40 facts said, 37 exact, 40 of 40 preferred; asked a question 85 %, in a chat 80 %, with
        another system turn 78 %, later in a chat 80 %; 70 of 80 paraphrases agree; 3 of 360 neighbors moved; perplexity
        +1.2 ± 0.2 %; editing took 40 s", where `perplexity` was measured on ordinary text before and after, and `error`
        is the standard error of its change. If more facts are `in_force` than were asked about, it begins with
        "asked about 100 of 1,000 facts: ".
    """
    taught, forgotten = (verification.only(kind) for kind in (False, True))
    parts = [*_learned(taught), *_forgotten(forgotten), *_otherwise(taught)]
    pairs = zip(taught.facts, taught.after, strict=True)
    agree = [agrees(fact, probe) for fact, reading in pairs for probe in reading.paraphrases]
    if agree:
        parts.append(f"{sum(agree)} of {counted(len(agree), 'paraphrase')} agree{'s' if len(agree) == 1 else ''}")
    parts += _neighbors(verification)
    unchanged = verification.unchanged_neighbors()
    if unchanged is not None:
        parts.append(f"neighbors: {unchanged[0]} of {counted(unchanged[1], 'answer')} unchanged")
    before, after = perplexity
    if before is not None and after is not None:
        parts.append(f"perplexity {perplexity_change(before, after, error)}")
    if seconds is not None:
        parts.append(f"editing took {seconds:.0f} s")
    asked = len(verification.facts)
    return (f"asked about {asked:,} of {in_force:,} facts: " if asked < in_force else "") + "; ".join(parts)


def perplexity_change(before: float, after: float, error: float | None = None) -> str:
    """The change of perplexity in percent, with its standard error if that is known."""
    change = f"{100 * (after / before - 1):+.1f}"
    return f"{change} %" if error is None else f"{change} ± {error:.1f} %"


def _learned(verification: Verification) -> list[str]:
    """How many facts are said, exact and preferred; nothing if none was taught."""
    now = verification.after
    exact = [reading.exact for reading in now if reading.exact is not None]
    # What is not known is not counted: without answers what is said, and without probabilities what is exact.
    answered = sum(bool(reading.answers) for reading in now)
    counts = [(sum(verification.said()), "said", answered)] if answered else []
    counts += [(sum(exact), "exact", len(exact))] if exact else []
    if not counts:
        return []
    (first, word, number), *others = counts
    words = [f"{first} of {counted(number, 'fact')} {word}", *(f"{count} {word}" for count, word, _ in others)]
    pairs = zip(verification.facts, now, strict=True)
    preferred = [found for found in (METRICS["efficacy"](*pair) for pair in pairs) if found is not None]
    if preferred:
        words.append(f"{sum(map(bool, preferred))} of {len(preferred)} preferred")
    return [", ".join(words)]


def _forgotten(verification: Verification) -> list[str]:
    """How many facts are forgotten, and how much of them leaks."""
    if not verification.facts:
        return []
    leak = verification.summary().get("leak", {"after": None})["after"]
    share = "" if leak is None else f", leak {leak:.0f} %"
    return [f"{sum(verification.said())} of {counted(len(verification.facts), 'fact')} forgotten{share}"]


def _otherwise(verification: Verification) -> list[str]:
    """What is said in the other forms, and how many facts have no question to ask in them."""
    pairs = list(zip(verification.facts, verification.after, strict=True))
    shares = {form: mean_or_none(METRICS[f"{form}_contained"](*pair) for pair in pairs) for form in _FORMS}
    words = [f"{_FORMS[form]} {100 * share:.0f} %" for form, share in shares.items() if share is not None]
    parts = [", ".join(words)] if words else []
    without = len(verification.without_question()) if any(reading.answers for reading in verification.after) else 0
    if without:
        parts.append(f"{counted(without, 'fact')} {'has' if without == 1 else 'have'} no question")
    return parts


def _neighbors(verification: Verification) -> list[str]:
    """How many of the neighbors that were right moved, or how many are wrong.

    One whose answer is the new one as well is neither.
    """
    found = _right(verification.facts, verification.after)
    now = [right for right in found if right is not None]
    if not now:
        return []
    if verification.before is None:
        return [f"{len(now) - sum(now)} of {counted(len(now), 'neighbor')} wrong"]
    was = _right(verification.facts, verification.before)
    right = [still for earlier, still in zip(was, found, strict=True) if earlier]
    if not right:
        return [f"none of {counted(len(now), 'neighbor')} was right before"]
    return [f"{len(right) - sum(map(bool, right))} of {counted(len(right), 'neighbor')} moved"]


def _right(facts: Sequence[Fact], readings: Sequence[Reading]) -> list[bool | None]:
    return [
        neighbor_right(fact, probe)
        for fact, reading in zip(facts, readings, strict=True)
        for probe in reading.neighbors
    ]
