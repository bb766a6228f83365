"""3. The least-squares problem solved in one layer.

Rows are facts (the papers stack columns). Everything is computed in float64. What costs d_key³ depends on the second
moment alone and is done once per process and layer; `least_squares` says how the rest is done.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from factpatch.shift import LowRank
from factpatch.strategies.least_squares import Memory, System


class Solver(ABC):
    """Find the shift of one weight that sends keys to their residuals and does as little as possible otherwise."""

    @abstractmethod
    def prepare(self, second_moment: Tensor) -> System:
        """Return what a shift costs by itself, and the directions that it may use.

        Args:
            second_moment: C₀, (d_key, d_key), the mean second moment of keys on ordinary text.

        Raises:
            ValueError: the second moment does not fit the solver's settings.
        """

    def solve(self, system: System, keys: Tensor, residual: Tensor, earlier_keys: Tensor) -> LowRank:
        """Return the shift for one batch of facts.

        For one batch after another a `Memory` of the system does the same without starting over.

        Args:
            system: the result of `prepare` for this layer.
            keys: K, (n, d_key), activations.
            residual: R, (n, d_value), in hidden-state units, the layer's share already taken.
            earlier_keys: K_p, (m, d_key), keys of facts that this session edited before; m may be 0.

        Returns:
            Δ as factors of rank n: up (d_value, n), down (n, d_key), float64.

        Raises:
            ValueError: `keys` and `residual` hold different numbers of facts, or the widths disagree.
        """
        memory = Memory(system)
        memory.follow([earlier_keys] if len(earlier_keys) else [])
        return memory.solve(keys, residual)


@dataclass(frozen=True)
class Ridge(Solver):
    """Ridge regression weighted by the second moment: Δ = Rᵀ K (λ C₀ + K_pᵀ K_p + Kᵀ K)⁻¹.

    Source: MEMIT (arXiv:2210.07229), eq. 14; with earlier keys BLUE (arXiv:2502.03748), eq. 8.
    """

    weight: float = 15000.0
    """λ: how many tokens of ordinary text the preserved associations count for."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight={self.weight!r}: λ must be positive and finite, or the system is singular.")

    def prepare(self, second_moment: Tensor) -> System:
        """G = λ C₀."""
        factor, info = torch.linalg.cholesky_ex(self.weight * second_moment.double())
        if int(info) != 0:
            raise ValueError(
                f"second_moment: not positive definite (leading minor {int(info)} of {len(factor)}); it was read from "
                "too few tokens. Give a longer corpus: about ten tokens per key dimension."
            )
        return System(factor)


@dataclass(frozen=True)
class NullSpace(Solver):
    """Ridge regression inside the null space of ordinary keys: Δᵀ = (P (Kᵀ K + K_pᵀ K_p) + L2 I)⁻¹ P Kᵀ R, P = U Uᵀ.

    By the push-through identity that is Δᵀ = U X with the X that is best at G = L2 I.
    Source: AlphaEdit (arXiv:2410.02355), eq. 14.
    """

    threshold: float = 0.02
    """Directions whose eigenvalue in C₀ is below this count as unused by ordinary text."""
    l2: float = 10.0
    """L2, in squared key units."""

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"threshold={self.threshold!r}: must be positive.")
        if not self.l2 > 0:
            raise ValueError(f"l2={self.l2!r}: must be positive, or the system is singular.")

    def prepare(self, second_moment: Tensor) -> System:
        """G = L2 I, and U, (d_key, r): the eigenvectors of C₀ with eigenvalue below the threshold."""
        values, vectors = torch.linalg.eigh(second_moment.double())
        basis: Tensor = vectors[:, values < self.threshold]
        if basis.shape[1] == 0:
            raise ValueError(
                f"threshold={self.threshold}: no eigenvalue of the second moment is below it (the smallest is "
                f"{float(values[0]):.3g}, the median {float(values.median()):.3g}); raise the threshold."
            )
        return self.within(basis.contiguous())

    def within(self, basis: Tensor) -> System:
        """The system of a null space that is known already.

        Args:
            basis: U, (d_key, r), orthonormal; float64.
        """
        return System(basis.new_tensor(math.sqrt(self.l2)), basis)
