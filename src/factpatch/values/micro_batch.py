"""A micro-batch of rows: what a step of the value optimization runs and reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from factpatch.model.hooks import adding
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import halves
from factpatch.model.packed import PackedRow, Packing, Pool, run_packed
from factpatch.strategies.target import Target


@dataclass(frozen=True)
class Losses:
    """What one micro-batch adds to every fact's loss; each (facts,)."""

    nll: Tensor
    """Its share of the mean NLL, in nats, or of what the target has in its place."""
    kl: Tensor
    """Its share of the KL, without its factor, in nats."""
    missed: Tensor
    """How many of its target tokens are not the most probable one, or not as the target wants them."""


@dataclass(frozen=True)
class FrozenRow:
    """What is known of a row without asking the device."""

    fact: int
    packed: PackedRow
    """From the subject's last token on."""
    targets: tuple[int, ...]
    """Token ids whose NLL is read at the last positions; none in the row whose KL is read at the first."""
    weight: float
    """Share of one read position in the fact's mean NLL."""


@dataclass(frozen=True)
class _Reads:
    """The positions that a loss reads: first those of the NLL, then those of the KL."""

    place: Tensor
    """(reads,): the position among the tokens."""
    fact: Tensor
    """(reads,)"""
    target: Tensor
    """(NLL reads,): the token."""
    weight: Tensor
    """(NLL reads,): its share in the fact's mean NLL."""
    row: Tensor
    """(NLL reads,): the number of its text among those with a target."""

    @classmethod
    def of(cls, rows: Sequence[FrozenRow], dtype: torch.dtype, device: torch.device) -> _Reads:
        ends = list(accumulate(row.packed.tokens for row in rows))
        nll = [
            (end - len(row.targets) + offset, row.fact, target, row.weight)
            for row, end in zip(rows, ends, strict=True)
            for offset, target in enumerate(row.targets)
        ]
        texts = [row for row in rows if row.targets]
        kl = [(end - row.packed.tokens, row.fact) for row, end in zip(rows, ends, strict=True) if not row.targets]
        return cls(
            place=torch.tensor([read[0] for read in (*nll, *kl)], device=device),
            fact=torch.tensor([read[1] for read in (*nll, *kl)], device=device),
            target=torch.tensor([target for _, _, target, _ in nll], dtype=torch.long, device=device),
            weight=torch.tensor([weight for _, _, _, weight in nll], dtype=dtype, device=device),
            row=torch.tensor(
                [number for number, row in enumerate(texts) for _ in row.targets], dtype=torch.long, device=device
            ),
        )


@dataclass
class FrozenRows:
    """The tokens of rows from the subject's last one on, ready to run in the layers above `start`.

    All that a step needs is on the device before it begins: a step never waits for what the device computes.
    """

    start: int
    """The last layer that does not run again; -1 if all do."""
    rows: tuple[FrozenRow, ...]
    pool: Pool
    """Keys and values of the tokens before, for the layers above `start`; shared with other micro-batches."""
    hidden: Tensor
    """(tokens, d_value): outputs of block `start`, or inputs of the first block."""
    packing: Packing
    """How the rows are concatenated."""
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
        """Move rows to δ's device, which need not be that of `hidden`; `work_dtype` is that of losses."""
        packing = Packing([row.packed for row in rows], dtype, hidden.device)
        fact = torch.tensor([row.fact for row in rows], device=device)
        return cls(start, tuple(rows), pool, hidden, packing, _Reads.of(rows, work_dtype, device), fact)

    def hidden_states(self, lm: LanguageModel, sites: Sequence[nn.Module], delta: Tensor) -> Tensor:
        """Add δ at the subject's last token and run what it reaches.

        Args:
            sites: Modules whose outputs get a δ each: block `start`, or parts of the next block.
            delta: (facts, sites, d_value), in the work dtype.

        Returns:
            (tokens, d_value), the last hidden states.
        """
        with adding(sites, self.packing.first, delta[self.fact]):
            return run_packed(lm, self.packing, self.pool, hidden=self.hidden, start=self.start)[0]

    def losses(self, lm: LanguageModel, sites: Sequence[nn.Module], delta: Tensor, target: Target) -> Losses:
        """Run the rows as `hidden_states` does, and the head at the positions that are read."""
        last = self.hidden_states(lm, sites, delta)
        # A model spread over devices ends on another device than the edited layer's.
        log_probabilities = lm.log_probabilities(last[self.reads.place.to(last.device)]).to(delta.device)
        reads, count = self.reads, len(self.reads.target)
        read, present = log_probabilities[:count], log_probabilities[count:]
        if self.reference is None:
            self.reference = present.detach().clone()
        chosen = read.gather(1, reads.target[:, None])[:, 0]
        divergence = (present.exp() * (present - self.reference)).sum(dim=-1)
        told, misses = target.told(chosen, read.argmax(dim=-1) == reads.target, reads.weight, reads.row)
        nll, kl, missed = (delta.new_zeros(len(delta)) for _ in range(3))
        return Losses(
            nll.index_add(0, reads.fact[:count], told),
            kl.index_add(0, reads.fact[count:], divergence),
            missed.index_add(0, reads.fact[:count], misses.to(missed)),
        )

    def keep(self, renumbered: Sequence[int]) -> FrozenRows | None:
        """Drop the rows of finished facts, given the new number of each fact, -1 for a finished one; None if all."""
        staying = [index for index, row in enumerate(self.rows) if renumbered[row.fact] >= 0]
        return self._only(staying, renumbered) if staying else None

    def halves(self) -> list[FrozenRows]:
        """The rows in two micro-batches; none if there is one row."""
        return [self._only(half) for half in halves(range(len(self.rows)))]

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
