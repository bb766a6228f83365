"""What is traced: prompts with their subject and the answer that a model should know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factpatch.data.formats import fact_from
from factpatch.data.known import KnownFact, is_known, known_fact_from
from factpatch.data.records import convert_records
from factpatch.data.sources import resolve_data
from factpatch.evaluation.generation import greedy_answers
from factpatch.facts import Fact
from factpatch.model.decoding import continuations
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import locate_spans, target_ids


@dataclass(frozen=True)
class Prompt:
    """A question about a subject, asked as a text to be continued.

    Attributes:
        text: The complete prompt, ending right before the answer.
        subject: What it is about; the prompt contains it.
        answer: What the model should know. None for whatever it says.
        start: The index in `text` of the subject's first character; by default where the subject occurs first.
        id: A name for it.

    Raises:
        ValueError: The subject is blank, or not in the prompt at this place.
    """

    text: str
    subject: str
    answer: str | None = None
    start: int = -1
    id: str | None = None

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

    @property
    def characters(self) -> range:
        """The indices in `text` of the subject's characters."""
        return range(self.start, self.start + len(self.subject))

    @classmethod
    def of(cls, fact: Fact | KnownFact) -> Prompt:
        """The prompt of a fact. A fact to be edited is asked for its true object, or for what the model says."""
        if isinstance(fact, KnownFact):
            return cls(fact.prompt, fact.subject, fact.attribute, fact.template.index("{}"))
        return cls(fact.text, fact.subject, fact.target_true, fact.prompt.index("{}"), fact.id)


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
    return convert_records(resolve_data(path), _prompt_from, limit, skip_unusable)


def _prompt_from(record: Mapping[str, Any], index: int) -> Prompt:
    return Prompt.of(known_fact_from(record, index) if is_known(record) else fact_from(record, index))


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as a model reads it.

    Attributes:
        prompt: The prompt.
        ids: Its token ids, special tokens and a chat's turn included.
        subject: The indices of the subject's tokens: from the first that stands for its first character to the last
            that stands for its last.
        answer: Token ids of the answer; none where it is whatever the model says.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    subject: range
    answer: tuple[int, ...]

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
        moved, characters = frame.offset(prompt.text), prompt.characters
        texts.append(frame.wrap(prompt.text))
        spans.append(range(characters.start + moved, characters.stop + moved))
    found = []
    for prompt, (ids, subject) in zip(prompts, locate_spans(lm.tokenizer, texts, spans, frame), strict=True):
        lm.check_length(ids, prompt.text)
        answer = () if prompt.answer is None else target_ids(lm.tokenizer, prompt.answer, frame)
        found.append(TokenizedPrompt(prompt, tuple(ids), subject, tuple(answer)))
    return found


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
