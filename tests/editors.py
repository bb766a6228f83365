"""Editors of tiny models: second moments of made keys, settings that take milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tests.models import INNER, SENTENCES, WIDTH, tiny
from torch import Tensor
from torch.nn.functional import pad

from factpatch import METHODS, Editor, Fact, Method, NullSpace, Ridge
from factpatch.methods import has_setting
from factpatch.model.places import GATE, place_of
from factpatch.strategies import AnchoredNorm, BoundedRidge, Neurons, Normalized, Target, Whitened
from factpatch.strategies.solver import LeastSquares

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
OPTIMIZED = [
    name for name, one in METHODS.items() if isinstance(one.target, Target) and isinstance(one.solver, LeastSquares)
]
"""The methods that optimize values and shift one weight of a layer."""
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


def input_moments(seed: int = 0, layers: Sequence[int] = LAYERS) -> dict[int, Tensor]:
    """Of what the MLP gets, with a 1 after it, by the place of its gates: noise around a vector, so one is constant."""
    generator = torch.Generator().manual_seed(seed)
    middle = 2 * torch.randn(WIDTH, generator=generator, dtype=EXACT)
    moments = {}
    for layer in layers:
        noise = torch.randn(300, WIDTH, generator=generator, dtype=EXACT)
        inputs = pad(middle + noise, (0, 1), value=1.0)
        moments[place_of(layer, GATE)] = inputs.T @ inputs / len(inputs)
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
    moments = second_moments(layers=critical_layers)
    if isinstance(row.solver, Neurons):
        moments |= input_moments(layers=critical_layers)
    given = {"contexts": CONTEXTS, "second_moments": moments, **options}
    tiny_settings = STATISTICS.get(type(row.solver)) or SOLVERS.get(type(row.solver), ({}, None))[0]
    quick = {name: value for name, value in QUICK.items() if has_setting(row, name)}
    chosen = {**quick, **tiny_settings, **MEASURED.get(type(row.target), {}), **(settings or {})}
    if row.solver.ordinary_tokens:
        given = {"corpus": list(SENTENCES), **given}
    return Editor(tiny(family, dtype=dtype), method=row, critical_layers=critical_layers, settings=chosen, **given)
