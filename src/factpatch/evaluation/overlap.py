"""Where the facts of a run meet: neighbors that ask what is itself edited in the run."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from factpatch.facts import Fact


def edited_neighbors(facts: Sequence[Fact]) -> list[tuple[Fact | None, ...]]:
    """Find for each fact of a run which other fact edits the answer of each of its neighbors, or None.

    A neighbor's answer must not move when its fact is edited. If another fact of the run edits it on purpose, that is
    no fault of the edit, and specificity is better reported without it. That is so where a neighbor asks, up to case,
    punctuation and white space,

    - the question of a fact, or one of its paraphrases; or
    - the question of a fact that has the same relation as the neighbor's own, in words in which the run asks about that
      relation elsewhere: the prompts, and the generation prompts, of its facts. This needs a `relation_id`.
    """
    asked: dict[str, Fact] = {}
    by_relation: defaultdict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        for text in (fact.text, *fact.paraphrases):
            asked.setdefault(_plain(text), fact)
        if fact.relation_id is not None:
            by_relation[fact.relation_id].append(fact)
    reworded = {relation: _reworded(related) for relation, related in by_relation.items()}

    def editor_of(prompt: str, relation: str | None) -> Fact | None:
        text = _plain(prompt)
        return asked.get(text) or (None if relation is None else reworded[relation].get(text))

    return [tuple(editor_of(neighbor.prompt, fact.relation_id) for neighbor in fact.neighbors) for fact in facts]


def _reworded(related: Sequence[Fact]) -> dict[str, Fact]:
    """The questions of facts of one relation, each in the words of all."""
    wordings = dict.fromkeys(
        prompt.replace(fact.subject, "{}", 1)
        for fact in related
        for prompt in (fact.text, *fact.generation_prompts)
        if fact.subject in prompt
    )
    asked: dict[str, Fact] = {}
    for fact in related:
        for wording in wordings:
            asked.setdefault(_plain(wording.replace("{}", fact.subject, 1)), fact)
    return asked


def _plain(text: str) -> str:
    # Not all punctuation: C and C++ are two languages.
    return " ".join(re.sub(r"[.,;:!?\"'()]", " ", text.casefold()).split())
