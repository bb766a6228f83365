"""The texts of the value optimization as rows: token ids, the subject's position, and where a loss is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factpatch.facts import Fact
from factpatch.model.batching import consecutive
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import locate, target_ids
from factpatch.values.contexts import fill


@dataclass(frozen=True)
class Row:
    """One text of one fact. δ is added at `subject`; tokens before it never change, tokens from it on do."""

    fact: int
    context: int
    """Which context it is in; -1 for the row whose KL is read."""
    ids: tuple[int, ...]
    subject: int
    """Index of the subject's last token."""
    targets: tuple[int, ...]
    """Token ids whose NLL is read at the last positions; none in the row whose KL is read at the subject."""
    weight: float
    """Share of one read position in the fact's mean NLL."""

    @property
    def suffix(self) -> int:
        """Number of tokens from the subject's last token on."""
        return len(self.ids) - self.subject


def optimization_rows(lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[Row]:
    """Build the rows of a batch: for every fact one per context, and one for the KL.

    A context's text is the prompt and the target without its last token, as text where the tokenizer reads that text
    as these tokens, else as the tokens themselves. The KL's text is "{subject} is a", cut after the subject's last
    token, where its distribution is read. In a chat, both are the user's turn, prefix included, and the target begins
    the answer.

    Raises:
        ValueError: A subject disappears in tokenization, or a target reaches back to the subject.
    """
    frame = lm.frame
    texts: list[str] = []
    ends: list[int] = []

    def add(asked: str, end: int, continuation: str = "") -> None:
        texts.append(frame.wrap(asked) + continuation)
        ends.append(frame.offset(asked) + end)

    targets = [target_ids(lm.tokenizer, fact.target_new, frame, _joint(lm, fact)) for fact in facts]
    continuations = [_continuation(lm, fact, target) for fact, target in zip(facts, targets, strict=True)]
    for fact, continuation in zip(facts, continuations, strict=True):
        for context in contexts:
            add(fill(context, fact.text), context.index("{}") + fact.subject_end, continuation or "")
        add(f"{fact.subject} is a", len(fact.subject) - 1)
    located = iter(locate(lm.tokenizer, texts, ends, frame))
    rows = []
    for index, target in enumerate(targets):
        for number in range(len(contexts)):
            ids, subject = next(located)
            merged = frame.chat and ids[-len(target) :] != target
            if frame.chat:
                ids = ids[:-1]
            elif continuations[index] is None:
                ids = ids + target[:-1]
            lm.check_length(ids, facts[index].text)
            if merged or len(ids) - len(target) < subject:
                raise ValueError(
                    f"fact {facts[index].prompt!r} with subject {facts[index].subject!r}: the target "
                    f"{facts[index].target_new!r} takes {len(target)} tokens, but fewer follow the subject; the "
                    "tokenizer merges prompt and target."
                )
            weight = 1.0 / (len(contexts) * len(target))
            rows.append(Row(index, number, tuple(ids), subject, tuple(target), weight))
        ids, subject = next(located)
        rows.append(Row(index, -1, tuple(ids[: subject + 1]), subject, (), 0.0))
    return rows


def _joint(lm: LanguageModel, fact: Fact) -> str:
    return lm.frame.joint(fact.text, fact.space)


def _continuation(lm: LanguageModel, fact: Fact, target: Sequence[int]) -> str | None:
    """What follows the prompt: the target without its last token, as text; None where its tokens are to be used.

    Text is the published way. It would change a target of which a token ends inside a character, or that follows
    without a space and could merge with the prompt. In a chat, where nothing is published, the whole target follows,
    and its last token is cut off later.
    """
    joint = _joint(lm, fact)
    if lm.frame.chat:
        return joint + fact.target_new
    continuation: str = lm.tokenizer.decode(target[:-1])
    if continuation and not continuation.startswith(" "):
        continuation = " " + continuation  # SentencePiece decoders drop the leading space of a text
    read = target_ids(lm.tokenizer, continuation) if continuation.strip() else []
    return continuation if joint and read == target[:-1] else None


def micro_batches(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    """Split rows, sorted by suffix length, into batches of at most `tokens` suffix tokens; a row stays whole."""
    ordered = sorted(rows, key=lambda row: (row.suffix, row.fact))
    return list(consecutive(ordered, lambda row: row.suffix, tokens))
