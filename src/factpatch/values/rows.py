"""The texts of the value optimization as rows: token ids, the subject's position, and where a loss is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from factpatch.facts import Fact
from factpatch.model.batching import consecutive
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import locate, target_ids
from factpatch.model.tree import Tree
from factpatch.support.words import quoted
from factpatch.values.contexts import answer_begins, in_chat, place


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
    earlier: tuple[int, ...] = ()
    """Indices of tokens before, where a δ is in place already; see `factpatch.values.chunks`."""

    @property
    def fixed(self) -> int:
        """Number of tokens before any δ."""
        return min((*self.earlier, self.subject))

    @property
    def suffix(self) -> int:
        """Number of tokens from the subject's last token on."""
        return len(self.ids) - self.subject


def optimization_rows(lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[Row]:
    """Build the rows of a batch: for every fact one per context, and one for the KL.

    All contexts have an equal share in the loss; one that is given twice has two.

    A context's text is the prompt, what the context says after it, and the target without its last token, as text where
    the tokenizer reads that text as these tokens, else as the tokens themselves. The KL's text is "{subject} is a", cut
    after the subject's last token, where its distribution is read. In a chat, both are the user's turn, prefix
    included, and the target begins the answer.

    Raises:
        ValueError: A subject disappears in tokenization, or a target reaches back to the subject.
    """
    shares = {context: count / len(contexts) for context, count in Counter(contexts).items()}
    asked = [[_asked(lm, fact, context) for context in shares] for fact in facts]
    texts: list[str] = []
    ends: list[int] = []
    for fact, of_fact in zip(facts, asked, strict=True):
        essence = f"{fact.subject} is a"
        texts += [*(one.text for one in of_fact), lm.frame.wrap(essence)]
        ends += [*(one.end for one in of_fact), lm.frame.offset(essence) + len(fact.subject) - 1]
    located = iter(locate(lm.tokenizer, texts, ends, lm.frame, [in_chat(lm, text) for text in texts]))
    rows = []
    for index, (fact, of_fact) in enumerate(zip(facts, asked, strict=True)):
        for number, (one, share) in enumerate(zip(of_fact, shares.values(), strict=True)):
            ids, subject = next(located)
            ids = _read(lm, fact, one, ids, subject)
            rows.append(Row(index, number, tuple(ids), subject, tuple(one.target), share / len(one.target)))
        ids, subject = next(located)
        rows.append(Row(index, -1, tuple(ids[: subject + 1]), subject, (), 0.0))
    return rows


@dataclass(frozen=True)
class _Asked:
    """A fact in a context, before it is tokenized."""

    text: str
    """Up to the target, or with some or all of it; see `target_in`."""
    end: int
    """The index in `text` of the subject's last character."""
    target: list[int]
    target_in: str
    """Whether the text holds the target: "whole", "cut" (without its last token) or "not"."""


def _asked(lm: LanguageModel, fact: Fact, context: str) -> _Asked:
    """Put a fact into a context.

    The target follows as text, without its last token: the published way. That would change a target of which a token
    ends inside a character, or that follows without a space and could merge with the prompt: then its tokens follow. In
    a chat, and where the context goes on after the prompt, nothing is published: the whole target follows as text, and
    its last token is cut off later.
    """
    placed = place(context, fact)
    text, end = lm.frame.wrap(placed.text), lm.frame.offset(placed.text) + placed.end
    if lm.frame.chat or placed.after:
        text, between, frame = answer_begins(lm, text, placed.after)
        return _Asked(
            text + between + fact.target_new, end, target_ids(lm.tokenizer, fact.target_new, frame, between), "whole"
        )
    between = lm.frame.joint(fact.text, fact.space)
    target = target_ids(lm.tokenizer, fact.target_new, lm.frame, between)
    continuation: str = lm.tokenizer.decode(target[:-1])
    if continuation and not continuation.startswith(" "):
        continuation = " " + continuation  # SentencePiece decoders drop the leading space of a text
    read = target_ids(lm.tokenizer, continuation) if continuation.strip() else []
    cut = bool(between) and read == target[:-1]
    return _Asked(text + continuation if cut else text, end, target, "cut" if cut else "not")


def _read(lm: LanguageModel, fact: Fact, asked: _Asked, ids: list[int], subject: int) -> list[int]:
    """The tokens that the model reads: all but the target's last one."""
    merged = asked.target_in == "whole" and ids[-len(asked.target) :] != asked.target
    if asked.target_in == "whole":
        ids = ids[:-1]
    elif asked.target_in == "not":
        ids = ids + asked.target[:-1]
    if not lm.has_room(len(ids)) and lm.has_room(len(ids) - len(asked.target)):
        raise ValueError(
            f"target_new={quoted(fact.target_new)} of {quoted(fact.text)}: takes {len(asked.target)} tokens, and "
            f"{len(ids) + 1} with its prompt; {lm.name} reads {lm.longest}. Shorten it, or make several facts of it."
        )
    lm.check_length(ids, fact.text)
    if merged or len(ids) - len(asked.target) < subject:
        raise ValueError(
            f"fact {fact.prompt!r} with subject {fact.subject!r}: the target {fact.target_new!r} takes "
            f"{len(asked.target)} tokens, but fewer follow the subject; the tokenizer merges prompt and target."
        )
    return ids


def micro_batches(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    """Split rows into batches of at most `tokens` suffix tokens, each sorted by suffix length.

    Rows of a fact that agree up to the subject's last token run what they have in common once, and stay together; the
    others are split in the order of their length. What is run once counts once.
    """
    alike: dict[tuple[int, bool, tuple[int, ...]], list[Row]] = {}
    for row in rows:
        alike.setdefault((row.fact, bool(row.targets), row.ids[: row.subject + 1]), []).append(row)
    families = sorted(alike.values(), key=lambda family: (max(row.suffix for row in family), family[0].fact))
    batches = consecutive(families, _running, tokens)
    return [sorted(chain(*batch), key=lambda row: (row.suffix, row.fact)) for batch in batches]


def _running(family: Sequence[Row]) -> int:
    """How many tokens of rows that agree up to the subject's last token run, those in common once."""
    return len(Tree(row.ids[row.subject :] for row in family).ids)
