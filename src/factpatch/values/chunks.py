"""Long answers: one δ decides a few words, so an answer is read in chunks, each with an anchor and a δ of its own.

    What is in the soup ? │ Two leeks , a │ carrot and some │ water .
              δ₀ ────────────▶  chunk 0 │     δ₁ ──▶ chunk 1  │ δ₂ ──▶ chunk 2

The anchor of the first chunk is the subject's last token, that of each other one the token before it. The δs are found
one after another, each with the earlier ones in place, for all facts of a batch at once; then all of them are written
together, a row for each anchor. Source: AnyEdit (arXiv:2502.05628); with `ahead`, where a δ answers for all later
chunks too, µKE (arXiv:2504.01196).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.strategies.target import Target
from factpatch.values.contexts import BARE
from factpatch.values.reading import SubjectRows
from factpatch.values.rows import Row, optimization_rows


@dataclass(frozen=True)
class Round:
    """The facts that have a chunk of some number, and the rows in which its δ is found."""

    facts: tuple[int, ...]
    """Their places in the batch, ascending. `Row.fact` counts these."""
    rows: tuple[Row, ...]

    def begins(self, context: int) -> list[tuple[int, ...]]:
        """The tokens of each fact in a context, up to its anchor; in the first context where the answer is shorter."""
        found = {
            (row.fact, row.context): row.ids[: row.subject + 1] for row in self.rows if row.context in (0, context)
        }
        return [found.get((fact, context), found[fact, 0]) for fact in range(len(self.facts))]


def chunk_counts(rows: Sequence[Row], size: int) -> list[int]:
    """How many chunks the answer of each fact has, given its rows; a chunk has `size` tokens in the first context.

    Args:
        size: 0 for one chunk, however long.
    """
    tokens = {row.fact: len(row.targets) for row in rows if row.context == 0}
    return [-(-tokens[fact] // size) if size else 1 for fact in sorted(tokens)]


def rounds_of(rows: Sequence[Row], size: int, ahead: bool) -> list[Round]:
    """Split the rows of a batch into rounds: in round j those of the facts that have a chunk j.

    Args:
        rows: As `factpatch.values.rows.optimization_rows` makes them.
        size: Tokens of a chunk; 0 for one round.
        ahead: Whether a δ is found for all later chunks too.
    """
    counts = chunk_counts(rows, size)
    if max(counts) == 1:
        return [Round(tuple(range(len(counts))), tuple(rows))]
    found = []
    for number in range(max(counts)):
        facts = [fact for fact, count in enumerate(counts) if count > number]
        places = {fact: place for place, fact in enumerate(facts)}
        some = [
            replace(part, fact=places[row.fact])
            for row in rows
            if row.fact in places
            for part in _chunks(row, number, size, ahead or number == counts[row.fact] - 1)
        ]
        found.append(Round(tuple(facts), tuple(some)))
    return found


def _chunks(row: Row, number: int, size: int, rest: bool) -> list[Row]:
    """The row of a chunk, of all from it on if `rest`; none where the answer has fewer in the row's context.

    The KL is read at the subject, so only the first δ has one.
    """
    if not row.targets:
        return [row] if number == 0 else []
    if number * size >= len(row.targets):
        return []
    targets = row.targets[number * size :] if rest else row.targets[number * size : (number + 1) * size]
    anchors = anchors_of(row, number + 1, size)
    end = _answer(row) + number * size + len(targets) - 1  # the last token is predicted and never read
    weight = row.weight * len(row.targets) / len(targets)
    return [replace(row, ids=row.ids[:end], subject=anchors[-1], targets=targets, weight=weight, earlier=anchors[:-1])]


def anchors_of(row: Row, count: int, size: int) -> tuple[int, ...]:
    """The places of the first anchors in a row; its last token where its answer is shorter than the first context's."""
    later = (min(_answer(row) + number * size, len(row.ids)) - 1 for number in range(1, count))
    return (row.subject, *later)


def _answer(row: Row) -> int:
    """The place of the answer's first token."""
    return len(row.ids) + 1 - len(row.targets)


@dataclass(frozen=True)
class Anchors:
    """Where the values of facts are read and written: a row for each chunk of each answer."""

    subjects: SubjectRows
    """The tokens up to each anchor, in every context; the chunks of a fact one after another."""
    counts: tuple[int, ...]
    """How many chunks the answer of each fact has."""
    between: tuple[tuple[int, ...], ...] = ()
    """Of long answers, the tokens up to each other place from the subject on, in the first context."""

    @classmethod
    def of(cls, lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str], target: Target) -> Anchors:
        """Tokenize facts; a short answer has its one anchor at the subject's last token."""
        size = target.chunk
        rows = [row for row in optimization_rows(lm, target.asked(facts), contexts) if row.targets] if size else []
        counts = chunk_counts(rows, size) if size else [1] * len(facts)
        if max(counts) == 1:
            return cls(SubjectRows.of(lm, facts, contexts), tuple(counts))
        places = {context: place for place, context in enumerate(dict.fromkeys(contexts))}
        of = {(row.fact, row.context): row for row in rows}
        cut: list[list[int]] = []
        between: list[tuple[int, ...]] = []
        for fact, count in enumerate(counts):
            within = [of[fact, places[context]] for context in contexts]
            anchors = [anchors_of(row, count, size) for row in within]
            cut += [
                list(row.ids[: ends[n] + 1]) for n in range(count) for row, ends in zip(within, anchors, strict=True)
            ]
            first = within[0]
            others = sorted(set(range(first.subject, len(first.ids))) - set(anchors[0])) if count > 1 else []
            between += [first.ids[: place + 1] for place in others]
        return cls(SubjectRows(cut, len(contexts), contexts[0] == BARE), tuple(counts), tuple(between))
