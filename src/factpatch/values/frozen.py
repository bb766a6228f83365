"""A micro-batch of rows with everything that δ cannot change: computed once, read at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
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


@dataclass(frozen=True)
class FrozenRow:
    """What the host knows of a row."""

    fact: int
    packed: PackedRow
    """From the subject's last token on."""
    targets: tuple[int, ...]
    """Token ids whose NLL is read at the last positions; none where the KL is read at the first."""
    weight: float
    """Share of one read position in the fact's mean NLL."""


@dataclass(frozen=True)
class _Reads:
    """What a loss reads where: first every position whose NLL it reads, then those of the KL."""

    place: Tensor
    """(reads,): the position among the tokens."""
    fact: Tensor
    """(reads,)"""
    target: Tensor
    """(NLL reads,): the token."""
    weight: Tensor
    """(NLL reads,): its share in the fact's mean NLL."""

    @classmethod
    def of(cls, rows: Sequence[FrozenRow], dtype: torch.dtype, device: torch.device) -> _Reads:
        ends = list(accumulate(row.packed.tokens for row in rows))
        nll = [
            (end - len(row.targets) + offset, row.fact, target, row.weight)
            for row, end in zip(rows, ends, strict=True)
            for offset, target in enumerate(row.targets)
        ]
        kl = [(end - row.packed.tokens, row.fact) for row, end in zip(rows, ends, strict=True) if not row.targets]
        return cls(
            place=torch.tensor([read[0] for read in (*nll, *kl)], device=device),
            fact=torch.tensor([read[1] for read in (*nll, *kl)], device=device),
            target=torch.tensor([target for _, _, target, _ in nll], dtype=torch.long, device=device),
            weight=torch.tensor([weight for _, _, _, weight in nll], dtype=dtype, device=device),
        )


@dataclass
class FrozenRows:
    """The tokens of rows from the subject's last one on, ready to be run from one layer on.

    All that a step needs is on the device before it begins: a step waits for nothing that the device computes.
    """

    start: int
    """The last layer that does not run again; -1 if all do."""
    rows: tuple[FrozenRow, ...]
    pool: Pool
    """Keys and values of what comes before, for the layers behind `start`; shared with other micro-batches."""
    hidden: Tensor
    """(tokens, d_value): outputs of block `start`, or inputs of the first block."""
    packing: Packing
    """How the rows lie side by side."""
    reads: _Reads
    fact: Tensor
    """(rows,): the fact of each row."""
    reference: Tensor | None = None
    """(KL reads, vocabulary): log-probabilities before the first step."""

    @classmethod
    def of(
        cls,
        rows: Sequence[FrozenRow],
        start: int,
        pool: Pool,
        hidden: Tensor,
        dtype: torch.dtype,
        work_dtype: torch.dtype,
        device: torch.device,
    ) -> FrozenRows:
        """Bring rows to the device.

        Args:
            dtype: of hidden states.
            work_dtype: of losses.
            device: where δ is; `hidden` may be elsewhere.
        """
        packing = Packing([row.packed for row in rows], dtype, hidden.device)
        fact = torch.tensor([row.fact for row in rows], device=device)
        return cls(start, tuple(rows), pool, hidden, packing, _Reads.of(rows, work_dtype, device), fact)

    def run(self, lm: LanguageModel, sites: Sequence[nn.Module], delta: Tensor) -> Tensor:
        """Add δ at the subject's last token and run what it reaches, the head only where a loss reads it.

        Args:
            sites: modules whose outputs get a δ each: block `start`, or parts of the block behind it.
            delta: (facts, sites, d_value), in the work dtype.

        Returns:
            (reads, vocabulary) log-probabilities, in the work dtype: those of the NLL, then those of the KL.
        """
        with adding(sites, self.packing.first, delta[self.fact]):
            last, _ = run_packed(lm, self.packing, self.pool, hidden=self.hidden, start=self.start)
        # A model spread over devices ends on another one than it was edited on.
        return lm.log_probabilities(last[self.reads.place.to(last.device)]).to(delta.device)

    def losses(self, lm: LanguageModel, sites: Sequence[nn.Module], delta: Tensor) -> Losses:
        """Run the rows with δ and read their losses; the arguments are those of `run`."""
        log_probabilities = self.run(lm, sites, delta)
        reads, count = self.reads, len(self.reads.target)
        read, present = log_probabilities[:count], log_probabilities[count:]
        if self.reference is None:
            self.reference = present.detach().clone()
        chosen = read.gather(1, reads.target[:, None])[:, 0]
        divergence = (present.exp() * (present - self.reference)).sum(dim=-1)
        nll, kl, missed = (delta.new_zeros(len(delta)) for _ in range(3))
        return Losses(
            nll.index_add(0, reads.fact[:count], -chosen * reads.weight),
            kl.index_add(0, reads.fact[count:], divergence),
            missed.index_add(0, reads.fact[:count], (read.argmax(dim=-1) != reads.target).to(missed)),
        )

    def keep(self, renumbered: Sequence[int]) -> FrozenRows | None:
        """Drop the rows of facts that are finished.

        Args:
            renumbered: the new number of each fact, -1 for a finished one.
        """
        staying = [index for index, row in enumerate(self.rows) if renumbered[row.fact] >= 0]
        return self._only(staying, renumbered) if staying else None

    def _only(self, staying: Sequence[int], renumbered: Sequence[int] | None = None) -> FrozenRows:
        """Some of the rows, by their places, with their facts' new numbers."""
        rows = [self.rows[index] for index in staying]
        if renumbered is not None:
            rows = [replace(row, fact=renumbered[row.fact]) for row in rows]
        hidden, reference = self.hidden, self.reference
        if len(staying) < len(self.rows):
            begins = list(accumulate((row.packed.tokens for row in self.rows), initial=0))
            tokens = [place for index in staying for place in range(begins[index], begins[index + 1])]
            hidden = hidden[torch.tensor(tokens, device=hidden.device)]
            if reference is not None:
                numbers = accumulate((not row.targets for row in self.rows), initial=0)
                number = dict(enumerate(numbers))
                kl = [number[index] for index in staying if not self.rows[index].targets]
                reference = reference[torch.tensor(kl, dtype=torch.long, device=reference.device)]
        found = FrozenRows.of(
            rows, self.start, self.pool, hidden, self.packing.dtype, self.reads.weight.dtype, self.fact.device
        )
        found.reference = reference
        return found


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
    frozen = [FrozenRow(row.fact, found[id(row)][0], row.targets, row.weight) for row in rows]
    return FrozenRows.of(frozen, start, pool, hidden, lm.stream_dtype, lm.work_dtype, device or hidden.device)


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
