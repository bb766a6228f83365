"""Find target values for a whole batch at once: every fact with its own δ, Adam state, stop and clamp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.strategies.target import Target
from factpatch.values.frozen import FrozenRows
from factpatch.values.reading import SubjectRows, read_values
from factpatch.values.rows import micro_batches, optimization_rows

TOKENS_AT_ONCE = 1024


@dataclass(frozen=True)
class TargetValues:
    """The outcome of the value optimization at one layer, one row per fact."""

    values: Tensor
    """(n, d_value): activation plus δ."""
    delta: Tensor
    """(n, d_value)"""
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
    """Project each row of (n, d) onto the ball of radius `largest`, (n,)."""
    norm = torch.linalg.vector_norm(delta, dim=1)
    return torch.where(norm > largest, largest / norm, torch.ones_like(norm))[:, None] * delta


def optimize_values(
    lm: LanguageModel,
    facts: Sequence[Fact],
    layer: int,
    target: Target,
    contexts: Sequence[str],
    progress: Callable[[int], None] = lambda finished: None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> TargetValues:
    """Find, for every fact, the value at `layer` that makes the model say the new object.

    One forward and backward pass serves the whole batch. A step runs the layers above `layer` on the tokens from the
    subject's last token on; everything else is computed once and kept. The result does not depend on how the facts are
    batched, beyond rounding.

    Args:
        layer: where δ is added and the value is wanted.
        target: the loss, the step size, the stops.
        contexts: templates, the bare prompt first.
        progress: called after each evaluation with the number of evaluations that will not be needed any more.
        tokens_at_once: largest number of suffix positions in one forward pass.

    Raises:
        FloatingPointError: a loss or a gradient is not finite.
    """
    with lm.quiet():
        rows = optimization_rows(lm, facts, contexts)
        groups = [FrozenRows.capture(lm, group, layer) for group in micro_batches(rows, tokens_at_once)]
        start = read_values(lm, SubjectRows.of(lm, facts, contexts[:1]), layer, target.site)
        return _descend(lm, groups, layer, target, start, progress)


def _descend(
    lm: LanguageModel,
    groups: list[FrozenRows],
    layer: int,
    target: Target,
    start: Tensor,
    progress: Callable[[int], None],
) -> TargetValues:
    n = len(start)
    delta = torch.zeros_like(start)
    evaluations = torch.zeros(n, dtype=torch.long, device=start.device)
    final_loss = torch.zeros(n, dtype=start.dtype, device=start.device)
    active = torch.arange(n, device=start.device)
    norm = torch.linalg.vector_norm(start, dim=1)
    adam = Adam(target.learning_rate, torch.zeros_like(start), torch.zeros_like(start))
    for evaluation in range(1, target.steps + 1):
        last = evaluation == target.steps
        loss, gradient = _evaluate(lm, groups, layer, target, delta[active], norm[active], with_gradient=not last)
        if not bool(torch.isfinite(loss).all() and torch.isfinite(gradient).all()):
            raise FloatingPointError(f"the loss of the value optimization at layer {layer} is not finite")
        evaluations[active] = evaluation
        final_loss[active] = loss
        going = (loss >= target.stop_loss).nonzero()[:, 0]
        if last or len(going) == 0:
            progress(len(active) * (target.steps - evaluation + 1))
            break
        progress(len(active) + (len(active) - len(going)) * (target.steps - evaluation))
        if len(going) < len(active):
            renumbered = torch.full_like(active, -1)
            renumbered[going] = torch.arange(len(going), device=going.device)
            groups[:] = [kept for group in groups if (kept := group.keep(renumbered)) is not None]
            active, gradient = active[going], gradient[going]
            adam.keep(going)
        delta[active] = clamped(adam.update(delta[active], gradient), target.clamp * norm[active])
    return TargetValues(start + delta, delta, evaluations, evaluations - 1, final_loss)


def _evaluate(
    lm: LanguageModel,
    groups: Sequence[FrozenRows],
    layer: int,
    target: Target,
    delta: Tensor,
    norm: Tensor,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return every active fact's loss, (n,), and its gradient, (n, d_value), which is zero if it is not asked for."""
    delta = delta.detach().requires_grad_(with_gradient)
    total = torch.zeros_like(norm)
    with torch.set_grad_enabled(with_gradient):
        for group in groups:
            nll, kl = group.losses(lm, layer, delta, target.kl_factor)
            part = nll + kl
            if with_gradient:
                # Now, so that one micro-batch's activations are alive at a time.
                part.sum().backward()  # type: ignore[no-untyped-call]
            total += part.detach()
        decay = target.weight_decay * torch.linalg.vector_norm(delta, dim=1) / norm**2
        if with_gradient:
            decay.sum().backward()
    return total + decay.detach(), delta.grad if delta.grad is not None else torch.zeros_like(delta)
