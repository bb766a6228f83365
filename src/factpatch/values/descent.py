"""The descent on all facts' δ at once, in steps that wait for nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces
from factpatch.strategies.target import Target
from factpatch.values.budget import tokens_that_fit
from factpatch.values.frozen import Frozen
from factpatch.values.micro_batch import FrozenRows, Losses

# Gradients of a float16 model are computed times this, since small ones would become zero; times less where that
# overflows. The result is divided by it again.
LOSS_SCALES = (1024.0, 32.0, 1.0)
# Evaluations from one look at the stops to the next, by the kind of device. A look makes the host wait until the device
# has done all that it was asked for; on a CPU there is nothing to wait for.
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


def clamped(delta: Tensor, largest: Tensor) -> Tensor:
    """Project each vector of (..., d) onto the ball of radius `largest`, (...)."""
    norm = torch.linalg.vector_norm(delta, dim=-1)
    return torch.where(norm > largest, largest / norm, torch.ones_like(norm))[..., None] * delta


@dataclass
class State:
    """Facts that are being optimized, one row each; all on δ's device."""

    delta: Tensor
    """(n, sites, d_value)"""
    norm: Tensor
    """(n, sites): of the unshifted activations."""
    nll_weight: Tensor
    going: Tensor
    """Whether no stop has been reached. Of a fact that has reached one, nothing moves any more."""
    broken: Tensor
    """Whether a loss or a gradient was not finite."""
    evaluations: Tensor
    loss: Tensor

    @classmethod
    def of(cls, present: Tensor) -> State:
        """The beginning.

        Args:
            present: (n, sites, d_value), the unshifted activations.
        """
        no = torch.zeros(len(present), dtype=torch.bool, device=present.device)
        return cls(
            delta=torch.zeros_like(present),
            norm=torch.linalg.vector_norm(present, dim=-1),
            nll_weight=torch.ones_like(no, dtype=present.dtype),
            going=~no,
            broken=no,
            evaluations=torch.zeros_like(no, dtype=torch.long),
            loss=torch.zeros_like(no, dtype=present.dtype),
        )

    def keep(self, rows: Tensor) -> None:
        """Drop the others."""
        for name, value in vars(self).items():
            setattr(self, name, value[rows])

    def put(self, rows: Tensor, other: State) -> None:
        """Take these rows over from another state, which holds no others."""
        for name, value in vars(other).items():
            getattr(self, name)[rows] = value


