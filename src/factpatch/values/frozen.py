"""Everything of a batch's rows that δ cannot change: computed once, read at every step.

δ is added after layer `start` (or inside the next block) at the subject's last token, s. With causal attention it
reaches nothing before s, and nothing at or below `start`. So of a row's tokens and layers

                     shared beginning │ own tokens before s │ from s on
    layers > start   keys and values  │ keys and values     │ run at every step
    layers ≤ start   run once         │ run once            │ run once, giving `hidden`

The rows of a context often begin alike (a template, a system prompt): `_shared_prefixes` runs that beginning once for
all of them. `_own_tokens` then runs the rest up to `start`, and from there on only the tokens before s. All keys and
values go to one pool, in which a row's prefix is a list of places, so rows of different contexts can share a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn

from factpatch.model.batching import parts
from factpatch.model.hooks import adding, captured
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces
from factpatch.model.packed import PackedRow, Packing, Pool, run_packed
from factpatch.model.tree import common_beginning
from factpatch.values.micro_batch import FrozenRow, FrozenRows
from factpatch.values.rows import Row, micro_batches


@dataclass(frozen=True)
class Frozen:
    """What δ cannot change of all rows of a batch, from which micro-batches are made."""

    rows: Sequence[Row]
    start: int
    """The last layer that will not run again; -1 if all will."""
    pool: Pool
    found: dict[int, tuple[PackedRow, Tensor]]
    """By the identity of a row: its tokens from the subject's last one on, and layer `start`'s outputs for them."""
    dtype: torch.dtype
    work_dtype: torch.dtype
    device: torch.device | None

    def micro_batch(self, rows: Sequence[Row]) -> FrozenRows:
        """A micro-batch of some of the rows."""
        found = [self.found[id(row)] for row in rows]
        hidden = torch.cat([hidden for _, hidden in found])
        frozen = [
            FrozenRow(row.fact, packed, row.targets, row.weight, row.ids[row.subject :])
            for row, (packed, _) in zip(rows, found, strict=True)
        ]
        return FrozenRows.of(
            frozen, self.start, self.pool, hidden, self.dtype, self.work_dtype, self.device or hidden.device
        )

    def turns(self, count: int) -> list[tuple[Frozen, float]]:
        """The contexts in so many parts, or one each if there are fewer, with their shares in the mean over all.

        Neighbors stay together; the rows whose KL is read belong to every part.
        """
        contexts = sorted({row.context for row in self.rows if row.targets})
        if count == 1 or len(contexts) == 1:
            return [(self, 1.0)]
        size = -(-len(contexts) // count)
        found = []
        for some in parts(contexts, size):
            rows = [row for row in self.rows if row.context in some or not row.targets]
            share = math.fsum(row.weight * len(row.targets) for row in rows if row.fact == rows[0].fact)
            found.append((replace(self, rows=rows), share))
        return found

    def micro_batches(self, tokens: int) -> list[FrozenRows]:
        """All rows, in micro-batches of at most `tokens` suffix tokens."""
        return [self.micro_batch(rows) for rows in micro_batches(self.rows, tokens)]


@dataclass(frozen=True)
class Earlier:
    """δs that are in place already, at tokens before those that run at every step."""

    sites: Sequence[nn.Module]
    """Modules whose outputs get a δ each."""
    deltas: Mapping[int, Tensor]
    """By the identity of a row: (earlier, sites, d_value), for the places in `Row.earlier`."""

    @contextmanager
    def added(self, rows: Sequence[Row], places: Sequence[Sequence[int]]) -> Iterator[None]:
        """Add the δs of some rows, given their places among the tokens that run."""
        some = [place for of_row in places for place in of_row]
        if not some:
            yield
            return
        deltas = torch.cat([self.deltas[id(row)] for row in rows if row.earlier])
        with adding(self.sites, torch.tensor(some, device=deltas.device), deltas):
            yield


NOTHING_EARLIER = Earlier((), {})


def freeze(
    lm: LanguageModel,
    rows: Sequence[Row],
    start: int,
    tokens: int,
    device: torch.device | None = None,
    earlier: Earlier = NOTHING_EARLIER,
) -> Frozen:
    """Run everything that δ cannot change, once. Call it inside `packed_attention`.

    Args:
        start: The last layer that will not run again; -1 if all will.
        tokens: Largest number of suffix tokens of rows that are run together; fewer if memory does not suffice.
        device: Where δ is; by default where the outputs of block `start` are.
        earlier: The δs of rows with `Row.earlier`.
    """
    with torch.inference_mode():
        shared, begins = _shared_prefixes(lm, rows)

        def own_tokens(batch: Sequence[Row]) -> _Own:
            return _own_tokens(lm, batch, start, shared, begins, earlier)

        found = [own for batch in micro_batches(rows, tokens) for _, own in in_pieces(own_tokens, batch)]
    ends = list(accumulate((own.pool.tokens for own in found), initial=shared.tokens))
    # Joined outside inference mode: only then may the tensors take part in a backward pass.
    pool = Pool.joined([shared.above(start), *(own.pool for own in found)])
    by_row: dict[int, tuple[PackedRow, Tensor]] = {}
    for own, offset in zip(found, ends, strict=False):
        for row, places, hidden in zip(own.rows, own.places, own.hidden, strict=True):
            prefix = (*begins[row.context], *(offset + place for place in places))
            by_row[id(row)] = PackedRow(row.suffix, prefix), hidden
    return Frozen(rows, start, pool, by_row, lm.stream_dtype, lm.work_dtype, device)


def _shared_prefixes(lm: LanguageModel, rows: Sequence[Row]) -> tuple[Pool, dict[int, tuple[int, ...]]]:
    """Run what all rows of a context begin with, before any subject's last token: a pool, and places by context."""
    contexts: dict[int, list[Row]] = {}
    for row in rows:
        contexts.setdefault(row.context, []).append(row)
    common = {
        context: common_beginning([row.ids[: row.fixed] for row in members]) for context, members in contexts.items()
    }
    places: dict[tuple[int, ...], tuple[int, ...]] = {}  # contexts that begin alike have them in common
    end = 0
    for ids in common.values():
        if ids not in places:
            places[ids] = tuple(range(end, end + len(ids)))
            end += len(ids)
    begins = {context: places[ids] for context, ids in common.items()}

    def run(texts: Sequence[tuple[int, ...]]) -> Pool:
        packing = Packing([PackedRow(len(ids)) for ids in texts], lm.stream_dtype, lm.device)
        return run_packed(lm, packing, Pool(), ids=torch.tensor(list(chain(*texts))), collect=True)[1]

    texts = [ids for ids in places if ids]
    pools = [pool for _, pool in in_pieces(run, texts)] if texts else []
    return Pool.joined(pools), begins


