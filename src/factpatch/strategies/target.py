"""1. Which activation is optimized, and how far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Target:
    """The value optimization: what it minimizes, how it moves and when it stops.

    For one fact and one layer, Adam minimizes over δ, added to the activation at the subject's last token,
    mean over contexts of NLL + `kl_factor` · KL + `weight_decay` · ‖δ‖ / ‖h‖², with h the activation of the bare
    prompt. A member says which activation that is.
    Source: ROME (arXiv:2202.05262), eq. 4; MEMIT (arXiv:2210.07229), eq. 15.
    """

    site: ClassVar[str]
    """Whose output δ is added to: the name of a `LanguageModel` method that takes a layer."""

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


@dataclass(frozen=True)
class HiddenState(Target):
    """Optimize the output of the whole block: the residual stream behind it. Source: MEMIT (arXiv:2210.07229)."""

    site: ClassVar[str] = "block"
