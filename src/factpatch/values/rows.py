"""The texts of the value optimization as rows: token ids, the subject's position, and what a loss reads where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import locate, target_ids
from factpatch.values.contexts import fill


@dataclass(frozen=True)
class Row:
    """One text of one fact. δ is added at `subject`; tokens before it never change, tokens from it on do."""

    fact: int
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

    A context's text is the prompt and the target without its last token. The KL's text is "{subject} is a", cut behind
    the subject's last token, where its distribution is read.

    Raises:
        ValueError: a subject disappears in tokenization, or a target reaches back to the subject.
    """
    texts: list[str] = []
    ends: list[int] = []
    targets = [target_ids(lm.tokenizer, fact.target_new) for fact in facts]
    for fact, target in zip(facts, targets, strict=True):
        continuation = lm.tokenizer.decode(target[:-1])
        if continuation and not continuation.startswith(" "):
            continuation = " " + continuation  # SentencePiece decoders drop the leading space of a text
        for context in contexts:
            texts.append(fill(context, fact.text + continuation))
            ends.append(context.index("{}") + fact.subject_end)
        texts.append(f"{fact.subject} is a")
        ends.append(len(fact.subject) - 1)
    located = iter(locate(lm.tokenizer, texts, ends))
    rows = []
    for index, target in enumerate(targets):
        for _ in contexts:
            ids, subject = next(located)
            lm.check_length(ids, facts[index].text)
            if len(ids) - len(target) < subject:
                raise ValueError(
                    f"fact {facts[index].prompt!r} with subject {facts[index].subject!r}: the target "
                    f"{facts[index].target_new!r} takes {len(target)} tokens, but fewer follow the subject; the "
                    "tokenizer merges prompt and target."
                )
            rows.append(Row(index, tuple(ids), subject, tuple(target), 1.0 / (len(contexts) * len(target))))
        ids, subject = next(located)
        rows.append(Row(index, tuple(ids[: subject + 1]), subject, (), 0.0))
    return rows


def micro_batches(rows: Sequence[Row], tokens: int, padding: float = 0.15) -> list[list[Row]]:
    """Group rows of like suffix length.

    Args:
        tokens: largest number of suffix positions in a group, padding included; eight times as many positions in all,
            which run once and without gradients.
        padding: largest share of padding among a group's suffix positions.
    """
    groups: list[list[Row]] = []
    group: list[Row] = []
    real = longest = 0
    for row in sorted(rows, key=lambda row: (row.suffix, len(row.ids), row.fact)):
        size = (len(group) + 1) * row.suffix
        whole = (len(group) + 1) * max(longest, len(row.ids))
        if group and (size > tokens or whole > 8 * tokens or real + row.suffix < (1 - padding) * size):
            groups.append(group)
            group, real, longest = [], 0, 0
        group.append(row)
        real += row.suffix
        longest = max(longest, len(row.ids))
    if group:
        groups.append(group)
    return groups
