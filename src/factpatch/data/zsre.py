"""zsRE records in the format of MEND (arXiv:2110.11309), as ROME and its successors read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factpatch.data.records import prompt_around, read_text, read_texts
from factpatch.facts import Fact, Neighbor

_ZSRE_FIELDS = frozenset({"src", "loc", "loc_ans"})


def is_zsre(record: Mapping[str, Any]) -> bool:
    """Say whether a record is in the MEND format of zsRE."""
    return not _ZSRE_FIELDS.isdisjoint(record)


def fact_from_zsre(record: Mapping[str, Any], index: int) -> Fact:
    """Return the fact of a zsRE record; its id is `index`, its place in the file.

    The new target is the first of `answers`. There is no true target: `alt` and `pred` are not read. The one neighbor
    is the unrelated question `loc`, which the files write without a question mark, so it gets one. Like the published
    loader of ROME, this one leaves the marker "nq question: " in front of it: published figures are measured so.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is missing or blank, `answers` is empty, or `src` does not contain the subject.
    """
    prompt, subject = prompt_around(record, "src", "subject")
    answers = read_texts(record, "answers")
    if not answers:
        raise ValueError("field 'answers' is []; its first item is the new target, so it needs at least one.")
    locality = read_text(record, "loc") + "?"
    return Fact(
        prompt=prompt,
        subject=subject,
        target_new=answers[0],
        id=str(index),
        paraphrases=(read_text(record, "rephrase"),),
        neighbors=(Neighbor(locality, read_text(record, "loc_ans")),),
    )
