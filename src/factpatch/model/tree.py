"""Texts as a tree: what several begin with runs once, in the same pass as what follows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, count, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from factpatch.model.batching import TOKEN_BUDGET
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import PackedRow, Packing, Pool, run_packed


class _Segment(NamedTuple):
    """Tokens that some texts share after those of the parent segment, and that no other text has there."""

    parent: int
    ids: tuple[int, ...]
    ends: list[tuple[int, ...]]
    """The texts that end with it."""


class Tree:
    """Texts, of at least one token each, whose common beginnings run once, all in one pass."""

    def __init__(self, texts: Iterable[tuple[int, ...]]) -> None:
        segments = list(_grown(sorted(set(texts)), 0, -1, count()))
        # Rows of equal length are neighbors; the segment that one continues may well come after it.
        order = sorted(range(len(segments)), key=lambda index: len(segments[index].ids))
        begins = dict(zip(order, accumulate((len(segments[index].ids) for index in order), initial=0), strict=False))
        path: dict[int, tuple[int, ...]] = {-1: ()}
        for index, segment in enumerate(segments):  # a parent comes before its children
            path[index] = (*path[segment.parent], *range(begins[index], begins[index] + len(segment.ids)))
        self.ids = [token for index in order for token in segments[index].ids]
        """The token ids of all rows, side by side."""
        self.rows = [PackedRow(len(segments[index].ids), path[segments[index].parent]) for index in order]
        self.places = {text: path[index] for index, segment in enumerate(segments) for text in segment.ends}
        """Where the tokens of each text lie in the sequence."""


def _grown(texts: Sequence[tuple[int, ...]], depth: int, parent: int, numbers: Iterator[int]) -> Iterator[_Segment]:
    """The segments of sorted texts that agree in their first `depth` tokens and are longer than that."""
    for _, group in groupby(texts, lambda text: text[depth]):
        alike = list(group)
        shared = common_beginning(alike)
        yield _Segment(parent, shared[depth:], [text for text in alike if len(text) == len(shared)])
        longer = [text for text in alike if len(text) > len(shared)]
        yield from _grown(longer, len(shared), next(numbers), numbers)


def tree_batches(
    texts: Iterable[tuple[int, ...]], budget: int | None = None, room: int = 0
) -> Iterator[list[tuple[int, ...]]]:
    """Sort texts and split them so that the tree of each batch has at most `budget` tokens; a text stays whole.

    `room` is the number of tokens that are to follow each text, which count too.
    """
    budget = TOKEN_BUDGET if budget is None else budget
    batch: list[tuple[int, ...]] = []
    size = 0
    for text in sorted(texts):
        more = len(text) - (len(common_beginning([batch[-1], text])) if batch else 0) + room
        if batch and size + more > budget:
            yield batch
            batch, size, more = [], 0, len(text) + room
        batch.append(text)
        size += more
    if batch:
        yield batch


def common_beginning(texts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the longest tuple that all begin with."""
    low, high = min(texts), max(texts)
    differing = (index for index, (one, other) in enumerate(zip(low, high, strict=False)) if one != other)
    return low[: next(differing, min(len(low), len(high)))]


def run_tree(lm: LanguageModel, tree: Tree) -> Tensor:
    """Return the last hidden states of a tree's tokens, (tokens, d_value). Call it inside `packed_attention`."""
    return run_packed(lm, Packing(tree.rows, lm.stream_dtype, lm.device), Pool(), ids=torch.tensor(tree.ids))[0]
