"""Find target values for a whole batch at once: every fact with its own δ, Adam state, stop and clamp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import packed_attention
from factpatch.model.precision import Precision, computing, precision_for
from factpatch.strategies.target import Target
from factpatch.values.frozen import FrozenRows, Losses, freeze
from factpatch.values.reading import SubjectRows, read_values
from factpatch.values.rows import optimization_rows

TOKENS_AT_ONCE = 1024
# Gradients of a float16 model are computed times this, since small ones would become zero; times less where that
# overflows. The result is divided by it again.
LOSS_SCALES = (1024.0, 32.0, 1.0)


@dataclass(frozen=True)
class TargetValues:
    """The outcome of the value optimization at one layer, one row per fact."""

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
        self.mean, self.square = self.mean[rows], self.square[rows]


def clamped(delta: Tensor, largest: Tensor) -> Tensor:
    """Project each vector of (..., d) onto the ball of radius `largest`, (...)."""
    norm = torch.linalg.vector_norm(delta, dim=-1)
    return torch.where(norm > largest, largest / norm, torch.ones_like(norm))[..., None] * delta


def optimize_values(
    lm: LanguageModel,
    facts: Sequence[Fact],
    layer: int,
    target: Target,
    contexts: Sequence[str],
    progress: Callable[[int], None] = lambda finished: None,
    tokens_at_once: int = TOKENS_AT_ONCE,
    precision: Precision | None = None,
) -> TargetValues:
    """Find, for every fact, the value at `layer` that makes the model say the new object.

    One forward and backward pass serves the whole batch. A step runs the layers above `layer` on the tokens from the
    subject's last token on; everything else is computed once and kept. The result does not depend on how the facts are
    batched, beyond rounding.

    Args:
        layer: where the δs are added and the value is wanted.
        target: the loss, the step size, the stops.
        contexts: templates, the bare prompt first.
        progress: called after each evaluation with the number of evaluations that will not be needed any more.
        tokens_at_once: largest number of suffix positions in one forward pass.
        precision: what to compute in, and what to return; by default what the model is stored in.

    Raises:
        FloatingPointError: a loss or a gradient is not finite.
    """
    subjects = SubjectRows.of(lm, facts, contexts[:1])
    present = torch.stack([read_values(lm, subjects, layer, site) for site in target.sites], dim=1)
    precision = precision or precision_for(lm)
    # A caller's inference mode would leave no gradients.
    with torch.inference_mode(False), lm.quiet(), packed_attention(lm), computing(lm, precision) as lm:
        present = present.to(lm.work_dtype)
        rows = optimization_rows(lm, facts, contexts)
        start = layer - 1 if target.inside else layer
        groups = freeze(lm, rows, start, tokens_at_once, present.device)
        return _Descent(lm, groups, layer, target, present).run(progress)


class _Descent:
    """The optimization of all facts' δ at one layer.

    Args:
        present: (n, sites, d_value), the unshifted activations on the bare prompts.
    """

    def __init__(
        self, lm: LanguageModel, groups: list[FrozenRows], layer: int, target: Target, present: Tensor
    ) -> None:
        self.lm = lm
        self.groups = groups
        self.layer = layer
        self.target = target
        self.present = present
        self.sites = [getattr(lm, site)(layer) for site in target.sites]
        self.norm = torch.linalg.vector_norm(present, dim=-1)

    def run(self, progress: Callable[[int], None]) -> TargetValues:
        target, present = self.target, self.present
        n, device = len(present), present.device
        delta = torch.zeros_like(present)
        evaluations = torch.zeros(n, dtype=torch.long, device=device)
        final_loss = torch.zeros(n, dtype=present.dtype, device=device)
        active = torch.arange(n, device=device)
        nll_weight = torch.ones_like(final_loss)
        adam = Adam(target.learning_rate, torch.zeros_like(present), torch.zeros_like(present))
        for evaluation in range(1, target.steps + 1):
            last = evaluation == target.steps
            losses, gradient = self._evaluate(delta[active], nll_weight, self.norm[active], with_gradient=not last)
            loss = self._total(losses, nll_weight, delta[active], self.norm[active])
            if not bool(torch.isfinite(loss).all() and torch.isfinite(gradient).all()):
                raise FloatingPointError(
                    f"the loss of the value optimization at layer {self.layer}, or its gradient, is not finite"
                )
            evaluations[active] = evaluation
            final_loss[active] = loss
            finished, nll_weight = target.judge(loss, losses.kl, losses.missed == 0)
            going = (~finished).nonzero()[:, 0]
            if last or len(going) == 0:
                progress(len(active) * (target.steps - evaluation + 1))
                break
            progress(len(active) + (len(active) - len(going)) * (target.steps - evaluation))
            if len(going) < len(active):
                self._keep(going, len(active))
                active, gradient, nll_weight = active[going], gradient[going], nll_weight[going]
                adam.keep(going)
            delta[active] = clamped(adam.update(delta[active], gradient), target.clamp * self.norm[active])
        values, written = present[:, -1] + delta[:, -1], delta[:, -1].clone()
        return TargetValues(values, written, evaluations, evaluations - 1, final_loss)

    def _keep(self, going: Tensor, active: int) -> None:
        """Drop the rows of finished facts."""
        renumbered = torch.full((active,), -1, device=going.device)
        renumbered[going] = torch.arange(len(going), device=going.device)
        self.groups[:] = [kept for group in self.groups if (kept := group.keep(renumbered)) is not None]

    def _decay(self, delta: Tensor, norm: Tensor) -> Tensor:
        decay: Tensor = self.target.weight_decay * (torch.linalg.vector_norm(delta, dim=-1) / norm**2).sum(dim=-1)
        return decay

    def _total(self, losses: Losses, nll_weight: Tensor, delta: Tensor, norm: Tensor) -> Tensor:
        return nll_weight * losses.nll + self.target.kl_factor * losses.kl + self._decay(delta, norm)

    def _evaluate(self, delta: Tensor, nll_weight: Tensor, norm: Tensor, with_gradient: bool) -> tuple[Losses, Tensor]:
        """Return what the active facts' losses consist of, and the loss's gradient, zero if it is not asked for."""
        for scale in LOSS_SCALES if self.lm.dtype == torch.float16 else (1.0,):
            found = self._evaluate_scaled(delta, nll_weight, norm, scale if with_gradient else 0.0)
            if bool(torch.isfinite(found[1]).all()):
                break
        return found

    def _evaluate_scaled(self, delta: Tensor, nll_weight: Tensor, norm: Tensor, scale: float) -> tuple[Losses, Tensor]:
        delta = delta.detach().requires_grad_(scale > 0)
        nll, kl, missed = (torch.zeros_like(nll_weight) for _ in range(3))
        with torch.set_grad_enabled(scale > 0):
            for group in self.groups:
                part = group.losses(self.lm, self.sites, delta)
                if scale > 0:
                    # Now, so that one micro-batch's activations are alive at a time.
                    loss = nll_weight * part.nll + self.target.kl_factor * part.kl
                    (scale * loss.sum()).backward()  # type: ignore[no-untyped-call]
                nll, kl, missed = nll + part.nll.detach(), kl + part.kl.detach(), missed + part.missed
            if scale > 0:
                (scale * self._decay(delta, norm).sum()).backward()  # type: ignore[no-untyped-call]
        gradient: Tensor = torch.zeros_like(delta) if delta.grad is None else delta.grad / scale
        return Losses(nll, kl, missed), gradient
