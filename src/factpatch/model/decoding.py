"""Continue texts token by token: common beginnings run once, and rows that are done leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count, islice

import torch
from torch import Tensor

from factpatch.model.batching import log_probability_chunks
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces
from factpatch.model.packed import PackedRow, Packing, Pool, packed_attention, run_packed
from factpatch.model.tree import Tree, tree_batches

Pick = Callable[[Tensor, Sequence[int], int], Tensor]
"""Chooses the next tokens, (rows,), from log probabilities, (rows, vocabulary), for these indices of rows at a step."""


def most_probable(scores: Tensor, rows: Sequence[int], step: int) -> Tensor:
    """Greedy decoding."""
    return scores.argmax(dim=-1)


class TopK:
    """Sampling from the k most probable tokens of a row, exactly, with noise of its own for every row, (steps, k).

    Gumbel-max: the token with the largest log probability + Gumbel noise is a sample of the distribution.
    """

    def __init__(self, noise: Sequence[Tensor]) -> None:
        self.noise = noise

    def __call__(self, scores: Tensor, rows: Sequence[int], step: int) -> Tensor:
        noise = torch.stack([self.noise[row][step] for row in rows]).to(scores)
        best, tokens = scores.topk(min(noise.shape[-1], scores.shape[-1]))
        chosen = (best + noise[:, : best.shape[-1]]).argmax(dim=-1, keepdim=True)
        return tokens.gather(-1, chosen)[:, 0]


def end_tokens(lm: LanguageModel) -> frozenset[int]:
    """Return the tokens that end a text, by the model's generation settings and its tokenizer."""
    own = getattr(lm.model.generation_config, "eos_token_id", None)
    ends = {*(own if isinstance(own, list) else [own]), lm.tokenizer.eos_token_id}
    return frozenset(int(end) for end in ends if end is not None)


def continuations(
    lm: LanguageModel,
    rows: Sequence[tuple[int, ...]],
    rooms: Sequence[int],
    *,
    pick: Pick = most_probable,
    done: Callable[[list[int]], bool] = lambda new: False,
    ends: Collection[int] = (),
    progress: Callable[[int], None] = lambda rows: None,
) -> list[list[int]]:
    """Continue each row of token ids until it is done, an end token comes, or there is no more room.

    The model's own generation settings (sampling, penalties) play no part. Rows do not see each other, so that a row's
    continuation is the same in any company, except for rounding.

    Args:
        lm: The model; it is left as it was.
        rows: At least one token each. Equal rows are continued one by one.
        rooms: How many new tokens each row gets at most, from 1 up; fewer where the model's positions end.
        pick: How the next token is chosen.
        done: Called with the new tokens of a row after each one; True ends the row.
        ends: Tokens that end a row and are not part of it.
        progress: Called after each batch of rows with their number.
    """

    def continued(live: Sequence[int]) -> dict[int, list[int]]:
        new: dict[int, list[int]] = {row: [] for row in live}
        reader = _Reader(lm, {row: rows[row] for row in live})
        for step in count():
            picked = reader.pick(live, pick, step)
            unfinished = []
            for row, token in zip(live, picked, strict=True):
                if token in ends:
                    continue
                new[row].append(token)
                full = step + 1 == rooms[row] or not lm.has_room(len(rows[row]) + len(new[row]))
                if not full and not done(new[row]):
                    unfinished.append(row)
            live = unfinished
            if not live:
                break
            reader.read({row: new[row][-1] for row in live})
        return new

    found: dict[int, list[int]] = {}
    order = iter(sorted(range(len(rows)), key=lambda row: rows[row]))
    with torch.inference_mode(), lm.quiet(), packed_attention(lm):
        for batch in tree_batches(rows, room=max(rooms, default=0)):
            for _, new in in_pieces(continued, list(islice(order, len(batch)))):  # `tree_batches` sorts alike
                found |= new
                progress(len(new))
    return [found[row] for row in range(len(rows))]


class _Reader:
    """What the model has read of some rows: keys and values of their tokens, and the last hidden state of each."""

    def __init__(self, lm: LanguageModel, rows: Mapping[int, tuple[int, ...]]) -> None:
        self.lm = lm
        tree = Tree(rows.values())
        packing = Packing(tree.rows, lm.dtype, lm.device)
        hidden, self.pool = run_packed(lm, packing, Pool(), ids=torch.tensor(tree.ids), collect=True)
        self.places = {row: list(tree.places[ids]) for row, ids in rows.items()}
        """Where the tokens of each row lie in the pool."""
        self.hidden = hidden[torch.tensor([places[-1] for places in self.places.values()], device=hidden.device)]

    def pick(self, live: Sequence[int], pick: Pick, step: int) -> list[int]:
        """Return the next token of each of the rows that were read last."""
        picked: list[int] = []
        for chunk, scores in log_probability_chunks(self.lm, self.hidden):
            picked += pick(scores, live[chunk], step).tolist()
        return picked

    def read(self, tokens: Mapping[int, int]) -> None:
        """Read one more token of some rows."""
        packing = Packing([PackedRow(1, tuple(self.places[row])) for row in tokens], self.lm.dtype, self.lm.device)
        ids = torch.tensor(list(tokens.values()))
        self.hidden, fresh = run_packed(self.lm, packing, self.pool, ids=ids, collect=True)
        for place, row in enumerate(tokens, start=self.pool.tokens):
            self.places[row].append(place)
        self.pool = Pool.joined([self.pool, fresh])
