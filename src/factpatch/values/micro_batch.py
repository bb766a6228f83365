"""A micro-batch of rows: what a step of the value optimization runs and reads.

Two rows of a fact that begin alike, such as a user's turn to be answered and the same turn answered with "The answer
is", run their common tokens once: δ acts alike on both. The longer one continues the shorter one,

    chat        ux is<|im_end|>…assistant⏎ English          one packed row of the sequence
    answered                             └ The answer is    another, whose prefix points into the first
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

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
    margin: Tensor
    """By how much a target token leads the most probable other one, in nats, where it leads least; infinity if none is
    read."""


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
    ids: tuple[int, ...]
    """The tokens that run."""


class _Laid(NamedTuple):
    """Rows in a sequence, tokens that they share once."""

    packed: list[PackedRow]
    begins: list[int]
    """By packed row: which token of its row it begins with; 0 where that is the subject's last one."""
    owners: list[int]
    """By packed row: the row whose tokens it has."""
    places: list[tuple[int, ...]]
    """By row: where each of its tokens is in the sequence."""

    @classmethod
    def of(cls, rows: Sequence[FrozenRow], known: int) -> _Laid:
        """Lay rows, which are sorted by length; `known` is the number of tokens in their pool."""
        alike: dict[tuple[int, bool, tuple[int, ...]], list[int]] = {}
        paths: list[list[tuple[int, int]]] = []  # by row: of each token the number of its piece, and its place there
        pieces: list[tuple[int, int]] = []  # the row, and how many of its tokens another one has
        for number, row in enumerate(rows):
            # The KL's row stays alone: where a prompt begins with its subject, published results were rounded so.
            family = alike.setdefault((row.fact, bool(row.targets), row.packed.prefix), [])
            shared, other = max(((_agreeing(row.ids, rows[other].ids), other) for other in family), default=(0, -1))
            family.append(number)
            path = paths[other][:shared] if shared else []
            if shared < len(row.ids):
                path = path + [(len(pieces), place) for place in range(len(row.ids) - shared)]
                pieces.append((number, shared))
            paths.append(path)
        # Rows of equal length are to be neighbors; without shared tokens they are already.
        order = sorted(range(len(pieces)), key=lambda piece: len(rows[pieces[piece][0]].ids) - pieces[piece][1])
        lengths = (len(rows[pieces[piece][0]].ids) - pieces[piece][1] for piece in order)
        starts = dict(zip(order, accumulate(lengths, initial=0), strict=False))
        places = [tuple(starts[piece] + place for piece, place in path) for path in paths]
        packed = []
        for piece in order:
            number, shared = pieces[piece]
            before = tuple(known + place for place in places[number][:shared])
            packed.append(PackedRow(len(rows[number].ids) - shared, (*rows[number].packed.prefix, *before)))
        return cls(packed, [pieces[piece][1] for piece in order], [pieces[piece][0] for piece in order], places)


