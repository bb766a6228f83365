"""Add a published method: EMMET (arXiv:2403.14236), which fits every fact exactly, also with the boundary layer update.

    python examples/add_a_method.py
    factpatch --methods examples/add_a_method.py reproduce table2 --model smollm2-135m --method memit --method emmet

A method is four independent choices. EMMET differs from MEMIT in one of them, the solver, so that is all there is to
write. In the package it would take four places: this class in `strategies/solver.py`, the row in `methods.py`, the
formula of `dense` in the tests' table, and a paragraph in `docs/methods.md`; see `docs/adding-a-method.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factpatch import Editor, Even, Fact, HiddenState, Method, verify
from factpatch.methods import with_blue
from factpatch.patch.shift import LowRank
from factpatch.strategies.least_squares import EarlierKeys, System
from factpatch.strategies.solver import LeastSquares

# --- 1. The class


@dataclass(frozen=True)
class Equality(LeastSquares):
    """Of all shifts that send every key exactly to its residual, the one that changes ordinary keys least.

    Minimizes tr(Δ C Δᵀ) subject to K Δᵀ = R, so Δ = Rᵀ (K C⁻¹ Kᵀ)⁻¹ K C⁻¹, with C = `weight` · C₀ + K_pᵀ K_p.
    Source: EMMET (arXiv:2403.14236); ROME is the case of one fact.
    """

    weight: float = 15000.0
    """How many tokens of ordinary text C₀ counts for, relative to the keys of earlier batches."""

    def prepare(self, second_moment: Tensor) -> System:
        return System(torch.linalg.cholesky(self.weight * second_moment.double()))

    def memory(self, second_moment: Tensor | None, counts: Tensor | None = None) -> Exact:
        assert second_moment is not None
        return Exact(self.prepare(second_moment))


class Exact(EarlierKeys):
    """Earlier keys are part of C; the keys of the batch are met exactly."""

    def solve(self, keys: Tensor, residual: Tensor) -> LowRank:
        features = self.system.features(keys)  # F, (n, r), with F Fᵀ = K C⁻¹ Kᵀ
        combined = torch.linalg.solve(features @ features.T, features)
        return LowRank(up=residual.double().T, down=self.system.outward(combined))


# --- 2. The row

emmet = Method("emmet", HiddenState(), Even(), Equality(), source="EMMET, arXiv:2403.14236")
emmet_blue = with_blue(emmet)

# --- 3. The formula that the tests compare with, dense and in float64


def dense(solver: Equality, moment: Tensor, keys: Tensor, residual: Tensor, earlier: Tensor) -> Tensor:
    """Return Δ, (d_value, d_key), as the paper writes it."""
    inverse = torch.linalg.inv(solver.weight * moment + earlier.T @ earlier)
    shift: Tensor = residual.T @ torch.linalg.inv(keys @ inverse @ keys.T) @ keys @ inverse
    return shift


def main(model: Any = "smollm2-135m", **options: Any) -> float | None:
    """Edit a fact with EMMET and BLUE and return its efficacy in percent."""
    fact = Fact("The capital of {} is", "France", "Rome", target_true="Paris")
    editor = Editor(model, method=emmet_blue, **options)
    editor.edit([fact])
    return verify(editor.lm, None, [fact], answers=False).summary()["efficacy"]["after"]


if __name__ == "__main__":
    # A method object is taken as it is, so what a preset would hold is given here.
    print(main(settings={"target.steps": 12}))
