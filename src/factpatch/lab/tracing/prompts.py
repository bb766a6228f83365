"""What is traced: prompts with their subject and the answer that a model should know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factpatch.data.formats import fact_from, parts_of
from factpatch.data.known import KnownFact, is_known, known_fact_from
from factpatch.data.records import convert_records
from factpatch.data.sources import resolve_data
from factpatch.evaluation.generation import greedy_answers
from factpatch.facts import Fact
from factpatch.model.decoding import continuations
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import locate_spans, target_ids

SHOWN = 3
"""How many of the facts that a model does not know are quoted."""


@dataclass(frozen=True)
class Prompt:
    """A question about a subject, asked as a text to be continued.

    Raises:
        ValueError: The subject is blank, or not in the prompt at this place.
    """

    text: str
    """The complete prompt, ending right before the answer."""
    subject: str
    """What it is about; the prompt contains it."""
    answer: str | None = None
    """What the model should know. None for whatever it says."""
    start: int = -1
    """The index in `text` of the subject's first character; by default where the subject occurs first."""
    id: str | None = None
    space: bool | None = None
    """Whether a space stands before the answer; see `factpatch.Fact`."""

    def __post_init__(self) -> None:
        if not self.subject.strip():
            raise ValueError(f"subject={self.subject!r} is blank; name what {self.text!r} is about.")
        start = self.text.find(self.subject) if self.start < 0 else self.start
        if start < 0 or not self.text.startswith(self.subject, start):
            raise ValueError(
                f"subject={self.subject!r} is not in the prompt {self.text!r}"
                f"{'' if self.start < 0 else f' at character {start}'}; write it as the prompt does."
            )
        object.__setattr__(self, "start", start)

    @classmethod
    def of(cls, fact: Fact | KnownFact) -> Prompt:
        """The prompt of a fact. A fact to be edited is asked for its true object, or for what the model says."""
        if isinstance(fact, KnownFact):
            return cls(fact.prompt, fact.subject, fact.attribute, fact.template.index("{}"))
        return cls(fact.text, fact.subject, fact.target_true, fact.subject_start, fact.id, fact.space)


def load_prompts(
    path: str | Path = "known_1000", limit: int | None = None, skip_unusable: bool = False
) -> list[Prompt]:
    """Return the prompts of a file, in its order.

    Args:
        path: The file, or the name under which one was fetched. Its records are in the format of known_1000.json, whose
            attribute is the answer, or in any that `load_facts` reads: there `target_true` is the answer.
        limit: How many to read, from the start. None reads all.
        skip_unusable: Pass over records that are no facts, and log how many these were.

    Raises:
        DataFileError: The file cannot be read, or a record is not acceptable.
        TypeError: `limit` is not an integer.
        ValueError: `limit` is not positive.
    """
    return convert_records(resolve_data(path), _prompt_from, limit, skip_unusable, parts_of)


def _prompt_from(record: Mapping[str, Any], index: int) -> Prompt:
    return Prompt.of(known_fact_from(record, index) if is_known(record) else fact_from(record, index))


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as a model reads it."""

    prompt: Prompt
    index: int
    """Its place among all that are asked."""
    ids: tuple[int, ...]
    """Its tokens, special ones and a chat's turn included."""
    subject: range
    """The indices of the subject's tokens: from that of its first character to that of its last."""
    answer: tuple[int, ...]
    """The tokens of the answer; none where it is whatever the model says."""

    @property
    def reached(self) -> range:
        """The tokens that corrupting the subject changes: no token before it sees it."""
        return range(self.subject.start, len(self.ids))


def tokenize_prompts(lm: LanguageModel, prompts: Sequence[Prompt]) -> list[TokenizedPrompt]:
    """Tokenize prompts as `lm` asks them, and find the tokens of their subjects.

    Raises:
        ValueError: There are none, one is too long, or a subject or an answer disappears in tokenization.
    """
    if not prompts:
        raise ValueError("prompts=[]: give at least one prompt.")
    frame = lm.frame
    texts, spans = [], []
    for prompt in prompts:
        moved = frame.offset(prompt.text) + prompt.start
        texts.append(frame.wrap(prompt.text))
        spans.append(range(moved, moved + len(prompt.subject)))
    found = []
    for index, (ids, subject) in enumerate(locate_spans(lm.tokenizer, texts, spans, frame)):
        prompt = prompts[index]
        lm.check_length(ids, prompt.text)
        answer = (
            ()
            if prompt.answer is None
            else target_ids(lm.tokenizer, prompt.answer, frame, frame.joint(prompt.text, prompt.space))
        )
        found.append(TokenizedPrompt(prompt, index, tuple(ids), subject, tuple(answer)))
    return found


def known_prompts(lm: LanguageModel, prompts: Sequence[TokenizedPrompt]) -> list[TokenizedPrompt]:
    """Return the prompts whose answer the model gives by itself: greedily, every token of it.

    Where a prompt has no answer, whatever the model says counts as known. ROME's code (arXiv:2202.05262) compares the
    most probable token with the whole answer, so it keeps answers of one token only.

    Returns:
        With the answer's first token alone as the answer, whose probability is traced.

    Raises:
        ValueError: The model knows none; the message quotes some of its answers.
    """
    said = continuations(lm, [one.ids for one in prompts], [max(1, len(one.answer)) for one in prompts])
    known = [
        replace(one, answer=(new[0],))
        for one, new in zip(prompts, said, strict=True)
        if tuple(new[: len(one.answer)]) == one.answer
    ]
    if not known:
        shown = [one.prompt for one in prompts[:SHOWN]]
        answers = greedy_answers(lm, [prompt.text for prompt in shown])
        wrong = "; ".join(
            f"{prompt.text!r} is answered {answer!r}, not {prompt.answer!r}"
            for prompt, answer in zip(shown, answers, strict=True)
        )
        raise ValueError(
            f"{lm.name} knows none of the {len(prompts)} facts, so there is nothing to trace: {wrong}. Give more "
            "facts, or ones that it knows, in words that it would continue; facts without target_true are traced with "
            "whatever it says."
        )
    return known
