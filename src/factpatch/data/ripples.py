"""Ripples of an edit in the records of RippleEdits, MQuAKE, KnowEdit and WikiBigEdit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from factpatch.data.records import Record, read_optional_text, read_text, read_texts
from factpatch.facts import Ripple
from factpatch.support.words import quoted

_RIPPLE_EDITS = {
    "Logical_Generalization": "logical_generalization",
    "Compositionality_I": "compositionality_i",
    "Compositionality_II": "compositionality_ii",
    "Subject_Aliasing": "subject_aliasing",
    "Relation_Specificity": "relation_specificity",
    "Relation_Specifity": "relation_specificity",  # as its documentation spells it
    "Forgetfulness": "forgetfulness",
}
"""The criteria of RippleEdits by their names in its files."""
_PORTABILITY = {"Reasoning": "reasoning", "Logical_Generalization": "logical_generalization"}
"""The groups of KnowEdit's `portability` that ask what follows from the edit."""
_STATEMENT = re.compile(r"(.*\b(?:is|are|follows|followed by)) (.+?)\.?\s*", re.DOTALL)
_EDGES = (
    "the a an name names of is are was which who that in by has have held won with part member children number place "
    "date country city capital associated plays follows followed"
)
"""Words of the templates of RippleEdits that may stand beside a subject in what several prompts share."""


class Edited(NamedTuple):
    """The edit of a record of RippleEdits."""

    prompt: str
    subject: str
    target_new: str
    target_true: str | None


def of_ripple_edits(record: Record) -> Edited:
    """Take the edit of a RippleEdits record apart, which states it as a sentence and names its subject by an id only.

    The new object is what follows the last "is", "are" or "follows" of the sentence, and the true one what follows the
    same words in the original fact. The subject is the longest name that the edit shares with all other prompts about
    the same id or, without these, the longest that it holds. `edit.subject`, which published files lack, settles it.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is missing, or the sentence cannot be taken apart.
    """
    stated = read_text(record, "edit.prompt")
    original = read_optional_text(record, "edit.original_fact.prompt")
    ended = _STATEMENT.fullmatch(stated)
    if ended is None:
        raise ValueError(
            f"edit.prompt={quoted(stated)}: has no 'is', 'are' or 'follows' after which its answer could begin; write "
            "prompt, subject and target_new."
        )
    prompt, target = ended[1], ended[2]
    true = original.removeprefix(prompt).strip().removesuffix(".") if original and original.startswith(prompt) else None
    subject = read_optional_text(record, "edit.subject") or _subject(record, prompt)
    if subject is None:
        raise ValueError(
            f"edit.prompt={quoted(stated)}: holds no name that the record's other prompts about the same subject "
            "hold too; add the subject to the record as edit.subject."
        )
    return Edited(prompt, subject, target, true or None)


def _subject(record: Record, prompt: str) -> str | None:
    """The subject of the edit: what its prompt shares with all prompts about the same id, else the name it holds."""
    name = read_optional_text(record, "edit.subject_id")
    alike = [
        read_text(query, "prompt").split()
        for criterion, query in _queries(record)
        # Aliases have the same id, and two hops speak of somebody else.
        if criterion != "subject_aliasing" and query.get("query_type", "regular") == "regular"
        if name is not None and query.get("subject_id") == name
    ]
    words = prompt.split()
    ends = range(len(words) + 1)
    shared = (
        _trimmed(words, start, end)
        for start in ends
        for end in ends[start + 1 :]
        if not alike or all(_within(words[start:end], other) for other in alike)
    )
    named = [run for run in shared if re.match(r"[^\Wa-z_]", run) and re.search(r"[^\Wa-z_]\S*$", run)]
    return max(named, key=lambda run: (len(run), run), default=None)


def _trimmed(words: Sequence[str], start: int, end: int) -> str:
    """Some of the words of a prompt, without those of its template at either end."""
    edges = _EDGES.split()
    while start < end and (words[start] in edges or (start == 0 and words[0] == "The")):
        start += 1
    while end > start and words[end - 1] in edges:
        end -= 1
    return " ".join(words[start:end])


def _within(part: Sequence[str], words: Sequence[str]) -> bool:
    return any(list(words[at : at + len(part)]) == list(part) for at in range(len(words) - len(part) + 1))


def _queries(record: Record) -> Iterator[tuple[str, Record]]:
    """Every test query of a RippleEdits record with its criterion."""
    for group, criterion in _RIPPLE_EDITS.items():
        for test in _objects(group, record.get(group)):
            for query in _objects(f"{group}.test_queries", test.get("test_queries")):
                yield criterion, query


def _objects(name: str, value: object) -> list[Record]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise TypeError(f"{name}={quoted(value)}: must be a list of objects.")
    return value


def ripples_of_ripple_edits(record: Record) -> tuple[Ripple, ...]:
    """Return the test queries of a RippleEdits record (arXiv:2307.12976), each by itself.

    A query without an answer is left out. The published score counts a test as passed if one or all of its queries are
    answered, and only tests whose conditions the unedited model meets; here a query counts, and all of them.
    """
    found = []
    for criterion, query in _queries(record):
        names: list[str] = []
        for answer in _objects("answers", query.get("answers")):
            aliases = answer.get("aliases") or []
            known = read_optional_text(answer, "value")
            names += [*([] if known is None else [known]), *(read_texts({"aliases": aliases}, "aliases"))]
        if names:
            found.append(Ripple(criterion, read_text(query, "prompt"), tuple(dict.fromkeys(names))))
    return tuple(found)


def ripples_of_mquake(record: Record) -> list[dict[str, Any]]:
    """Return the questions of an MQuAKE case, which follow from all of its edits, as records of ripples."""
    if record.get("questions") is None or record.get("new_answer") is None:
        return []
    names = [read_text(record, "new_answer"), *read_texts({"new_answer_alias": [], **record}, "new_answer_alias")]
    return [{"criterion": "multi_hop", "prompt": one, "answers": names} for one in read_texts(record, "questions")]


def ripple_of_group(group: str, prompt: str, answers: Sequence[str]) -> list[Ripple]:
    """Return the ripple of a prompt in a group of KnowEdit's `portability`; none of other groups or without answers."""
    criterion = _PORTABILITY.get(group)
    return [] if criterion is None or not answers else [Ripple(criterion, prompt, tuple(dict.fromkeys(answers)))]
