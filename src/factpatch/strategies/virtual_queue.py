"""Ridge regression on all batches of a session at once, in which ordinary text counts the more, the more it has moved.

Let D be the sum of a layer's shifts. With the cost G = L Lᵀ of a shift and the features F = K L⁻ᵀ of the keys of all
batches, the D that minimizes

    ‖K Dᵀ − T‖² + m tr(D G Dᵀ)

is Dᵀ = L⁻ᵀ Fᵀ A with A = (F Fᵀ + m I)⁻¹ T. T holds what D is to do to each key: for a key of an earlier batch what D
did to it once its batch was written, for a new one that and its residual. So a batch costs two triangular solves and a
system as large as the number of all facts, and F Fᵀ carries over.

What ordinary text is moved by, ℓ = tr(D G Dᵀ) = tr(Aᵀ F Fᵀ A), decides m through a virtual queue: see
`factpatch.strategies.solver.BoundedRidge`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from factpatch.patch.shift import LowRank
from factpatch.strategies.least_squares import System
from factpatch.strategies.memory import Memory, Traces, check_rows


@dataclass(frozen=True)
class _Session:
    """All batches so far, of n facts, in float64."""

    features: Tensor
    """F, (n, d_key)."""
    gram: Tensor
    """F Fᵀ, (n, n)."""
    moved: Tensor
    """T, (n, d_value)."""
    coefficients: Tensor
    """A, (n, d_value)."""

    @classmethod
    def none(cls, features: Tensor, residual: Tensor) -> _Session:
        """No batch, of keys and residuals as wide as these."""
        moved = features.new_zeros(0, residual.shape[1])
        return cls(features[:0], features.new_zeros(0, 0), moved, moved)

    def joined(self, features: Tensor, residual: Tensor, multiplier: float) -> _Session:
        """This and one more batch, solved together."""
        across = self.features @ features.T
        gram = torch.cat([torch.cat([self.gram, across], 1), torch.cat([across.T, features @ features.T], 1)])
        moved = torch.cat([self.moved, residual.to(features) + across.T @ self.coefficients])
        cost = gram.clone()
        cost.diagonal().add_(multiplier)
        coefficients = torch.cholesky_solve(moved, torch.linalg.cholesky(cost))
        return _Session(torch.cat([self.features, features]), gram, moved, coefficients)

    def written(self, count: int) -> _Session:
        """The same once its last `count` facts are written: from now on, what D does to their keys is to stay."""
        earlier = len(self.gram) - count
        moved = torch.cat([self.moved[:earlier], self.gram[earlier:] @ self.coefficients])
        return replace(self, moved=moved)

    @property
    def loss(self) -> float:
        """ℓ: what ordinary text is moved by."""
        return float((self.coefficients * (self.gram @ self.coefficients)).sum())


class VirtualQueue(Memory):
    """The facts of all batches, and m; see `factpatch.strategies.solver.BoundedRidge`."""

    rereads: ClassVar[bool] = False

    def __init__(self, system: System, bound: float) -> None:
        super().__init__()
        self.system = system
        self.bound = bound
        self.session: _Session | None = None
        self.multiplier = 1.0
        self._first_loss = 0.0

    def trace(self, keys: Tensor, residual: Tensor | None) -> Traces:
        if residual is None:
            raise ValueError("residual=None: what a batch was to move cannot be had from its keys alone.")
        return {"keys": keys, "residual": residual}

    def remember(self, traces: Traces) -> None:
        joined, _ = self._joined(traces["keys"], traces["residual"])
        self.session = joined.written(len(traces["keys"]))
        # The first batch that moves anything sets the scale: what is preserved beforehand does not.
        self._first_loss = self._first_loss or joined.loss
        if self._first_loss > 0:
            self.multiplier = max(self.multiplier + joined.loss / (self.bound * self._first_loss) - 1, 1.0)

    def forget(self) -> None:
        self.session, self.multiplier, self._first_loss = None, 1.0, 0.0

    def fresh(self) -> VirtualQueue:
        return VirtualQueue(self.system, self.bound)

    def solve(self, keys: Tensor, residual: Tensor) -> LowRank:
        check_rows(keys, residual)
        joined, before = self._joined(keys, residual)
        up = joined.coefficients.clone()
        up[: len(before.coefficients)] -= before.coefficients
        return LowRank(up=up.T, down=self.system.outward(joined.features))

    def _joined(self, keys: Tensor, residual: Tensor) -> tuple[_Session, _Session]:
        """All batches with one more, and without it."""
        features = self.system.features(keys)
        before = self.session or _Session.none(features, residual)
        return before.joined(features, residual, self.multiplier), before
