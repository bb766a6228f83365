"""Facts that a model can be edited on and asked about; one that is too long should not cost what is found of others."""

from __future__ import annotations

from collections.abc import Sequence

from factpatch.evaluation.verify import check_probes
from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.values.rows import optimization_rows


def usable(lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str]) -> tuple[list[Fact], list[str]]:
    """The facts that one batch can hold and the model can be edited on and asked, and why each other is left out.

    Raises:
        ValueError: There are facts, and none is left.
    """
    kept: list[Fact] = []
    asked: set[tuple[str, str]] = set()
    reasons = []
    for fact in facts:
        try:
            if fact.key in asked:
                raise ValueError("an earlier fact asks the same")
            optimization_rows(lm, [fact], contexts)
            check_probes(lm, fact)
        except ValueError as error:
            name = "" if fact.id is None else f"{fact.id}: "
            reasons.append(f"left out: {name}{fact.text!r}: {error}")
        else:
            kept.append(fact)
            asked.add(fact.key)
    if facts and not kept:
        raise ValueError(f"none of the {len(facts)} facts can be edited; the first is {reasons[0]}")
    return kept, reasons
