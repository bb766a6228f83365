"""Editors of tiny models: second moments of made keys, settings that take milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tests.models import INNER, tiny
from torch import Tensor

from factpatch import METHODS, Editor, Fact, Method, NullSpace, Ridge
from factpatch.strategies import Solver

EXACT = torch.float64
LAYERS = (1, 2, 3)
CONTEXTS = ("{}", "The tower in the city. {}")
QUICK = {"target.steps": 4, "target.learning_rate": 0.3}


@dataclass(frozen=True)
class Tried:
    """How a solver is tried on tiny models, and what it is checked against."""

    settings: dict[str, float]
    dense: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    """The formula of its paper in float64: from the solver, C₀, Kᵀ K + K_pᵀ K_p and Kᵀ R to Δᵀ."""


def ridge(solver: Ridge, moment: Tensor, gram: Tensor, products: Tensor) -> Tensor:
    return torch.linalg.solve(solver.weight * moment + gram, products)


def null_space(solver: NullSpace, moment: Tensor, gram: Tensor, products: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(moment)
    inside = vectors[:, values < solver.threshold]
    projector = inside @ inside.T
    return torch.linalg.solve(projector @ gram + solver.l2 * torch.eye(len(gram), dtype=EXACT), projector @ products)


# A new solver of the table of methods gets a row here.
SOLVERS: dict[type[Solver], Tried] = {
    Ridge: Tried({"solver.weight": 5.0}, ridge),
    NullSpace: Tried({"solver.threshold": 0.4, "solver.l2": 0.5}, null_space),
}


def dense(solver: Solver, moment: Tensor, keys: Tensor, residual: Tensor, earlier: Tensor) -> Tensor:
    """Δ, (d_value, d_key), by the formula of the solver's paper."""
    gram = keys.T @ keys + earlier.T @ earlier
    return SOLVERS[type(solver)].dense(solver, moment, gram, keys.T @ residual).T


FACTS = (
    Fact("The mother tongue of {} is", "Danielle Darrieux", "English"),
    Fact("{} plays the sport of", "Messi", "basketball"),
    Fact("The capital of {} is", "Finland", "Rome"),
    Fact("{} works in the field of", "Ada Lovelace", "football"),
)


def second_moments(seed: int = 0, layers: Sequence[int] = LAYERS) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    moments = {}
    for layer in layers:
        keys = torch.randn(300, INNER, generator=generator, dtype=EXACT) * torch.logspace(-1, 0.5, INNER, dtype=EXACT)
        moments[layer] = keys.T @ keys / len(keys)
    return moments


def make(
    method: str | Method = "memit-blue",
    family: str = "llama",
    dtype: torch.dtype = EXACT,
    critical_layers: Sequence[int] = LAYERS,
    settings: Any = None,
    **options: Any,
) -> Editor:
    row = METHODS[method] if isinstance(method, str) else method
    given = {"contexts": CONTEXTS, "second_moments": second_moments(layers=critical_layers), **options}
    tried = SOLVERS.get(type(row.solver))
    chosen = {**QUICK, **(tried.settings if tried else {}), **(settings or {})}
    return Editor(tiny(family, dtype=dtype), method=row, critical_layers=critical_layers, settings=chosen, **given)
