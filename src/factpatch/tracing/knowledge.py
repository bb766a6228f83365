"""Which facts a model knows: only of those does tracing say where they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factpatch.evaluation.generation import greedy_answers
from factpatch.model.decoding import continuations
from factpatch.model.language_model import LanguageModel
from factpatch.tracing.prompts import TokenizedPrompt

SHOWN = 3
"""How many of the facts that a model does not know are named."""


@dataclass(frozen=True)
class KnownPrompt:
    """A prompt that a model answers as it should.

    Attributes:
        row: The prompt.
        index: Its place among all that were asked.
        answer: The answer's first token, whose probability is traced: the most probable one behind the prompt.
    """

    row: TokenizedPrompt
    index: int
    answer: int


def known_prompts(lm: LanguageModel, rows: Sequence[TokenizedPrompt]) -> list[KnownPrompt]:
    """Return the prompts whose answer the model gives by itself: greedily, every token of it.

    Where a prompt has no answer, what the model says counts as known. ROME's code (arXiv:2202.05262) compares the most
    probable token with the whole answer, so that it keeps answers of one token only.

    Args:
        lm: The model; it is left as it was.
        rows: Prompts.

    Raises:
        ValueError: It knows none; the message says what it says instead.
    """
    said = continuations(lm, [row.ids for row in rows], [max(1, len(row.answer)) for row in rows])
    known = [
        KnownPrompt(row, index, new[0])
        for index, (row, new) in enumerate(zip(rows, said, strict=True))
        if tuple(new[: len(row.answer)]) == row.answer
    ]
    if not known:
        raise ValueError(_nothing_known(lm, rows))
    return known


def _nothing_known(lm: LanguageModel, rows: Sequence[TokenizedPrompt]) -> str:
    shown = [row.prompt for row in rows[:SHOWN]]
    answers = greedy_answers(lm, [prompt.text for prompt in shown])
    wrong = "; ".join(
        f"{prompt.text!r} is answered {answer!r}, not {prompt.answer!r}"
        for prompt, answer in zip(shown, answers, strict=True)
    )
    return (
        f"{lm.name} knows none of the {len(rows)} facts, so that there is nothing to trace: {wrong}. Give more "
        "facts, or such as it knows, in words that it would go on with; facts without target_true are traced with "
        "whatever it says."
    )
