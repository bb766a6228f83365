"""A micro-batch of rows with everything that δ cannot change: computed once, read at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from factpatch.model.hooks import adding, captured
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import PackedRow, Packing, Pool, common_beginning, run_packed
from factpatch.values.rows import Row, micro_batches

# How many times as many tokens fit into a pass that keeps nothing for a backward one.
_WITHOUT_GRADIENT = 8


@dataclass(frozen=True)
class Losses:
    """What one micro-batch adds to every fact's loss; each (facts,)."""

    nll: Tensor
    """Its share of the mean NLL, in nats."""
    kl: Tensor
    """Its share of the KL, without its factor, in nats."""
    missed: Tensor
    """How many of its target tokens are not the most probable one."""


@dataclass
class FrozenRows:
    """The tokens of rows from the subject's last one on, ready to be run from one layer on."""

    start: int
    """The last layer that does not run again; -1 if all do."""
    fact: Tensor
    """(rows,): the fact of each row."""
    packing: Packing
    """How the rows lie side by side; each begins with its subject's last token."""
    pool: Pool
    """Keys and values of what comes before, for the layers behind `start`; shared with other micro-batches."""
    hidden: Tensor
    """(tokens, d_value): outputs of block `start`, or inputs of the first block."""
    read_row: Tensor
    """(reads,): the row of each position whose distribution a loss reads."""
    read_place: Tensor
    """(reads,): that position among the tokens."""
    read_target: Tensor
    """(reads,): the token whose NLL is read there, or -1 where the KL is read."""
    read_weight: Tensor
    """(reads,): its share in the fact's mean NLL; 0 for the KL."""
    reference: Tensor | None = None
    """(KL reads, vocabulary): log-probabilities before the first step."""

    def run(self, lm: LanguageModel, sites: Sequence[nn.Module], delta: Tensor) -> Tensor:
        """Add δ at the subject's last token and run what it reaches, the head only where a loss reads it.

        Args:
            sites: modules whose outputs get a δ each: block `start`, or parts of the block behind it.
            delta: (facts, sites, d_value), in the work dtype.

        Returns:
            (reads, vocabulary) log-probabilities, in the work dtype.
        """
        with adding(sites, self.packing.first, delta[self.fact]):
            last, _ = run_packed(lm, self.packing, self.pool, hidden=self.hidden, start=self.start)
        # A model spread over devices ends on another one than it was edited on.
        return lm.log_probabilities(last[self.read_place.to(last.device)]).to(delta.device)

    def losses(self, lm: LanguageModel, sites: Sequence[nn.Module], delta: Tensor) -> Losses:
        """Run the rows with δ and read their losses; the arguments are those of `run`."""
        log_probabilities = self.run(lm, sites, delta)
        fact = self.fact[self.read_row]
        is_kl = self.read_target < 0
        nll, kl, missed = (delta.new_zeros(len(delta)) for _ in range(3))
        read, target = log_probabilities[~is_kl], self.read_target[~is_kl]
        chosen = read.gather(1, target[:, None])[:, 0]
        present = log_probabilities[is_kl]
        if self.reference is None:
            self.reference = present.detach().clone()
        divergence = (present.exp() * (present - self.reference)).sum(dim=-1)
        return Losses(
            nll.index_add(0, fact[~is_kl], -chosen * self.read_weight[~is_kl]),
            kl.index_add(0, fact[is_kl], divergence),
            missed.index_add(0, fact[~is_kl], (read.argmax(dim=-1) != target).to(missed)),
        )

    def keep(self, renumbered: Tensor) -> FrozenRows | None:
        """Drop the rows of facts that are finished.

        Args:
            renumbered: (facts,): the new number of each fact, -1 for a finished one.
        """
        fact = renumbered[self.fact]
        staying = (fact >= 0).tolist()
        if all(staying):
            return replace(self, fact=fact)
        if not any(staying):
            return None
        old = self.packing
        packing = Packing([row for row, stays in zip(old.rows, staying, strict=True) if stays], old.dtype, old.device)
        tokens = torch.tensor([stays for row, stays in zip(old.rows, staying, strict=True) for _ in range(row.tokens)])
        rows = (fact >= 0).nonzero()[:, 0]
        new_row = torch.full_like(fact, -1)
        new_row[rows] = torch.arange(len(rows), device=rows.device)
        reads = (new_row[self.read_row] >= 0).nonzero()[:, 0]
        read_row = new_row[self.read_row[reads]]
        # A read stays as far behind its row's first token as it was.
        inside = self.read_place[reads] - old.first.to(reads.device)[self.read_row[reads]]
        reference = self.reference
        if reference is not None:
            reference = reference[(new_row[self.read_row] >= 0)[self.read_target < 0]]
        return replace(
            self,
            fact=fact[rows],
            packing=packing,
            hidden=self.hidden[tokens.to(self.hidden.device)],
            read_row=read_row,
            read_place=packing.first.to(reads.device)[read_row] + inside,
            read_target=self.read_target[reads],
            read_weight=self.read_weight[reads],
            reference=reference,
        )


