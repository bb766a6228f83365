"""A micro-batch of rows with everything that δ cannot change: computed once, read at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from factpatch.model.batching import padded
from factpatch.model.hooks import adding, captured, causal_mask, starting_after
from factpatch.model.language_model import LanguageModel
from factpatch.values.rows import Row


class _FrozenLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped to mypy
    """Keys and values of the prefix, which attention reads and nothing appends to."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


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
    """Rows of like suffix length behind their frozen prefixes, ready to be run from one layer on."""

    start: int
    """The last layer that does not run again; -1 if all do."""
    fact: Tensor
    """(rows,): the fact of each row."""
    hidden: Tensor
    """(rows, suffix, d_value): outputs of block `start` from the subject's last token on."""
    keys: list[Tensor]
    """For every layer behind `start`, (rows, heads, prefix, d_head)."""
    values: list[Tensor]
    positions: Tensor
    """(rows, suffix): position ids."""
    mask: Tensor
    """(rows, 1, suffix, prefix + suffix), additive."""
    read_row: Tensor
    """(reads,): the row of each position whose distribution a loss reads."""
    read_position: Tensor
    """(reads,): its position in the suffix."""
    read_target: Tensor
    """(reads,): the token whose NLL is read there, or -1 where the KL is read."""
    read_weight: Tensor
    """(reads,): its share in the fact's mean NLL; 0 for the KL."""
    reference: Tensor | None = None
    """(KL reads, vocabulary): log-probabilities before the first step."""

    @classmethod
    def capture(cls, lm: LanguageModel, rows: Sequence[Row], start: int) -> FrozenRows:
        """Run the rows once and keep what layer `start` puts out, and what lies before the subject's last token."""
        ids, attended = padded([row.ids for row in rows], device=lm.device)
        cache = DynamicCache()
        wanted: Any = {"outputs": {start: lm.block(start)}} if start >= 0 else {"inputs": {start: lm.block(0)}}
        with torch.inference_mode(), captured(**wanted) as found:
            lm.body(input_ids=ids, attention_mask=attended, past_key_values=cache, use_cache=True)
        # Tensors made in inference mode cannot take part in a later backward pass; clones can.
        block = found[start].clone()
        device = block.device
        prefix_lengths = torch.tensor([row.subject for row in rows], device=device)
        suffix_lengths = torch.tensor([row.suffix for row in rows], device=device)
        prefix, suffix = int(prefix_lengths.max()), int(suffix_lengths.max())
        positions = prefix_lengths[:, None] + torch.arange(suffix, device=device)[None]
        inside = positions.clamp(max=block.shape[1] - 1)
        above = cache.layers[start + 1 :]
        reads = [
            (index, row.suffix - len(row.targets) + offset, target, row.weight)
            for index, row in enumerate(rows)
            for offset, target in enumerate(row.targets)
        ] + [(index, 0, -1, 0.0) for index, row in enumerate(rows) if not row.targets]
        return cls(
            start=start,
            fact=torch.tensor([row.fact for row in rows], device=device),
            hidden=block.gather(1, inside[..., None].expand(-1, -1, block.shape[-1])),
            keys=[kept.keys[:, :, :prefix].clone() for kept in above],
            values=[kept.values[:, :, :prefix].clone() for kept in above],
            positions=inside,
            mask=causal_mask(suffix_lengths, suffix, prefix_lengths, prefix, lm.dtype),
            read_row=torch.tensor([read[0] for read in reads], device=device),
            read_position=torch.tensor([read[1] for read in reads], device=device),
            read_target=torch.tensor([read[2] for read in reads], device=device),
            read_weight=torch.tensor([read[3] for read in reads], device=device, dtype=lm.work_dtype),
        )

    def run(self, lm: LanguageModel, sites: Sequence[nn.Module], delta: Tensor) -> Tensor:
        """Add δ at the subject's last token and run what it reaches, the head only where a loss reads it.

        Args:
            sites: modules whose outputs get a δ each: block `start`, or parts of the block behind it.
            delta: (facts, sites, d_value), in the work dtype.

        Returns:
            (reads, vocabulary) log-probabilities, in the work dtype.
        """
        below = [DynamicLayer() for _ in range(self.start + 1)]
        frozen = [_FrozenLayer(keys, values) for keys, values in zip(self.keys, self.values, strict=True)]
        skipping = starting_after(lm.blocks, self.start, self.hidden, lm.architecture.returns_tuple)
        with skipping, adding(sites, delta[self.fact]):
            last = lm.body(
                # The embeddings of these ids are never used: the blocks that would read them do not run.
                input_ids=torch.zeros_like(self.positions, device=lm.device),
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=Cache(layers=[*below, *frozen]),
                use_cache=True,
            )
        read = last[self.read_row.to(last.device), self.read_position.to(last.device)]
        # A model spread over devices ends on another one than it was edited on.
        return lm.log_probabilities(read).to(delta.device)

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
        rows = (fact >= 0).nonzero()[:, 0]
        if len(rows) == 0:
            return None
        if len(rows) == len(fact):
            self.fact = fact
            return self
        new_row = torch.full_like(fact, -1)
        new_row[rows] = torch.arange(len(rows), device=rows.device)
        read_row = new_row[self.read_row]
        reads = (read_row >= 0).nonzero()[:, 0]
        reference = self.reference
        if reference is not None:
            reference = reference[read_row[self.read_target < 0] >= 0]
        return FrozenRows(
            start=self.start,
            fact=fact[rows],
            hidden=self.hidden[rows],
            keys=[keys[rows.to(keys.device)] for keys in self.keys],
            values=[values[rows.to(values.device)] for values in self.values],
            positions=self.positions[rows],
            mask=self.mask[rows],
            read_row=read_row[reads],
            read_position=self.read_position[reads],
            read_target=self.read_target[reads],
            read_weight=self.read_weight[reads],
            reference=reference,
        )