def _agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


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
    def of(
        cls, rows: Sequence[FrozenRow], places: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> _Reads:
        nll = [
            (place, row.fact, target, row.weight)
            for row, own in zip(rows, places, strict=True)
            for place, target in zip(own[len(own) - len(row.targets) :], row.targets, strict=True)
        ]
        texts = [row for row in rows if row.targets]
        kl = [(own[0], row.fact) for row, own in zip(rows, places, strict=True) if not row.targets]
        return cls(
            place=torch.tensor([read[0] for read in (*nll, *kl)], device=device),
            fact=torch.tensor([read[1] for read in (*nll, *kl)], device=device),
            target=torch.tensor([target for _, _, target, _ in nll], dtype=torch.long, device=device),
            weight=torch.tensor([weight for _, _, _, weight in nll], dtype=dtype, device=device),
            row=torch.tensor(
                [number for number, row in enumerate(texts) for _ in row.targets], dtype=torch.long, device=device
            ),
        )


class _LogProbabilities(torch.autograd.Function):
    """log_softmax, of which a loss reads one token of the first rows and the whole of the others.

    Its gradient is zero but for these tokens, and made in one table; autograd would make five of that width.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log-probabilities of the first rows' targets, all of the others, and a table without gradient.

        Args:
            logits: (rows, vocabulary)
            target: (first rows,): the tokens.
        """
        table = torch.log_softmax(logits, dim=-1)
        ctx.save_for_backward(table, target)
        ctx.mark_non_differentiable(table)
        ctx.set_materialize_grads(False)
        return table[: len(target)].gather(1, target[:, None])[:, 0], table[len(target) :].clone(), table

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor, None]:
        table, target = ctx.saved_tensors
        count = len(target)
        of_chosen = table.new_zeros(count) if slopes[0] is None else slopes[0]
        of_rest = torch.zeros_like(table[count:]) if slopes[1] is None else slopes[1]
        gradient = table.exp().mul_(-torch.cat([of_chosen, of_rest.sum(dim=-1)])[:, None])
        gradient[:count].scatter_add_(1, target[:, None], of_chosen[:, None])
        gradient[count:] += of_rest
        return gradient, None


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
    """(tokens of all rows, d_value): outputs of block `start`, or inputs of the first block, one row after another."""
    entering: Tensor
    """(tokens, d_value): those of the tokens that run, in the order of the sequence."""
    packing: Packing
    """How the rows are concatenated."""
    reads: _Reads
    subjects: Tensor
    """Where a subject's last token is in the sequence."""
    fact: Tensor
    """The fact of each of these."""
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
        laid = _Laid.of(rows, pool.tokens)
        packing = Packing(laid.packed, dtype, hidden.device)
        firsts = [index for index, begin in enumerate(laid.begins) if not begin]
        fact = torch.tensor([rows[laid.owners[index]].fact for index in firsts], device=device)
        entering, subjects = hidden, packing.first
        if packing.tokens < len(hidden):
            offsets = list(accumulate((len(row.ids) for row in rows), initial=0))
            pieces = zip(laid.owners, laid.begins, laid.packed, strict=True)
            tokens = [
                place
                for owner, begin, piece in pieces
                for place in range(offsets[owner] + begin, offsets[owner] + begin + piece.tokens)
            ]
            entering = hidden[torch.tensor(tokens, device=hidden.device)]
            subjects = packing.first[torch.tensor(firsts, device=hidden.device)]
        reads = _Reads.of(rows, laid.places, work_dtype, device)
        return cls(start, tuple(rows), pool, hidden, entering, packing, reads, subjects, fact)

    def hidden_states(self, lm: LanguageModel, sites: Sequence[nn.Module], delta: Tensor) -> Tensor:
        """Add δ at the subject's last token and run what it reaches.

        Args:
            sites: Modules whose outputs get a δ each: block `start`, or parts of the next block.
            delta: (facts, sites, d_value), in the work dtype.

        Returns:
            (tokens, d_value), the last hidden states.
        """
        with adding(sites, self.subjects, delta[self.fact]):
            return run_packed(lm, self.packing, self.pool, hidden=self.entering, start=self.start)[0]

    def losses(self, lm: LanguageModel, sites: Sequence[nn.Module], delta: Tensor, target: Target) -> Losses:
        """Run the rows as `hidden_states` does, and the head at the positions that are read."""
        last = self.hidden_states(lm, sites, delta)
        # A model spread over devices ends on another device than the edited layer's.
        reads, count = self.reads, len(self.reads.target)
        logits = lm.logits(last[reads.place.to(last.device)]).to(delta.device)
        chosen, present, table = _LogProbabilities.apply(logits, reads.target)  # type: ignore[no-untyped-call]
        read = table[:count]
        if self.reference is None:
            self.reference = present.detach().clone()
        divergence = (present.exp() * (present - self.reference)).sum(dim=-1)
        told, misses = target.told(chosen, read.argmax(dim=-1) == reads.target, reads.weight, reads.row)
        nll, kl, missed = (delta.new_zeros(len(delta)) for _ in range(3))
        others = read.scatter(1, reads.target[:, None], -torch.inf).amax(dim=-1)
        margin = torch.full_like(missed, torch.inf)
        return Losses(
            nll.index_add(0, reads.fact[:count], told),
            kl.index_add(0, reads.fact[count:], divergence),
            missed.index_add(0, reads.fact[:count], misses.to(missed)),
            margin.scatter_reduce(0, reads.fact[:count], chosen.detach() - others, "amin"),
        )

    def keep(self, renumbered: Sequence[int]) -> FrozenRows | None:
        """Drop the rows of finished facts, given the new number of each fact, -1 for a finished one; None if all."""
        staying = [index for index, row in enumerate(self.rows) if renumbered[row.fact] >= 0]
        return self._only(staying, renumbered) if staying else None

    def halves(self) -> list[FrozenRows]:
        """The rows in two micro-batches; none if there is one row."""
        return [self._only(half) for half in halves(range(len(self.rows)))]

    def doubled(self, facts: int) -> FrozenRows:
        """The rows and, beside them, the same as rows of other facts, whose numbers are higher by `facts`."""
        rows = [*self.rows, *(replace(row, fact=row.fact + facts) for row in self.rows)]
        hidden = torch.cat([self.hidden, self.hidden])
        dtypes = self.packing.dtype, self.reads.weight.dtype
        return FrozenRows.of(rows, self.start, self.pool, hidden, *dtypes, self.fact.device)

    def _only(self, staying: Sequence[int], renumbered: Sequence[int] | None = None) -> FrozenRows:
        """Some of the rows, by their places, with their facts' new numbers."""
        rows = [self.rows[index] for index in staying]
        if renumbered is not None:
            rows = [replace(row, fact=renumbered[row.fact]) for row in rows]
        hidden, reference = self.hidden, self.reference
        if len(staying) < len(self.rows):
            begins = list(accumulate((len(row.ids) for row in self.rows), initial=0))
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
