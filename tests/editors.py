"""Editors of tiny models: second moments of made keys, settings that take milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tests.models import INNER, SENTENCES, tiny
from torch import Tensor

from factpatch import METHODS, Editor, Fact, Method, NullSpace, Ridge
from factpatch.methods import has_setting
from factpatch.strategies import AnchoredNorm, BoundedRidge, Normalized, Target, Whitened

LAYERS = (1, 2, 3)
CONTEXTS = ("{}", "The tower in the city. {}")
QUICK = {"target.steps": 4, "target.learning_rate": 0.3}
Dense = Callable[..., Tensor]
"""Δ, (d_value, d_key), of a solver, C₀, K, R, K_p and the sum D of all earlier shifts, as its paper writes it."""


def ridge(solver: Ridge, moment: Tensor, keys: Tensor, residual: Tensor, earlier: Tensor, moved: Any = None) -> Tensor:
    system = solver.weight * moment + solver.norm_weight * torch.eye(INNER, dtype=EXACT)
    system = system + keys.T @ keys + earlier.T @ earlier
    return torch.linalg.solve(system, keys.T @ residual).T


def bounded(
    solver: BoundedRidge, moment: Tensor, keys: Tensor, residual: Tensor, earlier: Tensor, moved: Tensor
) -> Tensor:
    """Of the first or the second batch, with m = 1."""
    system = solver.weight * moment + keys.T @ keys + earlier.T @ earlier
    return torch.linalg.solve(system, keys.T @ residual - solver.weight * moment @ moved.T).T


def null_space(
    solver: NullSpace, moment: Tensor, keys: Tensor, residual: Tensor, earlier: Tensor, moved: Any = None
) -> Tensor:
    values, vectors = torch.linalg.eigh(moment)
    inside = vectors[:, values < solver.threshold]
    projector = inside @ inside.T
    system = projector @ (keys.T @ keys + earlier.T @ earlier) + solver.l2 * torch.eye(INNER, dtype=EXACT)
    return torch.linalg.solve(system, projector @ keys.T @ residual).T


SOLVERS: dict[type, tuple[dict[str, float], Dense]] = {
    # a solver: settings for tiny models, and the dense formula that it is compared with
    Ridge: ({"solver.weight": 5.0}, ridge),
    BoundedRidge: ({"solver.weight": 5.0}, bounded),
    NullSpace: ({"solver.threshold": 0.4, "solver.l2": 0.5}, null_space),
}
# What is measured on a model otherwise, by the target that needs it.
MEASURED: dict[type, dict[str, Any]] = {AnchoredNorm: {"target.anchor": ((1, 2.0), (2, 2.5), (3, 3.0))}}
STATISTICS: dict[type, dict[str, float]] = {
    # Solvers of gradients: tests/strategies/test_normalization.py has their formulas.
    Normalized: {"solver.rate": 0.003},
    Whitened: {"solver.rate": 0.003, "solver.warm_up": 60},
}
OPTIMIZED = [name for name, method in METHODS.items() if isinstance(method.target, Target)]
"""The methods that optimize values."""
FACTS = (
    Fact("The mother tongue of {} is", "Danielle Darrieux", "English"),
    Fact("{} plays the sport of", "Messi", "basketball"),
    Fact("The capital of {} is", "Finland", "Rome"),
    Fact("{} works in the field of", "Ada Lovelace", "football"),
)
EXACT = torch.float64


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
    tiny_settings = STATISTICS.get(type(row.solver)) or SOLVERS.get(type(row.solver), ({}, None))[0]
    quick = {name: value for name, value in QUICK.items() if has_setting(row, name)}
    chosen = {**quick, **tiny_settings, **MEASURED.get(type(row.target), {}), **(settings or {})}
    if row.solver.ordinary_tokens:
        given = {"corpus": list(SENTENCES), **given}
    return Editor(tiny(family, dtype=dtype), method=row, critical_layers=critical_layers, settings=chosen, **given)
