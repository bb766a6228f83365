"""Texts as a tree: what several begin with runs once, in the same pass as what follows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from factpatch.model.batching import TOKEN_BUDGET
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import PackedRow, Packing, Pool, run_packed


class Tree:
    """Texts, of at least one token each, whose common beginnings run once, all in one pass."""

    def __init__(self, texts: Iterable[tuple[int, ...]]) -> None:
        self._segments: list[tuple[int, tuple[int, ...], list[tuple[int, ...]]]] = []
        self._grow(sorted(set(texts)), 0, -1)
        # Rows of equal length are neighbors; the segment that one continues may well come after it.
        order = sorted(range(len(self._segments)), key=lambda index: len(self._segments[index][1]))
        self.ids = [token for index in order for token in self._segments[index][1]]
        """The token ids of all rows, side by side."""
        own: dict[int, range] = {}
        end = 0
        for index in order:
            own[index] = range(end, end + len(self._segments[index][1]))
            end = own[index].stop
        path: dict[int, tuple[int, ...]] = {-1: ()}
        for index, (parent, _, _) in enumerate(self._segments):  # a parent comes before its children
            path[index] = (*path[parent], *own[index])
        self.rows = [PackedRow(len(own[index]), path[self._segments[index][0]]) for index in order]
        self.places = {text: path[index] for index, (_, _, ends) in enumerate(self._segments) for text in ends}
        """Where the tokens of each text lie in the sequence."""

    def _grow(self, texts: Sequence[tuple[int, ...]], depth: int, parent: int) -> None:
        """Add segments for sorted texts that agree in their first `depth` tokens and are longer than that."""
        for _, group in groupby(texts, lambda text: text[depth]):
            alike = list(group)
            shared = common_beginning(alike)
            here = len(self._segments)
            self._segments.append((parent, shared[depth:], [text for text in alike if len(text) == len(shared)]))
            self._grow([text for text in alike if len(text) > len(shared)], len(shared), here)


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