def freeze(
    lm: LanguageModel, rows: Sequence[Row], start: int, tokens: int, device: torch.device | None = None
) -> list[FrozenRows]:
    """Run everything that δ cannot change, once. Call it inside `packed_attention`.

    What the rows of one context begin with is run for all of them together; then each row's own tokens up to layer
    `start`, and from there on only those before the subject's last token, whose keys and values the others will read.

    Args:
        start: the last layer that will not run again; -1 if all will.
        tokens: largest number of suffix tokens in a micro-batch.
        device: where δ is; by default where block `start` puts out.

    Returns:
        Micro-batches that hold every row once.
    """
    with torch.inference_mode():
        shared, begins = _shared_prefixes(lm, rows)
        found = [
            _own_tokens(lm, batch, start, shared, begins) for batch in micro_batches(rows, tokens * _WITHOUT_GRADIENT)
        ]
    # Out of inference mode, joining makes tensors that can take part in a backward pass.
    pool = shared.behind(start).with_more([own.pool for own in found])
    offset = shared.tokens
    by_row: dict[int, tuple[PackedRow, Tensor]] = {}
    for own in found:
        for row, places, hidden in zip(own.rows, own.places, own.hidden, strict=True):
            prefix = (*begins[row.context], *(offset + place for place in places))
            by_row[id(row)] = PackedRow(row.suffix, prefix), hidden
        offset += own.pool.tokens
    return [_micro_batch(lm, start, batch, pool, by_row, device) for batch in micro_batches(rows, tokens)]


def _micro_batch(
    lm: LanguageModel,
    start: int,
    rows: Sequence[Row],
    pool: Pool,
    found: dict[int, tuple[PackedRow, Tensor]],
    device: torch.device | None,
) -> FrozenRows:
    hidden = torch.cat([found[id(row)][1] for row in rows])
    device = device or hidden.device
    packing = Packing([found[id(row)][0] for row in rows], lm.stream_dtype, hidden.device)
    first = packing.first.tolist()
    reads = [
        (index, first[index] + row.suffix - len(row.targets) + offset, target, row.weight)
        for index, row in enumerate(rows)
        for offset, target in enumerate(row.targets)
    ] + [(index, first[index], -1, 0.0) for index, row in enumerate(rows) if not row.targets]
    return FrozenRows(
        start=start,
        fact=torch.tensor([row.fact for row in rows], device=device),
        packing=packing,
        pool=pool,
        hidden=hidden,
        read_row=torch.tensor([read[0] for read in reads], device=device),
        read_place=torch.tensor([read[1] for read in reads], device=device),
        read_target=torch.tensor([read[2] for read in reads], device=device),
        read_weight=torch.tensor([read[3] for read in reads], device=device, dtype=lm.work_dtype),
    )


def _shared_prefixes(lm: LanguageModel, rows: Sequence[Row]) -> tuple[Pool, dict[int, tuple[int, ...]]]:
    """Run what all rows of a context begin with, before any subject's last token.

    Returns:
        The pool of these tokens, and by context their places in it.
    """
    contexts: dict[int, list[Row]] = {}
    for row in rows:
        contexts.setdefault(row.context, []).append(row)
    begins: dict[int, tuple[int, ...]] = {}
    ids: list[int] = []
    packed: list[PackedRow] = []
    for context, members in contexts.items():
        common = common_beginning([row.ids[: row.subject] for row in members])
        begins[context] = tuple(range(len(ids), len(ids) + len(common)))
        if common:
            ids.extend(common)
            packed.append(PackedRow(len(common)))
    if not ids:
        return Pool(), begins
    packing = Packing(packed, lm.stream_dtype, lm.device)
    return run_packed(lm, packing, Pool(), ids=torch.tensor(ids), collect=True)[1], begins


@dataclass(frozen=True)
class _Own:
    """What running the own tokens of some rows has given."""

    rows: Sequence[Row]
    pool: Pool
    """Of the tokens between the shared ones and the subject's last, for the layers behind `start`."""
    places: list[range]
    """By row: where these lie in the pool."""
    hidden: list[Tensor]
    """By row, (suffix, d_value): what layer `start` puts out from the subject's last token on."""


def _own_tokens(
    lm: LanguageModel, rows: Sequence[Row], start: int, shared: Pool, begins: dict[int, tuple[int, ...]]
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
    places = [range(0)] * len(rows)
    # Neighbors of equal length run together.
    order = sorted((index for index, length in enumerate(before) if length), key=lambda index: before[index])
    if not order:
        return _Own(rows, Pool(), places, hidden)
    end = 0
    for index in order:
        places[index] = range(end, end + before[index])
        end = places[index].stop
    packing = Packing([PackedRow(before[index], prefixes[index]) for index in order], lm.stream_dtype, lm.device)
    heads = torch.cat([outputs[index][: before[index]] for index in order])
    _, pool = run_packed(lm, packing, shared.behind(start), hidden=heads, start=start, collect=True)
    return _Own(rows, pool, places, hidden)
