"""The least-squares problem of one layer, for one batch after another, without d_key³ work per batch.

Every solver here asks for the same: of all shifts in the span of a basis U, Δᵀ = U X, the one that minimizes

    ‖K Δᵀ − R‖² + ‖K_p Δᵀ‖² + tr(Xᵀ G X),

where G says what a shift costs by itself. With G = L Lᵀ and the features F = L⁻¹ Uᵀ Zᵀ of the present and earlier keys
Z, Woodbury's identity gives Δᵀ = U L⁻ᵀ F (I + Fᵀ F)⁻¹ E R; E picks the present keys. So a batch costs triangular solves
and a system as large as the number of facts, and of that the part of the earlier facts is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from factpatch.shift import LowRank

CAPACITY = 1 / 8
"""Earlier keys that are kept apart, as a share of the dimensions; then G takes them in."""
LEAST_CAPACITY = 256


class System:
    """What a shift costs before any fact is edited.

    Args:
        gram: G, (r, r), positive definite, or () for a multiple of the identity; float64.
        basis: U, (d_key, r), orthonormal; None for the identity.
    """

    def __init__(self, gram: Tensor, basis: Tensor | None = None) -> None:
        self.gram = gram
        self.basis = basis

    @property
    def rank(self) -> int:
        """r, how many directions a shift can use."""
        return self.gram.shape[0] if self.basis is None else self.basis.shape[1]

    @property
    def d_key(self) -> int:
        return self.gram.shape[0] if self.basis is None else self.basis.shape[0]

    @cached_property
    def factor(self) -> Tensor:
        """L, lower triangular, or () like the gram.

        Raises:
            ValueError: the gram is not positive definite.
        """
        if self.gram.dim() == 0:
            return self.gram.sqrt()
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(self.gram)
        if int(info) != 0:
            raise ValueError(
                f"second_moment: not positive definite (leading minor {int(info)} of {self.rank}); it was read from "
                "too few tokens. Give a longer corpus: about ten tokens per key dimension."
            )
        return factor

    def inside(self, keys: Tensor) -> Tensor:
        """Uᵀ Kᵀ, (r, n), of (n, d_key) keys."""
        columns = keys.double().T
        return columns if self.basis is None else self.basis.T @ columns

    def features(self, keys: Tensor) -> Tensor:
        """L⁻¹ Uᵀ Kᵀ, (r, n), of (n, d_key) keys."""
        inside = self.inside(keys)
        if self.factor.dim() == 0:
            return inside / self.factor
        solved: Tensor = torch.linalg.solve_triangular(self.factor, inside, upper=False)
        return solved

    def outward(self, features: Tensor) -> Tensor:
        """U L⁻ᵀ F, (d_key, n), of (r, n) features."""
        if self.factor.dim() == 0:
            inside = features / self.factor
        else:
            inside = torch.linalg.solve_triangular(self.factor.T, features, upper=True)
        return inside if self.basis is None else self.basis @ inside

    def with_keys(self, keys: Tensor) -> System:
        """The system in which these keys are preserved too: G + Uᵀ Zᵀ Z U."""
        inside = self.inside(keys)
        added = inside @ inside.T
        if self.gram.dim() == 0:
            added.diagonal().add_(self.gram)
        else:
            added += self.gram
        return System(added, self.basis)


class Memory:
    """A system with the keys of earlier facts, and what solving needs of them.

    Up to `capacity` of them are kept apart, so that a batch costs little more with them than without. Then the system
    takes them in, which costs r³ / 3 once. When that happens depends on the sequence of batches alone, so that a
    session that is resumed gives the same bits.

    Args:
        capacity: by default an eighth of the system's rank, at least 256.
    """

    def __init__(self, system: System, capacity: int | None = None) -> None:
        self.first = system
        self.capacity = max(LEAST_CAPACITY, int(CAPACITY * system.rank)) if capacity is None else capacity
        self._forget()

    def _forget(self) -> None:
        self.system = self.first
        self._followed: list[Tensor] = []
        self._apart: list[Tensor] = []
        self._features = torch.zeros(self.system.rank, 0, dtype=torch.float64, device=self.system.gram.device)
        self._root = self._features[:0]

    def follow(self, batches: Sequence[Tensor]) -> None:
        """Preserve the keys of these batches, (n, d_key) each, and no others; cheap where they go on from the last."""
        known = len(self._followed)
        if len(batches) < known or any(a is not b for a, b in zip(self._followed, batches, strict=False)):
            self._forget()
            known = 0
        for keys in batches[known:]:
            self._preserve(keys)

    def solve(self, keys: Tensor, residual: Tensor) -> LowRank:
        """Return the shift for one batch of facts; see `Solver.solve`."""
        if keys.shape[0] != residual.shape[0]:
            raise ValueError(
                f"keys hold {keys.shape[0]} facts and residual {residual.shape[0]}; they must be the same facts."
            )
        features, cross, root = self._border(keys)
        present = torch.cholesky_inverse(root)
        # The last columns of (I + Fᵀ F)⁻¹, by blocks.
        past = -torch.linalg.solve_triangular(self._root.T, cross @ present, upper=True)
        down = self.system.outward(features @ present + self._features @ past)
        return LowRank(up=residual.double().T, down=down.T)

    def _border(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The features of more keys, (r, n), and the rows that they add to the Cholesky factor of I + Fᵀ F."""
        if keys.shape[1] != self.system.d_key:
            raise ValueError(f"keys have width {keys.shape[1]}, but the second moment has {self.system.d_key}.")
        features = self.system.features(keys.to(self._features.device))
        cross = torch.linalg.solve_triangular(self._root, self._features.T @ features, upper=False)
        rest = features.T @ features - cross.T @ cross
        rest.diagonal().add_(1.0)
        return features, cross, torch.linalg.cholesky(rest)

    def _preserve(self, keys: Tensor) -> None:
        self._followed.append(keys)
        self._apart.append(keys)
        if sum(map(len, self._apart)) > self.capacity:
            system = self.system.with_keys(torch.cat(self._apart))
            followed = self._followed
            self._forget()
            self.system, self._followed = system, followed
            return
        features, cross, root = self._border(keys)
        self._features = torch.cat([self._features, features], dim=1)
        above = torch.cat([self._root, torch.zeros_like(cross)], dim=1)
        self._root = torch.cat([above, torch.cat([cross.T, root], dim=1)])
