"""Running statistics of keys and gradients, and the ridge regression of one batch on them.

What is known of the rows z = [x; −g] of all batches so far are their number n, their mean and their scatter, the sum of
the squared distances from the mean. Two sets of rows are joined without the rows themselves:

    n = n₁ + n₂,   mean = mean₁ + n₂/n · d,   scatter = scatter₁ + scatter₂ + n₁ n₂/n · d²,   with d = mean₂ − mean₁.

The same holds for the scatter matrix, with d dᵀ. So a batch is remembered by a few vectors, and its keys are not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from factpatch.patch.shift import LowRank
from factpatch.strategies.memory import Memory, Traces

ROUNDING = 1e-6
"""A deviation below this share of the mean's length is rounding: float32 keeps seven digits."""


@dataclass(frozen=True)
class Statistics:
    """What is known of some rows z, (n, d_key + d_value), in float64."""

    count: int
    mean: Tensor
    """(d_key + d_value,)"""
    scatter: Tensor
    """(d_key + d_value,): the sum of the squared distances from the mean."""
    matrix: Tensor | None = None
    """(d_value, d_value): the scatter matrix of the gradients, where it is needed."""

    @classmethod
    def of(cls, traces: Traces) -> Statistics:
        """What a batch is remembered by."""
        factor = traces.get("factor")
        matrix = None if factor is None else factor.T @ factor
        return cls(int(traces["count"]), traces["mean"], traces["scatter"], matrix)

    def tensors(self) -> Traces:
        """The fields as tensors, without one that is None."""
        found = {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}
        return found if self.matrix is None else {**found, "matrix": self.matrix}

    @classmethod
    def from_tensors(cls, tensors: Traces) -> Statistics:
        """The inverse of `tensors`."""
        return cls(int(tensors["count"]), tensors["mean"], tensors["scatter"], tensors.get("matrix"))

    def joined(self, other: Statistics) -> Statistics:
        """The statistics of both sets of rows."""
        count = self.count + other.count
        apart, share = other.mean - self.mean, self.count * other.count / count
        matrix = None
        if self.matrix is not None and other.matrix is not None:
            distance = apart[-len(self.matrix) :]
            matrix = self.matrix + other.matrix + share * torch.outer(distance, distance)
        return Statistics(
            count=count,
            mean=self.mean + other.count / count * apart,
            scatter=self.scatter + other.scatter + share * apart.square(),
            matrix=matrix,
        )

    def precision(self) -> Tensor:
        """1 / deviation, (d_key + d_value,); 0 where there is none."""
        deviation = (self.scatter / (self.count - 1)).sqrt()
        return torch.where(deviation > ROUNDING * self.mean.abs(), 1 / deviation, 0.0)


class Normalizing(Memory):
    """The statistics of all batches; see `factpatch.strategies.solver.Normalized`."""

    rereads: ClassVar[bool] = False

    def __init__(self, rate: float, l2: float) -> None:
        super().__init__()
        self.rate = rate
        self.l2 = l2
        self.first: Statistics | None = None
        self.seen: Statistics | None = None

    def trace(self, keys: Tensor, residual: Tensor | None) -> Traces:
        if residual is None:
            raise ValueError("residual=None: statistics of gradients cannot be had from keys alone.")
        if keys.shape[0] != residual.shape[0]:
            raise ValueError(
                f"keys hold {keys.shape[0]} rows and residual {residual.shape[0]}; they must be the same answer tokens."
            )
        rows = torch.cat([keys.double(), residual.double()], dim=1)
        mean = rows.mean(dim=0)
        scatter = (rows - mean).square().sum(dim=0)
        return {"count": torch.tensor(len(rows)), "mean": mean, "scatter": scatter}

    def warm(self, rows: Tensor, with_rows: Tensor) -> None:
        self.remember(self.trace(rows, with_rows))
        self.first = self.seen

    def learned(self) -> Traces | None:
        return None if self.first is None else self.first.tensors()

    def learn(self, learned: Traces) -> None:
        self.first = self.seen = Statistics.from_tensors(learned)

    def remember(self, traces: Traces) -> None:
        self.seen = self._with(traces)

    def forget(self) -> None:
        self.seen = self.first

    def fresh(self) -> Normalizing:
        made = self._alike()
        made.first = made.seen = self.first
        return made

    def solve(self, keys: Tensor, residual: Tensor) -> LowRank:
        seen = self._with(self.trace(keys, residual))
        if seen.count < 2:
            raise ValueError(
                "facts: they have one answer token, the first of this editor, and a single row has no deviation. Edit "
                "more facts at once, or use a solver that warms up, such as that of stableedit."
            )
        keys, away = keys.double(), residual.double() - seen.mean[keys.shape[1] :]
        normalized = (keys - seen.mean[: keys.shape[1]]) * seen.precision()[: keys.shape[1]]
        # The residual is −g, so the minus sign of v = −η ‖x̂‖² ĝ is in it.
        wanted = self.rate * normalized.square().sum(dim=1, keepdim=True) * self.normalize(away, seen)
        inner = keys @ keys.T
        inner.diagonal().add_(self.l2)
        return LowRank(up=wanted.T, down=torch.cholesky_solve(keys, torch.linalg.cholesky(inner)))

    def normalize(self, away: Tensor, seen: Statistics) -> Tensor:
        """Normalize residuals, (n, d_value), from which their mean is subtracted already."""
        return away * seen.precision()[-away.shape[1] :]

    def _with(self, traces: Traces) -> Statistics:
        batch = Statistics.of(traces)
        return batch if self.seen is None else self.seen.joined(batch)

    def _alike(self) -> Normalizing:
        return Normalizing(self.rate, self.l2)


class Whitening(Normalizing):
    """As `Normalizing`, with the full covariance of the gradients; see `factpatch.strategies.solver.Whitened`."""

    def __init__(self, rate: float, l2: float, floor: float) -> None:
        super().__init__(rate, l2)
        self.floor = floor

    def trace(self, keys: Tensor, residual: Tensor | None) -> Traces:
        found = super().trace(keys, residual)
        assert residual is not None
        away = residual.double() - found["mean"][keys.shape[1] :]
        # A factor F with FᵀF the scatter matrix: of the rows themselves or of the matrix, whichever is smaller.
        factor = away if away.shape[0] <= away.shape[1] else torch.linalg.qr(away, mode="r").R
        return {**found, "factor": factor}

    def normalize(self, away: Tensor, seen: Statistics) -> Tensor:
        width = away.shape[1]
        if seen.matrix is None or seen.count <= width + 1:
            return super().normalize(away, seen)
        values, vectors = torch.linalg.eigh(seen.matrix / (seen.count - width - 1))
        values = values.clamp_min(self.floor * float(values.mean()))
        whitened: Tensor = ((away @ vectors) * values.rsqrt()) @ vectors.T
        return whitened

    def _alike(self) -> Normalizing:
        return Whitening(self.rate, self.l2, self.floor)
