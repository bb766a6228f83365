"""Where a fact is written whose record names no subject: a name that its texts share, or else that its prompt holds.

Where there is none, the last token of the prompt takes its place. What stands there has the whole question before it,
but it is alike in many questions, and so is harder to write to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from factpatch.facts import Fact
from factpatch.support.slots import around_slot, prompt_around, with_slot
from factpatch.support.words import quoted

_WORD = re.compile(r"\w+")
_JOINING = frozenset({"of", "the", "de", "du", "da", "di", "la", "von", "van", "and"})
"""Small words within a name."""
_NO_NAMES = """
a an the this that these those of in on at to for from by with as into about and or not no is are was were be been being
do does did has have had can could may might will would shall should must who whom whose what which when where why how
there it its he his she her they their i you your we our s question answer
"""
_PLAIN = frozenset(_NO_NAMES.split())
"""Words that no name begins or ends with."""
_LONGEST = 12  # words of a name
_MOST = 200  # words of a prompt in which a name is looked for


def question_fact(prompt: str, target_new: str, **fields: Any) -> Fact:
    """Return the fact of a question and its answer, without a subject: the place is found, see `located`.

    Args:
        prompt: The question, complete, ending right before its answer.
        target_new: The answer.
        **fields: Further fields of `Fact`; paraphrases, questions and neighbors show what the subject is.

    Raises:
        TypeError, ValueError: As `Fact`; or the prompt has a slot, and so lacks a subject.
    """
    return located(Fact(prompt, last_word(prompt), target_new, **fields))


def last_word(prompt: str) -> str:
    """Return the last word of a complete prompt, marks included: what the last token belongs to.

    Raises:
        ValueError: The prompt is blank, or has a slot for a subject.
    """
    if around_slot(prompt) is not None:
        raise ValueError(
            f"missing field 'subject': prompt={quoted(prompt)} has a slot for it; name it, or write the whole question."
        )
    if not prompt.strip():
        raise ValueError(f"prompt={prompt!r}: must not be blank.")
    return prompt.split()[-1]


def located(fact: Fact) -> Fact:
    """Return a fact with the subject that its texts show, and how it was found as `place`.

    *shared*: the span of the prompt that its paraphrases and questions repeat, and the neighbors do not. Of several,
    one with a capital letter or a digit is a name rather than one without, then the one with fewer words of the
    neighbors, more capitals and more words. *name*: without such a span, the longest run of words with capital letters,
    the last of several, but not the first word of the prompt alone. *last*: neither, so the last word stands for it.

    Args:
        fact: Its subject does not count.
    """
    whole = fact.text
    shared = shared_name(whole, (*fact.paraphrases, *fact.questions), [one.prompt for one in fact.neighbors])
    name = shared or capitalized(whole)
    around = None if name is None else prompt_around(whole, name, words_only=True)
    if around is not None:
        return replace(fact, prompt=around[0], subject=around[1], place="shared" if shared else "name")
    word = last_word(whole)
    return replace(fact, prompt=with_slot(whole[: -len(word)], ""), subject=word, place="last")


def shared_name(whole: str, asked: Sequence[str], others: Sequence[str]) -> str | None:
    """Return the span of words of a text that is most likely its subject; None if nothing shows it.

    Args:
        whole: The text.
        asked: Texts that ask the same of the same subject.
        others: Texts that mostly ask the same of other subjects.
    """
    repeated = [set(map(str.casefold, _WORD.findall(text))) for text in others]
    ranked = []
    for span in _spans(whole):
        words = [word for word in map(str.casefold, _WORD.findall(span)) if word not in _PLAIN]
        holds = re.compile(rf"(?<!\w){re.escape(span)}(?!\w)", re.IGNORECASE)
        hits = sum(bool(holds.search(text)) for text in asked)
        elsewhere = sum(2 * sum(word in text for text in repeated) >= max(1, len(repeated)) for word in words)
        # Half of the texts must agree, or, without any, no neighbor may have a word of it.
        if 2 * hits < len(asked) or (not asked and (not others or elsewhere)):
            continue
        capitals = sum(not word.islower() for word in _WORD.findall(span) if word.casefold() not in _PLAIN)
        ranked.append(((hits, bool(capitals), -elsewhere, capitals, len(span.split())), span))
    return max(ranked, key=lambda one: one[0])[1] if ranked else None


def capitalized(whole: str) -> str | None:
    """Return the longest run of words with capital letters in a prompt, the last of several; None if there is none.

    A run may hold small words, as in "University of Vienna". The first word of a prompt has a capital letter whatever
    it is: alone, it does not count, and a question word or an article there is no part of the run.
    """
    words = list(_WORD.finditer(whole))[:_MOST]
    names = [word[0][0].isupper() or word[0][0].isdigit() for word in words]
    if words and words[0][0].casefold() in _PLAIN:
        names[0] = False
    found: list[tuple[int, str]] = []
    first = 0
    for last in range(len(words)):
        gap = range(first, last)
        joined = any(names[place] for place in gap) and all(
            names[place] or words[place][0] in _JOINING for place in gap
        )
        first = first if joined and whole[words[last - 1].end() : words[last].start()].strip() == "" else last
        if names[first] and names[last] and last > 0:
            found.append((last - first + 1, whole[words[first].start() : words[last].end()]))
    return max(reversed(found), key=lambda one: one[0])[1] if found else None


def _spans(whole: str) -> Iterator[str]:
    """The spans of words that neither begin nor end with one that no name has there."""
    words = list(_WORD.finditer(whole))[:_MOST]
    ends = [word for word in words if word[0].casefold() not in _PLAIN]
    for first in ends:
        for last in ends:
            if first.start() <= last.start() and len(_WORD.findall(whole[first.start() : last.end()])) <= _LONGEST:
                yield whole[first.start() : last.end()]
