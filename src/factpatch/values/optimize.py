"""Find target values for a whole batch at once: every fact with its own δ, Adam state, stop and clamp."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import packed_attention
from factpatch.model.precision import Precision, computing, precision_for
from factpatch.strategies.target import Target
from factpatch.values.budget import tokens_to_freeze
from factpatch.values.chunks import Round, key_lengths, rounds_of, starts_of
from factpatch.values.descent import Descent, Loss
from factpatch.values.frozen import Earlier, freeze
from factpatch.values.reading import SubjectRows, read_last
from factpatch.values.rows import Row, optimization_rows


@dataclass(frozen=True)
class TargetValues:
    """The outcome of the value optimization at one layer, one row per fact, or per chunk of a long answer."""

    values: Tensor
    """(n, d_value): activation plus δ, at the target's site."""
    delta: Tensor
    """(n, d_value): δ at that site."""
    evaluations: Tensor
    """(n,): loss evaluations made."""
    updates: Tensor
    """(n,): updates made; the paper's Table 1 counts these."""
    loss: Tensor
    """(n,): the loss at the last evaluation, in nats."""

    @classmethod
    def joined(cls, parts: Sequence[TargetValues], join: Callable[[list[Tensor]], Tensor] = torch.cat) -> TargetValues:
        """Join the outcomes of several optimizations, field by field; `join` decides the order of the rows."""
        return cls(**{one.name: join([getattr(part, one.name) for part in parts]) for one in fields(cls)})

    def to(self, device: torch.device | str) -> TargetValues:
        """The same on a device."""
        return TargetValues(**{one.name: getattr(self, one.name).to(device) for one in fields(self)})


class Optimize(Protocol):
    """What finds target values: `optimize_values`, or a replacement with the same arguments.

    A replacement that finds other values has an attribute `identity`, a text that distinguishes it. The settings of a
    patch hold it, so that batches of different origins are not joined by mistake.
    """

    def __call__(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        layer: int,
        target: Target,
        contexts: Sequence[str],
        *,
        progress: Callable[[int], None] = ...,
        precision: Precision | None = None,
    ) -> TargetValues: ...


def optimize_values(
    lm: LanguageModel,
    facts: Sequence[Fact],
    layer: int,
    target: Target,
    contexts: Sequence[str],
    progress: Callable[[int], None] = lambda finished: None,
    tokens_at_once: int | None = None,
    precision: Precision | None = None,
) -> TargetValues:
    """Find, for every fact, the value at `layer` that makes the model say the new object.

    One forward and backward pass serves the whole batch. A step runs the layers above `layer` on the tokens from the
    subject's last token on; everything else is computed once. How the facts are batched affects the result only by
    rounding. Of a long answer every chunk has a value, the chunks of a fact one after another; see
    `factpatch.values.chunks`.

    Args:
        layer: Where the δs are added and the value is wanted.
        target: The loss, the step size, the stops.
        contexts: Templates, the bare prompt first.
        progress: Called at times with the number of evaluations made, or found unnecessary, since the last call.
        tokens_at_once: Largest number of suffix tokens in a micro-batch; by default as many as pay and fit into memory
            (`factpatch.values.budget`). A micro-batch that does not fit is halved and evaluated again. The same
            micro-batches give the same bits: on one machine with memory to spare, always.
        precision: What to compute in and to return; by default what the model is stored in.

    Raises:
        ValueError: The target needs something to be measured first; see `Target.unmeasured`.
        FloatingPointError: A loss or a gradient is not finite.
        OutOfMemoryError: Memory does not suffice for a single row.
    """
    target = target.at(layer)
    asked = target.asked(facts)
    rows = optimization_rows(lm, asked, contexts)
    rounds = rounds_of(rows, starts_of(rows, target.chunk, key_lengths(lm, rows, target.chunk)), target.ahead)
    present = [_Present.of(lm, facts, layer, target, contexts)]
    present += [_Present.at_anchors(lm, one, layer, target, contexts) for one in rounds[1:]]
    precision = precision or precision_for(lm)
    most = target.evaluations
    told = _Scaled(progress, len(facts) * most, sum(len(one.facts) for one in rounds) * most)
    # A caller's inference mode would leave no gradients.
    with torch.inference_mode(False), lm.quiet(), packed_attention(lm), computing(lm, precision) as lm:
        placed: dict[tuple[int, int], Tensor] = {}  # the δs of a fact's earlier chunks, by its place and their number
        found = []
        # Some tokens in a text, to which all later ones attend, are many times as long as others. A δ of their length
        # would move everything else, so none is longer than it may be at its fact's subject.
        longest = present[0].norm(lm, len(target.sites))
        for number, (one, seen) in enumerate(zip(rounds, present, strict=True)):
            deltas = {
                id(row): torch.stack([placed[one.facts[row.fact], earlier] for earlier in range(len(row.earlier))])
                for row in one.rows
                if row.earlier
            }
            norm = torch.minimum(seen.norm(lm, len(target.sites)), longest[list(one.facts)])
            values, delta = _found(lm, one.rows, deltas, layer, target, seen.seen, norm, tokens_at_once, told)
            placed |= {(fact, number): delta[place] for place, fact in enumerate(one.facts)}
            found.append(values)
        return found[0] if len(found) == 1 else _by_fact(found, rounds)


