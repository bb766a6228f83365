"""The change of one weight: low-rank factors where the solver gives them, a dense matrix where it cannot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """Δ = up @ down, of rank at most the number of facts."""

    up: Tensor
    """(d_value, rank)"""
    down: Tensor
    """(rank, d_key)"""

    def matrix(self) -> Tensor:
        """Δ in float64, (d_value, d_key).

        The product of float32 factors is formed in float64: rounded to float32 it then hardly depends on the order of
        summation, so that another machine writes the same bits.
        """
        return self.up.to(torch.float64) @ self.down.to(torch.float64)

    def to(self, dtype: torch.dtype) -> LowRank:
        return LowRank(self.up.to("cpu", dtype).contiguous(), self.down.to("cpu", dtype).contiguous())

    def tensors(self) -> dict[str, Tensor]:
        return {"up": self.up, "down": self.down}

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.up).all() and torch.isfinite(self.down).all())


@dataclass(frozen=True)
class Dense:
    """Δ as it is."""

    full: Tensor
    """(d_value, d_key)"""

    def matrix(self) -> Tensor:
        """Δ in float64, (d_value, d_key)."""
        return self.full.to(torch.float64)

    def to(self, dtype: torch.dtype) -> Dense:
        return Dense(self.full.to("cpu", dtype).contiguous())

    def tensors(self) -> dict[str, Tensor]:
        return {"full": self.full}

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.full).all())


Shift = LowRank | Dense


def shift_from_tensors(tensors: dict[str, Tensor]) -> Shift:
    """The inverse of `tensors()`."""
    if set(tensors) == {"up", "down"}:
        return LowRank(tensors["up"], tensors["down"])
    if set(tensors) == {"full"}:
        return Dense(tensors["full"])
    raise ValueError(f"a shift is stored as up and down, or as full; found {sorted(tensors)}")


def smaller(shift: Shift) -> Shift:
    """The same shift, dense if its factors are larger than the matrix."""
    if isinstance(shift, LowRank) and shift.up.numel() + shift.down.numel() > shift.up.shape[0] * shift.down.shape[1]:
        return Dense(shift.matrix())
    return shift
