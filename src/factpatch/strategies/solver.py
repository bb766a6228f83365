"""3. The least-squares problem solved in one layer.

Rows are facts (the papers stack columns). Everything is computed in float64 and costs triangular solves and a system as
large as the number of facts; what costs d_key³ depends on the second moment alone and is done once per model and layer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from factpatch.shift import LowRank


class Solver(ABC):
    """Find the shift of one weight that sends keys to their residuals and does as little as possible otherwise."""

    @abstractmethod
    def prepare(self, second_moment: Tensor) -> Tensor:
        """Return what `solve` needs of C₀, the (d_key, d_key) mean second moment of keys on ordinary text.

        It depends on nothing else, so that an editor computes it once per layer.
        """

    @abstractmethod
    def solve(self, prepared: Tensor, keys: Tensor, residual: Tensor, earlier_keys: Tensor) -> LowRank:
        """Return the shift for one batch of facts.

        Args:
            prepared: the result of `prepare` for this layer.
            keys: K, (n, d_key), activations.
            residual: R, (n, d_value), in hidden-state units, the layer's share already taken.
            earlier_keys: K_p, (m, d_key), keys of facts that this session edited before; m may be 0.

        Returns:
            Δ as factors of rank n: up (d_value, n), down (n, d_key), float64.

        Raises:
            ValueError: `keys` and `residual` hold different numbers of facts, or the widths disagree.
        """


def _stacked(keys: Tensor, residual: Tensor, earlier_keys: Tensor, d_key: int) -> Tensor:
    """Check the shapes and return Z = [K_p; K], (m + n, d_key), in float64."""
    if keys.shape[0] != residual.shape[0]:
        raise ValueError(
            f"keys hold {keys.shape[0]} facts and residual {residual.shape[0]}; they must be the same facts."
        )
    for name, tensor in (("keys", keys), ("earlier_keys", earlier_keys)):
        if tensor.shape[1] != d_key:
            raise ValueError(f"{name} has width {tensor.shape[1]}, but the second moment has {d_key}.")
    return torch.cat([earlier_keys.to(keys), keys]).double()


def _last_columns(system: Tensor, n: int) -> Tensor:
    """Solve the symmetric positive definite `system` for the last n columns of the identity."""
    unit = torch.eye(system.shape[0], dtype=system.dtype, device=system.device)[:, -n:]
    return torch.cholesky_solve(unit, torch.linalg.cholesky(system))


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

    def prepare(self, second_moment: Tensor) -> Tensor:
        """The lower Cholesky factor L of λ C₀."""
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(self.weight * second_moment.double())
        if int(info) != 0:
            raise ValueError(
                f"second_moment: not positive definite (leading minor {int(info)} of {second_moment.shape[0]}); it was "
                "read from too few tokens. Give a longer corpus: about ten tokens per key dimension."
            )
        return factor

    def solve(self, prepared: Tensor, keys: Tensor, residual: Tensor, earlier_keys: Tensor) -> LowRank:
        """See `Solver.solve`. With λC₀ = L Lᵀ and Y = L⁻¹ Zᵀ, Woodbury gives Δᵀ = L⁻ᵀ Y (I + Yᵀ Y)⁻¹ E R; E picks K."""
        z = _stacked(keys, residual, earlier_keys, prepared.shape[0])
        y = torch.linalg.solve_triangular(prepared, z.T, upper=False)
        gram = y.T @ y
        gram.diagonal().add_(1.0)
        down = torch.linalg.solve_triangular(prepared.T, y @ _last_columns(gram, keys.shape[0]), upper=True)
        return LowRank(up=residual.double().T, down=down.T)


@dataclass(frozen=True)
class NullSpace(Solver):
    """Ridge regression inside the null space of ordinary keys: Δᵀ = (P (Kᵀ K + K_pᵀ K_p) + L2 I)⁻¹ P Kᵀ R, P = U Uᵀ.

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

    def prepare(self, second_moment: Tensor) -> Tensor:
        """U, (d_key, r): the eigenvectors of C₀ with eigenvalue below the threshold."""
        values, vectors = torch.linalg.eigh(second_moment.double())
        basis: Tensor = vectors[:, values < self.threshold]
        if basis.shape[1] == 0:
            raise ValueError(
                f"threshold={self.threshold}: no eigenvalue of the second moment is below it (the smallest is "
                f"{float(values[0]):.3g}, the median {float(values.median()):.3g}); raise the threshold."
            )
        return basis.contiguous()

    def solve(self, prepared: Tensor, keys: Tensor, residual: Tensor, earlier_keys: Tensor) -> LowRank:
        """See `Solver.solve`. With Q = U (Uᵀ Zᵀ), the push-through identity gives Δᵀ = Q (L2 I + Qᵀ Q)⁻¹ E R."""
        z = _stacked(keys, residual, earlier_keys, prepared.shape[0])
        inside = prepared.T @ z.T
        gram = inside.T @ inside
        gram.diagonal().add_(self.l2)
        down = prepared @ (inside @ _last_columns(gram, keys.shape[0]))
        return LowRank(up=residual.double().T, down=down.T)
