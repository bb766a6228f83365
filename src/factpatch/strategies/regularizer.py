"""4. What happens to the weight shift before it is kept."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from factpatch.patch.shift import Shift


class Acts(Enum):
    """When a regularizer acts; its `before` are the weights before the layer, the batch or the session."""

    LAYER = "on each layer, before it is written"
    BATCH = "once per batch, when all its layers are written"
    SESSION = "on the total shift of a session, whenever it is read out"


class Regularizer(ABC):
    """Change shifts before they are kept."""

    acts: ClassVar[Acts]

    of_parts: ClassVar[bool] = False
    """Whether it is the same for a part of a weight as for the whole, such as one expert of a mixture."""

    @abstractmethod
    def regularize(self, shifts: Mapping[int, Shift], before: Mapping[int, Tensor]) -> dict[int, Shift]:
        """Return the shifts to keep.

        Args:
            shifts: The full shift of one layer, or of each layer of a batch or a session, as `acts` says.
            before: The weight of each of these layers without that shift, (d_value, d_key).
        """


@dataclass(frozen=True)
class Unchanged(Regularizer):
    """Keep the shifts as they are."""

    acts: ClassVar[Acts] = Acts.LAYER
    of_parts: ClassVar[bool] = True

    def regularize(self, shifts: Mapping[int, Shift], before: Mapping[int, Tensor]) -> dict[int, Shift]:
        return dict(shifts)


@dataclass(frozen=True)
class KeepLargest(Regularizer):
    """Keep the entries of a shift that change their weight most, relatively: the largest |Δ / (W + 1e-8)|.

    Of N entries, those not below the ⌊(1 - keep) N⌋-th smallest are kept. Source: RECT (arXiv:2401.04700); BLUE's
    experiments keep 40 %, RECT's own code 20 %.
    """

    acts: ClassVar[Acts] = Acts.BATCH

    keep: float = 0.4
    """The share of the entries to keep."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep!r}: must be a share above 0, at most 1.")

    def regularize(self, shifts: Mapping[int, Shift], before: Mapping[int, Tensor]) -> dict[int, Shift]:
        from factpatch.patch.shift import Masked

        return {layer: Masked.of(shift, self._largest(shift, before[layer])) for layer, shift in shifts.items()}

    def _largest(self, shift: Shift, before: Tensor) -> Tensor:
        import torch

        change = (shift.matrix() / (before.to("cpu", torch.float64) + 1e-8)).abs()
        # Rounding may leave the product just below an integer, which would keep one entry too many.
        dropped = math.floor((1 - self.keep) * change.numel() + 1e-6)
        if dropped == 0:
            return torch.ones_like(change, dtype=torch.bool)
        return change >= change.flatten().kthvalue(dropped).values


@dataclass(frozen=True)
class CapSingularValues(Regularizer):
    """Let no singular value of the session's total shift exceed the largest of the original weight by much.

    With s_max = σ₁(W₀), a singular value s > s_max of the total shift becomes ln s - ln s_max + s_max.
    Source: PRUNE (arXiv:2405.16821). The published script of BLUE's experiments adds the capped shift to weights that
    already hold the full shift; here it replaces the full shift, as the paper says.
    """

    acts: ClassVar[Acts] = Acts.SESSION

    def regularize(self, shifts: Mapping[int, Shift], before: Mapping[int, Tensor]) -> dict[int, Shift]:
        return {layer: self._capped(shift, before[layer]) for layer, shift in shifts.items()}

    def _capped(self, shift: Shift, before: Tensor) -> Shift:
        import torch

        from factpatch.patch.shift import LowRank, decomposed

        weight = before.double()
        # Cheaper than a singular value decomposition of the weight.
        largest = torch.linalg.eigvalsh(weight @ weight.T)[-1].sqrt().cpu()
        left, singular, right = decomposed(shift)
        if not bool((singular > largest).any()):
            return shift
        capped = torch.where(singular > largest, singular.log() - largest.log() + largest, singular)
        return LowRank(left * capped, right)


@dataclass(frozen=True)
class SparePrincipal(Regularizer):
    """Keep the shift away from the directions in which the rows of the weight mostly point: Δ (I − α U Uᵀ).

    With Ŵ the rows of W, each at unit length, U are the principal eigenvectors of Ŵᵀ Ŵ, (d_key, d_key): as few as have
    together more than the share η of the sum of its eigenvalues. W is the weight just before the shift. This takes an
    eigendecomposition for every layer and batch, of order d_value or d_key, whichever is smaller.
    Source: SPHERE (arXiv:2510.01172), for AlphaEdit; its code has α = 0.8 for MEMIT, PRUNE and RECT.
    """

    acts: ClassVar[Acts] = Acts.LAYER

    share: float = 0.5
    """η: the share of the sum of the eigenvalues that principal directions have."""
    strength: float = 0.5
    """α: how much of the shift in principal directions is removed, from 0 (nothing) to 1 (all)."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share!r}: η must be between 0 and 1, both excluded.")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength={self.strength!r}: α must be from 0 to 1.")

    def regularize(self, shifts: Mapping[int, Shift], before: Mapping[int, Tensor]) -> dict[int, Shift]:
        return {layer: self._spared(shift, before[layer]) for layer, shift in shifts.items()}

    def _spared(self, shift: Shift, before: Tensor) -> Shift:
        from factpatch.patch.shift import Dense, LowRank

        basis = self.principal(before)
        # The factor on the left stays as it is, so the shift keeps its rank.
        rows = (shift.down if isinstance(shift, LowRank) else shift.matrix()).to(basis)
        rows = (rows - self.strength * ((rows @ basis) @ basis.T)).cpu()
        return LowRank(shift.up, rows) if isinstance(shift, LowRank) else Dense(rows)

    def principal(self, weight: Tensor) -> Tensor:
        """U, (d_key, r), orthonormal, in float64, of a (d_value, d_key) weight."""
        import torch

        unit = torch.nn.functional.normalize(weight.double(), dim=1)
        # Ŵ Ŵᵀ has the same eigenvalues other than 0 and is smaller: a weight that leads out of an MLP is wide.
        wide = unit.shape[0] < unit.shape[1]
        values, vectors = torch.linalg.eigh(unit @ unit.T if wide else unit.T @ unit)
        values, vectors = values.flip(0), vectors.flip(1)
        count = int((values.cumsum(0) <= self.share * values.sum()).sum()) + 1
        count = min(count, int((values > 0).sum()))  # a weight of zeros points nowhere
        basis: Tensor = (unit.T @ vectors[:, :count]) / values[:count].sqrt() if wide else vectors[:, :count]
        return basis
