"""The least-squares problem of one layer, for one batch after another, without d_key³ work per batch.

Every solver here minimizes, over all shifts Δᵀ = U X in the span of a basis U,

    ‖K Δᵀ − R‖² + ‖K_p Δᵀ‖² + tr(Xᵀ G X),

where G is the cost of the shift itself. Earlier keys only add to that cost: G + Uᵀ K_pᵀ K_p U. Let L Lᵀ be this sum and
F = L⁻¹ Uᵀ Kᵀ the features of the n present keys; by Woodbury's identity Δᵀ = U L⁻ᵀ F (I + Fᵀ F)⁻¹ R. So a batch costs
two triangular solves and a system as large as the number of its facts, 2 n r² operations for r dimensions.

Afterwards its keys become earlier ones. L is updated by orthogonal transformations of the rows of Lᵀ and of the keys,
[Lᵀ; K U] = Q [L'ᵀ; 0], which takes about 2 n r² operations as well, however many facts came before. Being orthogonal
they do not amplify rounding, unlike updates of the inverse, so L never has to be factored again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from factpatch.patch.shift import LowRank
from factpatch.strategies.memory import Memory, Traces, check_rows

PANEL = 48
"""Rows of Lᵀ transformed at once: (2 n + PANEL) r² operations in all, nearly all of them matrix products."""


class System:
    """The cost of a shift itself: G = L Lᵀ, in the coordinates of a basis U.

    Args:
        factor: L, (r, r), lower triangular, or () for a multiple of the identity; float64.
        basis: U, (d_key, r), orthonormal; None for the identity.
    """

    def __init__(self, factor: Tensor, basis: Tensor | None = None) -> None:
        self.factor = factor
        self.basis = basis

    @property
    def d_key(self) -> int:
        return self.factor.shape[0] if self.basis is None else self.basis.shape[0]

    def features(self, keys: Tensor) -> Tensor:
        """Fᵀ = K U L⁻ᵀ, (n, r), of (n, d_key) keys."""
        inside = self._inside(keys)
        if self.factor.dim() == 0:
            return inside / self.factor
        columns: Tensor = torch.linalg.solve_triangular(self.factor, inside.T, upper=False)
        return columns.T

    def outward(self, features: Tensor) -> Tensor:
        """Fᵀ L⁻¹ Uᵀ, (n, d_key), of (n, r) features."""
        if self.factor.dim() == 0:
            inside = features / self.factor
        else:
            inside = torch.linalg.solve_triangular(self.factor.T, features.T, upper=True).T
        return inside if self.basis is None else inside @ self.basis.T

    def copy(self) -> System:
        """The same with its own factor, (r, r), which `preserve` may change."""
        if self.factor.dim() > 0:
            return System(self.factor.clone(), self.basis)
        rank = self.d_key if self.basis is None else self.basis.shape[1]
        return System(torch.diag(self.factor.expand(rank)).T, self.basis)

    def preserve(self, keys: Tensor) -> None:
        """Add the cost of changing the values of (n, d_key) keys: G + Uᵀ Kᵀ K U, in place."""
        add_rows(self.factor, self._inside(keys))

    def _inside(self, keys: Tensor) -> Tensor:
        """K U, (n, r), of (n, d_key) keys."""
        if keys.shape[1] != self.d_key:
            raise ValueError(f"keys have width {keys.shape[1]}, but the second moment has {self.d_key}.")
        rows = keys.to(self.factor.device, torch.float64)
        # With facts as columns the product would run at a third of the speed.
        return rows if self.basis is None else rows @ self.basis


class EarlierKeys(Memory):
    """A system that adds the keys of earlier facts as they come."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.first = system
        self.system = system

    def remember(self, traces: Traces) -> None:
        if self.system is self.first:
            self.system = self.first.copy()
        self.system.preserve(traces["keys"])

    def forget(self) -> None:
        self.system = self.first

    def fresh(self) -> EarlierKeys:
        return type(self)(self.first)

    def solve(self, keys: Tensor, residual: Tensor) -> LowRank:
        check_rows(keys, residual)
        features = self.system.features(keys)
        inner = features @ features.T
        inner.diagonal().add_(1.0)
        down = self.system.outward(torch.cholesky_solve(features, torch.linalg.cholesky(inner)))
        return LowRank(up=residual.double().T, down=down)


def add_rows(factor: Tensor, rows: Tensor) -> None:
    """Turn L into the Cholesky factor of L Lᵀ + Zᵀ Z, in place.

    This is a Householder QR decomposition of [Lᵀ; Z] that skips the zeros: since the rows of Lᵀ are triangular already,
    the reflections of a panel of them are I − [I; V] T [I; V]ᵀ. The diagonal may change sign, which no use of L minds.

    Args:
        factor: L, (r, r), lower triangular; fastest with contiguous columns, as `torch.linalg.cholesky` returns it.
        rows: Z, (n, r).
    """
    upper, rows = factor.T, rows.clone()
    rank = len(upper)
    scratch = upper.new_empty(PANEL * rank)
    for start in range(0, rank, PANEL):
        end = min(start + PANEL, rank)
        size = end - start
        packed, scales = torch.geqrf(torch.cat([upper[start:end, start:end], rows[:, start:end]]))
        upper[start:end, start:end] = packed[:size].triu()
        V = packed[size:]
        # T⁻¹ is diag(1 / scales) plus the part of Vᵀ V above its diagonal; if keys hold zeros, so may the scales.
        transposed = torch.linalg.solve_triangular(
            scales[:, None] * (V.T @ V), torch.diag(scales), upper=False, unitriangular=True
        )
        above, below = upper[start:end, end:], rows[:, end:]
        both = torch.addmm(above, V.T, below, out=scratch[: size * (rank - end)].view(size, rank - end))
        above.addmm_(transposed, both, alpha=-1)
        below.addmm_(V @ transposed, both, alpha=-1)
