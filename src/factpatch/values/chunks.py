"""Long answers: one δ decides a few words, so an answer is read in chunks, each with an anchor and a δ of its own.

    What is in the soup ? │ Two leeks , a │ carrot and some │ water .
              δ₀ ────────────▶  chunk 0 │     δ₁ ──▶ chunk 1  │ δ₂ ──▶ chunk 2

The anchor of the first chunk is the subject's last token, that of each other one the token before it. A chunk ends
where the key of the next anchor is long, and so stands out from ordinary text. The δs are found one after another, each
with the earlier ones in place, for all facts of a batch at once; then all of them are written together, a row for each
anchor. Source: AnyEdit (arXiv:2502.05628), whose chunks are all of one length; with `ahead`, where a δ answers for all
later chunks too, µKE (arXiv:2504.01196).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.strategies.target import Target
from factpatch.values.contexts import BARE
from factpatch.values.reading import SubjectRows, read_last
from factpatch.values.rows import Row, optimization_rows

LOW = 10
"""The layer after the first tenth has the keys that tell where chunks begin."""


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


def starts_of(rows: Sequence[Row], size: int, lengths: Mapping[int, Sequence[float]]) -> list[tuple[int, ...]]:
    """Where the chunks of each fact's answer begin, in tokens of the answer in the first context.

    Args:
        rows: As `factpatch.values.rows.optimization_rows` makes them.
        size: Most tokens of a chunk; 0 for one chunk, however long.
        lengths: Of the keys in the rows of long answers; see `key_lengths`. The sum of 1 / ‖k‖² over anchors is least.
    """
    found = []
    for row in (row for row in rows if row.context == 0):
        tokens, starts = len(row.targets), [0]
        if 0 < size < tokens:
            keys = lengths[row.fact][_answer(row) - 1 :]
            starts = _cheapest([1 / max(key * key, sys.float_info.min) for key in keys], size)
        found.append(tuple(starts))
    return found


def _cheapest(costs: Sequence[float], size: int) -> list[int]:
    """Where parts of at most `size` begin, the first at 0, so that what the others cost is least in sum."""
    sums = [0.0]  # the least of parts that end before each place, the cost of the part that begins there included
    before: list[int] = [0]
    for place in range(1, len(costs) + 1):
        last = min(range(place - 1, max(0, place - size) - 1, -1), key=sums.__getitem__)
        sums.append(sums[last] + (costs[place] if place < len(costs) else 0.0))
        before.append(last)
    found = [before[-1]]
    while found[-1]:
        found.append(before[found[-1]])
    return found[::-1]


def key_lengths(lm: LanguageModel, rows: Sequence[Row], size: int) -> dict[int, list[float]]:
    """‖k‖ at each place of the rows of long answers, by fact.

    A long key is one that ordinary text does not have: what is written there moves little else. Short ones are those of
    punctuation and of little words, and of tokens whose activation is many times as long as others, to which all later
    ones attend. The keys are those of a low layer, where edits change none; see `check_anchors`.
    """
    found = {}
    for row in (row for row in rows if row.context == 0 and 0 < size < len(row.targets)):
        texts = [row.ids[: place + 1] for place in range(len(row.ids))]
        keys = read_last(lm, texts, _low_layer(lm), "down_projection", "inputs")
        found[row.fact] = keys.norm(dim=-1).tolist()
    return found


def _low_layer(lm: LanguageModel) -> int:
    """The layer whose keys tell where chunks begin."""
    return min(lm.num_layers // LOW + 1, lm.num_layers - 1)


def rounds_of(rows: Sequence[Row], starts: Sequence[Sequence[int]], ahead: bool) -> list[Round]:
    """Split the rows of a batch into rounds: in round j those of the facts that have a chunk j.

    Args:
        rows: As `factpatch.values.rows.optimization_rows` makes them.
        starts: Where the chunks of each fact begin.
        ahead: Whether a δ is found for all later chunks too.
    """
    if max(map(len, starts)) == 1:
        return [Round(tuple(range(len(starts))), tuple(rows))]
    found = []
    for number in range(max(map(len, starts))):
        facts = [fact for fact, some in enumerate(starts) if len(some) > number]
        places = {fact: place for place, fact in enumerate(facts)}
        some = [
            replace(part, fact=places[row.fact])
            for row in rows
            if row.fact in places
            for part in _chunks(row, number, starts[row.fact], ahead)
        ]
        found.append(Round(tuple(facts), tuple(some)))
    return found


def _chunks(row: Row, number: int, starts: Sequence[int], ahead: bool) -> list[Row]:
    """The row of a chunk, with `ahead` of all from it on; none where the answer has fewer in the row's context.

    The KL is read at the subject, so only the first δ has one.
    """
    if not row.targets:
        return [row] if number == 0 else []
    begin = starts[number]
    if begin >= len(row.targets):
        return []
    targets = row.targets[begin:] if ahead else row.targets[begin : (*starts, None)[number + 1]]
    anchors = anchors_of(row, starts[: number + 1])
    end = _answer(row) + begin + len(targets) - 1  # the last token is predicted and never read
    weight = row.weight * len(row.targets) / len(targets)
    return [replace(row, ids=row.ids[:end], subject=anchors[-1], targets=targets, weight=weight, earlier=anchors[:-1])]


def anchors_of(row: Row, starts: Sequence[int]) -> tuple[int, ...]:
    """The places of anchors in a row; its last token where its answer is shorter than the first context's."""
    return (row.subject, *(min(_answer(row) + start, len(row.ids)) - 1 for start in starts[1:]))


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
        starts = starts_of(rows, size, key_lengths(lm, rows, size)) if size else [(0,)] * len(facts)
        counts = tuple(map(len, starts))
        if max(counts) == 1:
            return cls(SubjectRows.of(lm, facts, contexts), counts)
        places = {context: place for place, context in enumerate(dict.fromkeys(contexts))}
        of = {(row.fact, row.context): row for row in rows}
        cut: list[list[int]] = []
        between: list[tuple[int, ...]] = []
        for fact, count in enumerate(counts):
            within = [of[fact, places[context]] for context in contexts]
            anchors = [anchors_of(row, starts[fact]) for row in within]
            cut += [
                list(row.ids[: ends[n] + 1]) for n in range(count) for row, ends in zip(within, anchors, strict=True)
            ]
            first = within[0]
            others = sorted(set(range(first.subject, len(first.ids))) - set(anchors[0])) if count > 1 else []
            between += [first.ids[: place + 1] for place in others]
        return cls(SubjectRows(cut, len(contexts), contexts[0] == BARE), counts, tuple(between))


def check_anchors(lm: LanguageModel, anchors: Sequence[Anchors], layers: Sequence[int]) -> None:
    """Raise ValueError for a long answer where a layer is written below the one whose keys tell where chunks begin.

    Its anchors would be other tokens after the first write than before it.
    """
    if any(count > 1 for some in anchors for count in some.counts) and min(layers) < _low_layer(lm):
        raise ValueError(
            f"target.chunk: long answers are written in layer {_low_layer(lm)} of {lm.name} or above, since its keys "
            f"tell where an answer's chunks begin, and layer {min(layers)} is among the layers to write. Give others "
            "(critical_layers=, --layers); keep first tokens, for which layer 0 is written, in another batch or do not "
            "edit them apart (target.apart=false); or give 0 for answers in one piece."
        )
