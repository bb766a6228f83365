"""The loss of a batch of facts at any δ, and the descent on all facts' δ at once, in steps that wait for nothing.

The target says what the loss consists of, when a fact is finished and where δ may go; this module schedules rows.

    micro-batches of rows ──▶ Loss.evaluate ──▶ Target.weigh, penalty ──▶ gradient
              ▲                                                              │
              └── facts that are finished leave ◀── Target.judge ◀── Adam, Target.project

Two axes must not be confused. δ, Adam's moments and the target's state have one row per *fact*, in the order of the
batch. A micro-batch has one row per *text* of a fact, sorted by length, so the texts of a fact lie in several
micro-batches, each of which adds its share to the fact's loss and gradient. When facts leave, the others are renumbered
in both: `Loss.keep` in the micro-batches, `State.rows` and `Adam.keep` in what is held per fact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces
from factpatch.strategies.target import Evaluation, Found, Kept, Target
from factpatch.support.progress import settle
from factpatch.values.budget import tokens_that_fit
from factpatch.values.frozen import Frozen
from factpatch.values.micro_batch import FrozenRows, Losses
from factpatch.values.rows import micro_batches

# The loss of a float16 model is multiplied by the first of these, or small gradients would become zero; by a later one
# if that overflows. The gradient is divided by it again.
LOSS_SCALES = (1024.0, 32.0, 1.0)
# Evaluations from one look at the stops to the next, by the kind of device. At a look the host waits until the device
# has finished all its work; on a CPU there is nothing to wait for.
LOOK_EVERY = {"cpu": 1}
LOOK_EVERY_ELSEWHERE = 4


@dataclass
class Adam:
    """Adam with PyTorch's defaults on rows that can leave; all rows start together, so they share the step count."""

    learning_rate: float
    mean: Tensor
    square: Tensor
    step: int = 0

    def update(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Return the parameter after one step. Source: arXiv:1412.6980, algorithm 1."""
        self.step += 1
        self.mean = self.mean.lerp(gradient, 0.1)
        self.square = 0.999 * self.square + 0.001 * gradient * gradient
        scale: Tensor = (self.square.sqrt() / (1 - 0.999**self.step) ** 0.5).add_(1e-8)
        return parameter - self.learning_rate / (1 - 0.9**self.step) * self.mean / scale

    def keep(self, rows: Tensor) -> None:
        """Drop the others."""
        self.mean, self.square = self.mean[rows], self.square[rows]


@dataclass
class Momentum:
    """Steps of a given length along the gradient with momentum; one δ moves as fast as another.

    The length of a gradient says little about how far to go: it is largest where the loss is hopeless, and Adam, which
    levels it in every coordinate, walks along the signs of noise.
    """

    length: Tensor
    """(n, sites): of the first step."""
    steps: int
    mean: Tensor
    step: int = 0

    def update(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Return the parameter after one step, whose length falls linearly to a tenth."""
        direction = gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        self.mean = 0.5 * self.mean + direction
        length = self.length * max(1 - self.step / self.steps, 0.1)
        self.step += 1
        norm = self.mean.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        moved: Tensor = parameter - length[..., None] * self.mean / norm
        return moved

    def keep(self, rows: Tensor) -> None:
        """Drop the others."""
        self.length, self.mean = self.length[rows], self.mean[rows]


@dataclass
class _Part:
    """The contexts of one turn."""

    groups: Sequence[FrozenRows]
    share: float
    """Of the mean over all contexts."""


class Loss:
    """The loss of a batch of facts at one layer, and its gradient, for any δ.

    Args:
        frozen: The rows of the batch.
        present: (n, sites, d_value), the unshifted activations on the bare prompts.
        norm: (n, sites), the ‖h‖ that decay, clamp and stride refer to.
        tokens: Largest number of suffix tokens in a micro-batch; by default as many as fit.
    """

    def __init__(
        self,
        lm: LanguageModel,
        frozen: Frozen,
        layer: int,
        target: Target,
        present: Tensor,
        norm: Tensor,
        tokens: int | None = None,
    ) -> None:
        self.lm = lm
        self.layer = layer
        self.target = target
        self.present = present
        self.norm = norm
        self.sites = [getattr(lm, site)(layer) for site in target.sites]
        tokens = tokens or tokens_that_fit(lm, frozen, self.sites, torch.zeros_like(present))
        # Chunks of answers differ in length, and so do the contexts of facts that have one.
        turns = frozen.turns(1 if target.chunk else min(target.turns, target.evaluations))
        self.parts = [_Part(part.micro_batches(tokens), share) for part, share in turns]
        if len(self.parts) > 1:
            self._take_references(frozen, tokens)

    def _take_references(self, frozen: Frozen, tokens: int) -> None:
        """Read what the KL refers to, once for all turns: the later ones are read first when δ has moved."""
        nothing = torch.zeros_like(self.present)
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for rows in micro_batches([row for row in frozen.rows if not row.targets], tokens):
                group = frozen.micro_batch(rows)
                group.losses(self.lm, self.sites, nothing, self.target)
                assert group.reference is not None
                found |= {row.fact: reference for row, reference in zip(rows, group.reference, strict=True)}
        for group in (group for part in self.parts for group in part.groups):
            facts = [row.fact for row in group.rows if not row.targets]
            group.reference = torch.stack([found[fact] for fact in facts]) if facts else None

    def evaluate(self, delta: Tensor, kept: Kept, gradient: bool = True, turn: int = 0) -> Evaluation:
        """Run the facts that are left with δ, (n, sites, d_value); the host waits only to choose float16's scale.

        Args:
            turn: Which evaluation this is, from 0: it chooses the contexts that are read, if they take turns.
        """
        part = self.parts[turn % len(self.parts)]
        scales = (0.0,) if not gradient else LOSS_SCALES if self.lm.dtype == torch.float16 else (1.0,)
        for scale in scales:
            losses, slope = self._run(part, delta, kept, scale)
            if scale == scales[-1] or bool(torch.isfinite(slope).all()):
                break
        loss = self.target.weigh(losses.nll, losses.kl, kept) + self.target.penalty(delta, self.norm)
        return Evaluation(loss, losses.nll, losses.kl, losses.missed == 0, losses.margin, slope)

    def keep(self, staying: Sequence[int]) -> Tensor:
        """Drop the other facts; return the rows of those that stay."""
        renumbered = [-1] * len(self.norm)
        for number, row in enumerate(staying):
            renumbered[row] = number
        for part in self.parts:
            part.groups = [left for group in part.groups if (left := group.keep(renumbered)) is not None]
        rows = torch.tensor(staying, dtype=torch.long, device=self.present.device)
        self.norm = self.norm[rows]
        return rows

    def _run(self, some: _Part, delta: Tensor, kept: Kept, scale: float) -> tuple[Losses, Tensor]:
        """The sums over all rows and, unless `scale` is 0, the gradient, computed from `scale` times the loss."""
        delta = delta.detach().requires_grad_(scale > 0)
        nll, kl, missed = (delta.new_zeros(len(delta)) for _ in range(3))
        margin = torch.full_like(nll, torch.inf)
        gradient = torch.zeros_like(delta)

        def evaluate(group: FrozenRows) -> tuple[Losses, Tensor | None]:
            part = group.losses(self.lm, self.sites, delta, self.target)
            if some.share < 1:  # the mean over the contexts that are read
                part = replace(part, nll=part.nll / some.share)
            if scale == 0:
                return part, None
            # The backward pass runs here, so that only one micro-batch's activations are alive at a time. Its result
            # is added outside: if memory runs out and `in_pieces` retries with halves, nothing is counted twice.
            loss = self.target.weigh(part.nll, part.kl, kept)
            (slope,) = torch.autograd.grad(scale * loss.sum(), delta)
            return Losses(part.nll.detach(), part.kl.detach(), part.missed, part.margin), slope

        groups = []
        with torch.set_grad_enabled(scale > 0):
            for whole in some.groups:
                for group, (part, slope) in in_pieces(evaluate, whole, FrozenRows.halves, what="text of a fact"):
                    groups.append(group)
                    nll, kl, missed = nll + part.nll, kl + part.kl, missed + part.missed
                    margin = margin.minimum(part.margin)
                    gradient = gradient if slope is None else gradient + slope
            if scale > 0:
                (slope,) = torch.autograd.grad(scale * self.target.penalty(delta, self.norm).sum(), delta)
                gradient = (gradient + slope) / scale
        some.groups = groups  # what had to be halved stays so
        return Losses(nll, kl, missed, margin), gradient.detach()


@dataclass
class State:
    """Facts that are being optimized, one row each, on δ's device."""

    delta: Tensor
    """(n, sites, d_value)"""
    kept: Kept
    """What the target keeps of each fact."""
    going: Tensor
    """Whether the fact has not reached a stop; once it has, nothing of it changes any more."""
    broken: Tensor
    """Whether a loss or a gradient was not finite."""
    evaluations: Tensor
    updates: Tensor
    predictions: Tensor
    """In how many evaluations every target token was the most probable one in every context."""
    loss: Tensor
    recent: Kept
    """What the last turns found, (n, turns) each: an evaluation reads a part of the contexts, and stops follow all."""

    @classmethod
    def of(cls, present: Tensor, kept: Kept, turns: int) -> State:
        """The initial state, given (n, sites, d_value) unshifted activations."""
        none = torch.full((len(present), turns), -torch.inf, dtype=present.dtype, device=present.device)
        no = torch.zeros(len(present), dtype=torch.bool, device=present.device)
        return cls(
            delta=torch.zeros_like(present),
            kept=kept,
            going=~no,
            broken=no,
            evaluations=torch.zeros_like(no, dtype=torch.long),
            updates=torch.zeros_like(no, dtype=torch.long),
            predictions=torch.zeros_like(no, dtype=torch.long),
            loss=torch.zeros_like(no, dtype=present.dtype),
            recent={"loss": -none, "margin": none, "predicted": torch.zeros_like(none, dtype=torch.bool)},
        )

    def rows(self, rows: Tensor) -> State:
        """Only these rows."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        kept, recent = ({name: value[rows] for name, value in parts.pop(part).items()} for part in ("kept", "recent"))
        return State(kept=kept, recent=recent, **{name: value[rows] for name, value in parts.items()})

    def over_turns(self, found: Evaluation, turn: int) -> Evaluation:
        """An evaluation with what the turns before it found of the other contexts."""
        for name, value in self.recent.items():
            value[:, turn % value.shape[1]] = getattr(found, name)
        recent = self.recent
        return replace(
            found,
            loss=recent["loss"].mean(dim=1),
            margin=recent["margin"].amin(dim=1),
            predicted=recent["predicted"].all(dim=1),
        )


class Descent:
    """The optimization of all facts' δ at one layer.

    Stops are kept on the device and read every few evaluations. Only then do finished facts leave the batch; until then
    they are evaluated without effect, so how often the stops are read changes nothing beyond rounding.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = copy(loss)  # facts leave it, and the target may evaluate the whole batch afterwards
        self.target = loss.target
        self.loss.parts = [copy(part) for part in loss.parts]
        self.state = State.of(loss.present, self.target.begin(loss.present), len(loss.parts))
        zero = torch.zeros_like(loss.present)
        self.optimizer: Adam | Momentum = Adam(self.target.learning_rate, zero, zero)
        if self.target.stride:
            self.optimizer = Momentum(self.target.stride * loss.norm, self.target.steps, zero)

    def run(self, progress: Callable[[int], None]) -> Found:
        """Run until every fact is finished or has used its steps; return where each ended, in the batch's order."""
        steps, device = self.target.evaluations, self.loss.present.device
        every = LOOK_EVERY.get(device.type, LOOK_EVERY_ELSEWHERE)
        found = Found(**{one.name: getattr(self.state, one.name).clone() for one in fields(Found)})
        active = torch.arange(len(self.state.going), device=device)  # which facts of `found` the rows are of
        left = len(active) * steps  # evaluations not yet reported as done or not needed
        for evaluation in range(1, steps + 1):
            last = evaluation == steps
            self.step(update=not last or not self.target.last_look, turn=evaluation - 1)
            if evaluation % every and not last:
                continue
            going = self._look()
            staying = [] if last else going
            settle(len(found.loss) - len(staying), len(found.loss))
            progress(left - len(staying) * (steps - evaluation))
            left = len(staying) * (steps - evaluation)
            if len(staying) < len(active):
                for field in fields(found):
                    getattr(found, field.name)[active] = getattr(self.state, field.name)
                rows = self.loss.keep(staying)
                self.state = self.state.rows(rows)
                self.optimizer.keep(rows)
                active = active[rows]
            if not staying:
                break
        return found

    def step(self, update: bool = True, turn: int = 0) -> None:
        """Evaluate all facts and move those that are not finished."""
        state, target = self.state, self.target
        found = self.loss.evaluate(state.delta, state.kept, update, turn)
        finite = torch.isfinite(found.loss) & torch.isfinite(found.gradient).flatten(1).all(dim=1)
        found = state.over_turns(found, turn)
        state.broken = state.broken | (state.going & ~finite)
        state.evaluations = state.evaluations + state.going
        state.predictions = state.predictions + (state.going & found.predicted)
        state.loss = torch.where(state.going, found.loss, state.loss)
        # What a finished fact keeps is updated too, which has no effect: its loss and its δ are frozen.
        finished, state.kept = target.judge(found, state.kept)
        finished = finished | (found.predicted & (state.evaluations >= target.enough))
        if target.enough_predictions:
            finished = finished | (state.predictions >= target.enough_predictions)
        if target.enough_margin:
            finished = finished | (found.margin >= target.enough_margin)
        state.going = state.going & ~finished
        if update:
            moved = target.project(self.optimizer.update(state.delta, found.gradient), self.loss.norm)
            state.delta = torch.where(state.going[:, None, None], moved, state.delta)
            state.updates = state.updates + state.going

    def _look(self) -> list[int]:
        """Wait for the device and return the rows of the facts that are not finished."""
        going, broken = torch.stack([self.state.going, self.state.broken]).tolist()
        if any(broken):
            raise FloatingPointError(
                f"the loss of the value optimization at layer {self.loss.layer}, or its gradient, is not finite"
            )
        return [row for row, goes in enumerate(going) if goes]