class Descent:
    """The optimization of all facts' δ at one layer.

    Stops are kept on the device and looked at every few evaluations. Only then do finished facts leave the batch; until
    then they are evaluated on without effect. So it changes nothing beyond rounding how often one looks.

    Args:
        frozen: the rows of the batch.
        present: (n, sites, d_value), the unshifted activations on the bare prompts.
        tokens: largest number of suffix tokens in a micro-batch; by default what fits.
    """

    def __init__(
        self,
        lm: LanguageModel,
        frozen: Frozen,
        layer: int,
        target: Target,
        present: Tensor,
        tokens: int | None = None,
    ) -> None:
        self.lm = lm
        self.layer = layer
        self.target = target
        self.present = present
        self.sites = [getattr(lm, site)(layer) for site in target.sites]
        self.state = State.of(present)
        tokens = tokens or tokens_that_fit(lm, frozen, self.sites, self.state.delta)
        self.groups: Sequence[FrozenRows] = frozen.micro_batches(tokens)
        self.adam = Adam(target.learning_rate, torch.zeros_like(present), torch.zeros_like(present))

    def run(self, progress: Callable[[int], None]) -> State:
        """Go on until every fact is finished or has used its steps; return where all of them end, in their order."""
        steps, present = self.target.steps, self.present
        every = LOOK_EVERY.get(present.device.type, LOOK_EVERY_ELSEWHERE)
        found = State.of(present)
        active = torch.arange(len(present), device=present.device)
        left = len(active) * steps
        for evaluation in range(1, steps + 1):
            last = evaluation == steps
            self.step(update=not last)
            if evaluation % every and not last:
                continue
            going = self._look()
            staying = [] if last else going
            progress(left - len(staying) * (steps - evaluation))
            left = len(staying) * (steps - evaluation)
            if len(staying) < len(active):
                found.put(active, self.state)
                active = active[self._keep(staying)]
            if not staying:
                break
        return found

    def step(self, update: bool = True) -> None:
        """Evaluate all facts and move those that go on. The host waits for nothing, but with float16 for the scale."""
        state, target = self.state, self.target
        losses, gradient = self._evaluate(with_gradient=update)
        loss = state.nll_weight * losses.nll + target.kl_factor * losses.kl + self._decay(state.delta)
        finite = torch.isfinite(loss) & torch.isfinite(gradient).flatten(1).all(dim=1)
        state.broken = state.broken | (state.going & ~finite)
        state.evaluations = state.evaluations + state.going
        state.loss = torch.where(state.going, loss, state.loss)
        finished, state.nll_weight = target.judge(loss, losses.kl, losses.missed == 0)
        state.going = state.going & ~finished
        if update:
            moved = clamped(self.adam.update(state.delta, gradient), target.clamp * state.norm)
            state.delta = torch.where(state.going[:, None, None], moved, state.delta)

    def _look(self) -> list[int]:
        """Wait for the device and return the rows of the facts that go on."""
        going, broken = torch.stack([self.state.going, self.state.broken]).tolist()
        if any(broken):
            raise FloatingPointError(
                f"the loss of the value optimization at layer {self.layer}, or its gradient, is not finite"
            )
        return [row for row, goes in enumerate(going) if goes]

    def _keep(self, staying: Sequence[int]) -> Tensor:
        """Drop the rows of finished facts; return those that stay."""
        renumbered = [-1] * len(self.state.going)
        for number, row in enumerate(staying):
            renumbered[row] = number
        self.groups = [kept for group in self.groups if (kept := group.keep(renumbered)) is not None]
        rows = torch.tensor(staying, dtype=torch.long, device=self.present.device)
        self.state.keep(rows)
        self.adam.keep(rows)
        return rows

    def _decay(self, delta: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(delta, dim=-1)
        decay: Tensor = self.target.weight_decay * (norms / self.state.norm**2).sum(dim=-1)
        return decay

    def _evaluate(self, with_gradient: bool) -> tuple[Losses, Tensor]:
        """Return what the facts' losses consist of, and the loss's gradient, zero if it is not asked for."""
        if not with_gradient:
            return self._losses(0.0)
        if self.lm.dtype != torch.float16:
            return self._losses(1.0)
        for scale in LOSS_SCALES:
            found = self._losses(scale)
            if bool(torch.isfinite(found[1]).all()):
                break
        return found

    def _losses(self, scale: float) -> tuple[Losses, Tensor]:
        """The facts' losses and, unless `scale` is 0, the gradient, computed times `scale` and divided by it again."""
        state = self.state
        delta = state.delta.detach().requires_grad_(scale > 0)
        nll, kl, missed = (torch.zeros_like(state.loss) for _ in range(3))
        gradient = torch.zeros_like(state.delta)

        def evaluate(group: FrozenRows) -> tuple[Losses, Tensor | None]:
            part = group.losses(self.lm, self.sites, delta)
            if scale == 0:
                return part, None
            # Now, so that one micro-batch's activations are alive at a time; and apart from the other gradients, which
            # must not hold half of this one if memory does not suffice.
            loss = state.nll_weight * part.nll + self.target.kl_factor * part.kl
            (slope,) = torch.autograd.grad(scale * loss.sum(), delta)
            return Losses(part.nll.detach(), part.kl.detach(), part.missed), slope

        groups = []
        with torch.set_grad_enabled(scale > 0):
            for whole in self.groups:
                for group, (part, slope) in in_pieces(evaluate, whole, FrozenRows.halves, what="text of a fact"):
                    groups.append(group)
                    nll, kl, missed = nll + part.nll, kl + part.kl, missed + part.missed
                    gradient = gradient if slope is None else gradient + slope
            if scale > 0:
                (slope,) = torch.autograd.grad(scale * self._decay(delta).sum(), delta)
                gradient = (gradient + slope) / scale
        self.groups = groups  # what had to be halved stays so
        return Losses(nll, kl, missed), gradient