@dataclass(frozen=True)
class _Own:
    """The outcome of running the own tokens of some rows."""

    rows: Sequence[Row]
    pool: Pool
    """Of the tokens between the shared ones and the subject's last, for the layers above `start`."""
    places: list[range]
    """By row: the places of these tokens in the pool."""
    hidden: list[Tensor]
    """By row, (suffix, d_value): outputs of layer `start` from the subject's last token on."""


def _own_tokens(
    lm: LanguageModel,
    rows: Sequence[Row],
    start: int,
    shared: Pool,
    begins: dict[int, tuple[int, ...]],
    earlier: Earlier,
) -> _Own:
    rows = sorted(rows, key=lambda row: len(row.ids) - len(begins[row.context]))
    prefixes = [begins[row.context] for row in rows]
    packed = [PackedRow(len(row.ids) - len(prefix), prefix) for row, prefix in zip(rows, prefixes, strict=True)]
    packing = Packing(packed, lm.stream_dtype, lm.device)
    ids = torch.tensor([token for row, prefix in zip(rows, prefixes, strict=True) for token in row.ids[len(prefix) :]])
    block = lm.block(max(start, 0))
    wanted: Any = {"outputs" if start >= 0 else "inputs": {0: block}}
    with captured(**wanted, stop_after=block) as found:
        run_packed(lm, packing, shared, ids=ids)
    outputs = torch.split(found[0].reshape(packing.tokens, -1), [row.tokens for row in packed])
    before = [row.subject - len(prefix) for row, prefix in zip(rows, prefixes, strict=True)]
    hidden = [output[length:] for output, length in zip(outputs, before, strict=True)]
    # Rows that are the same up to the subject's last token have it in common.
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, row in enumerate(rows):
        # Of one fact alone: in published contexts nothing is shared then, and rounded otherwise.
        own = (row.fact, row.earlier, bool(row.targets))
        alike.setdefault((own, prefixes[index], row.ids[: row.subject]), []).append(index)
    firsts = [members[0] for members in alike.values()]
    places = [range(0)] * len(rows)
    # Neighbors of equal length run together.
    order = sorted((index for index in firsts if before[index]), key=lambda index: before[index])
    if not order:
        return _Own(rows, Pool(), places, hidden)
    end = 0
    for index in order:
        places[index] = range(end, end + before[index])
        end = places[index].stop
    for first, *others in alike.values():
        for index in others:
            places[index] = places[first]
    packing = Packing([PackedRow(before[index], prefixes[index]) for index in order], lm.stream_dtype, lm.device)
    heads = torch.cat([outputs[index][: before[index]] for index in order])
    ordered = [rows[index] for index in order]
    at = [[places[index][place - len(prefixes[index])] for place in rows[index].earlier] for index in order]
    with earlier.added(ordered, at):
        _, pool = run_packed(lm, packing, shared.above(start), hidden=heads, start=start, collect=True)
    return _Own(rows, pool, places, hidden)