def _by_fact(found: Sequence[TargetValues], rounds: Sequence[Round]) -> TargetValues:
    """Join what rounds have found, the chunks of a fact one after another."""
    starts = accumulate((len(one.facts) for one in rounds), initial=0)
    order = sorted(
        (fact, number, start + place)
        for number, (one, start) in enumerate(zip(rounds, starts, strict=False))
        for place, fact in enumerate(one.facts)
    )
    rows = torch.tensor([row for *_, row in order])
    return TargetValues.joined(found, lambda parts: torch.cat(parts)[rows.to(parts[0].device)])


def _found(
    lm: LanguageModel,
    rows: Sequence[Row],
    deltas: Mapping[int, Tensor],
    layer: int,
    target: Target,
    seen: Tensor,
    norm: Tensor,
    tokens_at_once: int | None,
    progress: Callable[[int], None],
) -> tuple[TargetValues, Tensor]:
    """Find one δ for each fact, with earlier ones in place; also as it is in place later, (n, sites, d_value)."""
    seen = seen.to(lm.work_dtype)
    present = seen[:, : len(target.sites)].contiguous()
    start = layer - 1 if target.inside else layer
    earlier = Earlier([getattr(lm, site)(layer) for site in target.sites], deltas)
    # The frozen rows get no name, so that what the micro-batches do not take over is freed.
    loss = Loss(
        lm, freeze(lm, rows, start, tokens_to_freeze(lm, rows), present.device, earlier), layer, target, present,
        norm, tokens_at_once,
    )  # fmt: skip
    found = target.search(loss, lambda: Descent(loss).run(progress))
    delta = target.settle(seen, found.delta).clone()
    placed = torch.cat([found.delta[:, :-1], delta[:, None]], dim=1)
    updates = found.evaluations - 1 if found.updates is None else found.updates
    values = TargetValues(present[:, -1] + delta, delta, found.evaluations, updates, found.loss)
    return values, placed


@dataclass(frozen=True)
class _Present:
    """The unshifted activations where a δ is added."""

    seen: Tensor
    """(n, sites + beside, d_value): in the first context."""
    elsewhere: tuple[Tensor, ...]
    """(n, sites, d_value) in each other context where ‖h‖ is read as well; the value is the first one's."""

    @classmethod
    def of(
        cls, lm: LanguageModel, facts: Sequence[Fact], layer: int, target: Target, contexts: Sequence[str]
    ) -> _Present:
        """At the subject's last token."""
        everywhere = _activations(lm, facts, layer, target.sites, contexts if target.shortest else contexts[:1])
        seen = [everywhere[0]]
        if target.beside:
            seen += _activations(lm, facts, layer, target.beside, contexts[:1])
        return cls(torch.cat(seen, dim=1), tuple(everywhere[1:]))

    def norm(self, lm: LanguageModel, sites: int) -> Tensor:
        """The shortest ‖h‖ of all contexts that count, (n, sites)."""
        shifted = (
            activations.to(lm.work_dtype) for activations in (self.seen[:, :sites].contiguous(), *self.elsewhere)
        )
        return torch.stack([torch.linalg.vector_norm(activations, dim=-1) for activations in shifted]).amin(dim=0)

    @classmethod
    def at_anchors(cls, lm: LanguageModel, one: Round, layer: int, target: Target, contexts: Sequence[str]) -> _Present:
        """At the token before a later chunk. No earlier δ reaches it: they are added in the same layer."""

        def read(context: int, sites: Sequence[str]) -> Tensor:
            begins = one.begins(context)
            return torch.stack([read_last(lm, begins, layer, site, "outputs") for site in sites], dim=1)

        others = range(1, len(dict.fromkeys(contexts))) if target.shortest else ()
        return cls(read(0, (*target.sites, *target.beside)), tuple(read(context, target.sites) for context in others))


@dataclass
class _Scaled:
    """Reports progress in evaluations of one δ a fact, however many there are."""

    progress: Callable[[int], None]
    total: int
    left: int
    """Evaluations of all δs that may still come."""
    reported: int = 0

    def __post_init__(self) -> None:
        self.every = self.left

    def __call__(self, finished: int) -> None:
        self.left -= finished
        due = self.total * (self.every - self.left) // self.every - self.reported
        self.reported += due
        self.progress(due)


def _activations(
    lm: LanguageModel, facts: Sequence[Fact], layer: int, sites: Sequence[str], contexts: Sequence[str]
) -> Tensor:
    """The unshifted activations, (contexts, n, sites, d_value)."""
    rows = SubjectRows.of(lm, facts, contexts).rows
    read = torch.stack([read_last(lm, rows, layer, site, "outputs") for site in sites], dim=1)
    return read.view(len(facts), len(contexts), *read.shape[1:]).transpose(0, 1)
