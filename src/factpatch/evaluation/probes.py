"""Probes beside a fact, which show whether an edit is more than an echo: they take time, so they are asked on demand.

- The *negated* prompt: "The capital of Italy is not" must not call for the new object.
- The *reversed* question: "Whose capital is Lima?" may call for the subject.
- A *choice*: among four objects of the same relation, does the model choose the new one?
- *Ripples*: prompts that a fact brings, whose answers follow from the edit or must survive it.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from factpatch.evaluation.generation import greedy_answers
from factpatch.evaluation.probabilities import Progress, Request, score
from factpatch.evaluation.questions import framed_question, questions, room
from factpatch.evaluation.readings import LETTERS, Answer, Beside, Choice, Lettered, Probe, Reversal, Score
from factpatch.evaluation.wording import negated_prompt, reversed_question
from factpatch.facts import Fact, same_object
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import target_ids
from factpatch.support.words import is_question

OPTIONS = len(LETTERS)
"""Of a choice."""
SEED = 0
"""Of which options there are, and their order; what decides besides is the fact."""


class _Plan(NamedTuple):
    """What is scored beside one fact; None or empty where that is not possible."""

    negated: tuple[str, str | None] | None
    """The prompt and the other object, where there is one."""
    reversed: tuple[str, str | None] | None
    """The question about the new object and, where it is known, about the true one."""
    choice: tuple[str, tuple[str, ...]] | None


def read_probes(
    lm: LanguageModel, facts: Sequence[Fact], pool: Sequence[Fact] | None = None, progress: Progress | None = None
) -> list[Beside]:
    """Ask the probes beside facts.

    Args:
        lm: The model; it is left as it was.
        facts: What to ask about.
        pool: The facts whose objects are options of a choice, `facts` by default. The same pool gives the same options.
        progress: Called after each batch with the number of requests and answers, of which `probe_count` is the total.

    Returns:
        One record for each fact; a probe for which there is no wording, or no options, is missing in it.
    """
    plans = _plans(lm, facts, facts if pool is None else pool)
    pairs = list(zip(facts, plans, strict=True))
    scores = iter(score(lm, [request for pair in pairs for request in _requests(*pair)], progress))
    asked = [_asked(lm, fact) for fact in facts]
    texts, rooms = [one.text for group in asked for one in group], [one.room for group in asked for one in group]
    said = iter(greedy_answers(lm, texts, rooms, progress=progress or (lambda answers: None)) if texts else ())
    records = []
    for fact, plan, group in zip(facts, plans, asked, strict=True):
        answered = beside(fact, [(one.probe, one.text, next(said)) for one in group])
        records.append(_scored(answered, plan, scores))
    return records


def probe_count(lm: LanguageModel, facts: Sequence[Fact], pool: Sequence[Fact] | None = None) -> int:
    """Return how many requests and answers `read_probes` asks for: the sum of what it reports as progress."""
    pairs = zip(facts, _plans(lm, facts, facts if pool is None else pool), strict=True)
    return sum(len(_requests(fact, plan)) + len(spoken(fact)) for fact, plan in pairs)


def options(fact: Fact, pool: Sequence[Fact]) -> tuple[str, ...] | None:
    """Return the objects among which a model has to choose, in an order that depends on the fact and `SEED` only.

    They are the new object, the true one, and others of the same relation: the objects of the facts in `pool` that have
    the fact's relation or its prompt, and of these facts' neighbors. A fact to forget has no new object, and what is
    said in place of the old one is none. None if there are fewer than `OPTIONS`.
    """
    alike = [fact, *(one for one in pool if _same_relation(fact, one))]
    own = [*([] if fact.forget else [fact.target_new]), *([] if fact.other is None else [fact.other])]
    others: list[str] = []
    for name in sorted({name for one in alike for name in _objects(one)}):
        if not any(same_object(name, known) for known in (*own, *others)):
            others.append(name)
    if len(own) + len(others) < OPTIONS:
        return None
    dice = random.Random(unicodedata.normalize("NFC", "\0".join([str(SEED), fact.prompt, fact.subject])))
    chosen = [*own, *dice.sample(others, OPTIONS - len(own))]
    dice.shuffle(chosen)
    return tuple(chosen)


def _same_relation(fact: Fact, other: Fact) -> bool:
    return other.prompt == fact.prompt or (fact.relation_id is not None and other.relation_id == fact.relation_id)


def _objects(fact: Fact) -> Iterator[str]:
    if not fact.forget:
        yield fact.target_new
    yield from (neighbor.target_true for neighbor in fact.neighbors)
    if fact.target_true is not None:
        yield fact.target_true


def _plans(lm: LanguageModel, facts: Sequence[Fact], pool: Sequence[Fact]) -> list[_Plan]:
    return [_Plan(_negated(fact), _reversed(lm, fact), _choice(lm, fact, pool)) for fact in facts]


def _negated(fact: Fact) -> tuple[str, str | None] | None:
    negated = negated_prompt(fact)
    return None if negated is None else (negated, fact.other)


def _reversed(lm: LanguageModel, fact: Fact) -> tuple[str, str | None] | None:
    asked = reversed_question(fact, fact.target_new)
    if asked is None:
        return None
    other = None if fact.other is None else reversed_question(fact, fact.other)
    return framed_question(asked, lm.frame.chat), None if other is None else framed_question(other, lm.frame.chat)


def _choice(lm: LanguageModel, fact: Fact, pool: Sequence[Fact]) -> tuple[str, tuple[str, ...]] | None:
    asked, among = questions(fact), options(fact, pool)
    if not asked or among is None:
        return None
    return str(question_of_choice(lm, fact, among)), among


def question_of_choice(lm: LanguageModel, fact: Fact, among: Sequence[str]) -> str | None:
    """What asks for one of some objects; None for a fact without a question."""
    asked = questions(fact)
    if not asked:
        return None
    return framed_question(f"{asked[0]} Choose one: {', '.join(among)}.", lm.frame.chat)


def _requests(fact: Fact, plan: _Plan) -> list[Request]:
    """What is scored, in the order in which `_scored` takes the scores."""
    found = []
    if plan.negated is not None:
        text, other = plan.negated
        found += [Request(text, target, fact.space) for target in (fact.target_new, other) if target is not None]
    if plan.reversed is not None:
        found += [Request(asked, fact.subject) for asked in plan.reversed if asked is not None]
    if plan.choice is not None:
        found += [Request(plan.choice[0], option) for option in plan.choice[1]]
    return found


class _Asked(NamedTuple):
    """A probe that is answered freely: the text that the model reads, and how many tokens it may answer with."""

    probe: Spoken
    text: str
    room: int


def _asked(lm: LanguageModel, fact: Fact) -> list[_Asked]:
    found = []
    for one in spoken(fact):
        longest = max(len(target_ids(lm.tokenizer, name, lm.frame, " ")) for name in one.wanted)
        text = framed_question(one.text, lm.frame.chat) if one.question else one.text
        # Ripples have the room of a prompt even where they are questions, so that their numbers stay comparable.
        found.append(_Asked(one, text, room("question" if one.kind == "reversed" else "prompt", longest)))
    return found


def _scored(answered: Beside, plan: _Plan, scores: Iterator[Score]) -> Beside:
    """Add the scores of what `_requests` asks for."""
    negated = reversal = choice = None
    if plan.negated is not None:
        text, other = plan.negated
        negated = Probe(text, next(scores), None if other is None else next(scores))
    if plan.reversed is not None:
        asked, other = plan.reversed
        reversal = Reversal(asked, next(scores), other, None if other is None else next(scores))
    if plan.choice is not None:
        asked, among = plan.choice
        choice = Choice(asked, among, tuple(next(scores).nll for _ in among))
    return replace(answered, negated=negated, reversed=reversal, choice=choice)


class Spoken(NamedTuple):
    """One of the probes beside a fact, where the model can only answer: it gives no probabilities."""

    kind: str
    """"negated", "reversed", "lettered" or "ripple"."""
    text: str
    """A question, or a prompt to continue."""
    question: bool
    """Which of the two it is."""
    wanted: tuple[str, ...]
    """What an answer may be, for which it needs room."""


def spoken(fact: Fact, pool: Sequence[Fact] | None = None) -> list[Spoken]:
    """Return the probes that are answered freely; the ripples come last, each of them in order.

    Args:
        fact: What to ask about.
        pool: The facts whose objects are options of a choice by letter, for models whose probabilities are not known;
            None for no choice.

    What has no wording, or no options, is missing.
    """
    found = []
    negated, asked = negated_prompt(fact), reversed_question(fact, fact.target_new)
    if negated is not None:
        found.append(Spoken("negated", negated, False, (fact.target_new,)))
    if asked is not None:
        found.append(Spoken("reversed", asked, True, (fact.subject,)))
    own, among = questions(fact), None if pool is None else options(fact, pool)
    if own and among is not None:
        listed = ", ".join(f"{letter}) {option}" for letter, option in zip(LETTERS, among, strict=True))
        found.append(Spoken("lettered", f"{own[0]} Choose one: {listed}. Answer with its letter.", True, among))
    return [*found, *(Spoken("ripple", one.prompt, is_question(one.prompt), one.answers) for one in fact.ripples)]


def beside(fact: Fact, answered: Sequence[tuple[Spoken, str, str | None]]) -> Beside:
    """Return what a model has answered to the probes beside a fact.

    Args:
        fact: The fact.
        answered: All that `spoken` returned: with the text as it was asked, and the answer; None if it was not asked.
    """
    given = {one.kind: (one, asked, said) for one, asked, said in answered if said is not None}
    ripples = [(asked, said) for one, asked, said in answered if one.kind == "ripple"]

    def answer(kind: str) -> Answer | None:
        return Answer(kind, given[kind][1], given[kind][2]) if kind in given else None

    lettered = given.get("lettered")
    return Beside(
        negated_answer=answer("negated"),
        reversed_answer=answer("reversed"),
        lettered=None if lettered is None else Lettered(lettered[1], lettered[0].wanted, lettered[2]),
        ripples=tuple(
            None if said is None else Answer(ripple.criterion, asked, said)
            for ripple, (asked, said) in zip(fact.ripples, ripples, strict=True)
        ),
    )
