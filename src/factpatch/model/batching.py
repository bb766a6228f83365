"""Rows of tokens in batches of bounded size, and the head in chunks of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from factpatch.model.language_model import LanguageModel

T = TypeVar("T")

TOKEN_BUDGET = 4096
"""Tokens in a batch, padding included."""
HEAD_ENTRIES = 2**24
"""Entries of a table of log probabilities, (positions, vocabulary): 64 MiB in float32, a few times that in passing."""


def batches(lengths: Sequence[int], budget: int = TOKEN_BUDGET) -> list[list[int]]:
    """Group rows, longest first, so that each group padded to its longest row has at most `budget` tokens.

    A batch that does not fit into memory then fails at once. A row that is longer by itself becomes a group of its own.

    Returns:
        Groups of indices of rows.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > budget:
            groups.append([])
        groups[-1].append(row)
    return groups


def consecutive(items: Iterable[T], size: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Split items in their order, so that each piece stays within a budget; an item that is larger stands alone."""
    piece: list[T] = []
    taken = 0
    for item in items:
        more = size(item)
        if piece and taken + more > budget:
            yield piece
            piece, taken = [], 0
        piece.append(item)
        taken += more
    if piece:
        yield piece


def parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut a sequence into parts of a size; the last may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def padded(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return rows of token ids as one rectangle, (rows, tokens), and a mask with 1 at real tokens and 0 at padding."""
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return ids.to(device), mask.to(device)


def head_chunk(lm: LanguageModel) -> int:
    """Return how many positions the head is applied to at a time."""
    return max(1, HEAD_ENTRIES // lm.embedded_tokens)


def log_probability_chunks(lm: LanguageModel, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Apply the head to (positions, d_value) hidden states, a chunk of positions at a time."""
    size = head_chunk(lm)
    for first in range(0, hidden.shape[0], size):
        chunk = slice(first, min(first + size, hidden.shape[0]))
        yield chunk, lm.log_probabilities(hidden[chunk])
