"""1. Which activation is optimized, and how far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The value optimization: what it minimizes, how it moves and when it stops.

    For one fact and one layer, Adam minimizes over δ, added to the activation at the subject's last token,
    mean over contexts of NLL + `kl_factor` · KL + `weight_decay` · ‖δ‖ / ‖h‖², with h the activation of the bare
    prompt. A member says which activations these are; where there are several, each has its δ, its decay and its clamp.
    Source: ROME (arXiv:2202.05262), eq. 4; MEMIT (arXiv:2210.07229), eq. 15.
    """

    sites: ClassVar[tuple[str, ...]]
    """Whose outputs get a δ of their own: names of `LanguageModel` methods that take a layer. The value of the last one
    is the target value, and the residual is measured there."""
    inside: ClassVar[bool]
    """Whether a site lies before the end of the block, so that the block itself runs again at each step."""

    steps: int = 25
    """Largest number of loss evaluations per fact and layer; one fewer updates."""
    learning_rate: float = 0.5
    """Step size of Adam, in units of the activation."""
    clamp: float = 0.75
    """Largest ‖δ‖ as a multiple of ‖h‖."""
    weight_decay: float = 0.5
    """Weight of ‖δ‖ / ‖h‖² in the loss."""
    kl_factor: float = 0.0625
    """Weight of KL(with δ ‖ before) on "{subject} is a", which keeps the subject's essence."""
    stop_loss: float = 0.05
    """A fact is finished when its loss is below this, in nats."""

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "clamp"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be positive and finite.")
        for name in ("weight_decay", "kl_factor", "stop_loss"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: must not be negative.")

    @property
    def site(self) -> str:
        """Where the target value is read."""
        return self.sites[-1]

    def judge(self, loss: Tensor, kl: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """Say after an evaluation which facts are finished, and what their NLL counts for at the next one.

        Args:
            loss: (n,), in nats.
            kl: (n,), the KL without its factor, in nats.
            predicted: (n,), whether every target token is the most probable one in every context.

        Returns:
            Two (n,) tensors: finished, and the weight of the NLL.
        """
        return loss < self.stop_loss, torch.ones_like(loss)


@dataclass(frozen=True)
class HiddenState(Target):
    """Optimize the output of the whole block: the residual stream behind it. Source: MEMIT (arXiv:2210.07229)."""

    sites: ClassVar[tuple[str, ...]] = ("block",)
    inside: ClassVar[bool] = False


@dataclass(frozen=True)
class AttentionAndMlp(Target):
    """Optimize the outputs of the attention and of the MLP at once; only the MLP's is written.

    The loss is c · NLL + `kl_factor` · KL + `weight_decay` · (‖δ_a‖ / ‖a‖² + ‖δ_m‖ / ‖m‖²), each δ with its own clamp.
    Once a fact is predicted, c becomes `learned_weight`, so that the KL leads, and the fact is finished when the KL is
    below `stop_kl`. Source: PMET (arXiv:2308.08742).
    """

    sites: ClassVar[tuple[str, ...]] = ("attention", "mlp")
    inside: ClassVar[bool] = True

    learned_weight: float = 0.1
    """c while every target token is the most probable one in every context; 1 otherwise."""
    stop_kl: float = 0.01
    """A predicted fact is finished when its KL is below this, in nats."""

    def judge(self, loss: Tensor, kl: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        finished = (loss < self.stop_loss) | (predicted & (kl < self.stop_kl))
        return finished, torch.where(predicted, self.learned_weight, 1.0).to(loss)
