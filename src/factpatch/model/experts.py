"""Mixtures of experts: the fused projections of a layer seen as one wide one, and the keys of the tokens it is given.

transformers keeps the experts of a layer in one module, with their down-projections W_j in one tensor. For a token that
the router sends to some experts with the gates g_j, it puts out

    y = Σ_j g_j W_j x_j = [W_1 … W_E] · [g_1 x_1; …; g_E x_E],

where x_j is what expert j makes of the token before its down-projection, and g_j = 0 for all others. So a layer of
experts is a projection like any other, with the weight [W_1 … W_E], (d_value, E · d_key), and keys of that width, which
are zero but for the experts that the token is routed to. Patches, undo and adapters need know no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FUSED = "down_proj"
"""What transformers calls the down-projections of all experts of a layer."""


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the fused projections of several experts."""
    weight = getattr(module, FUSED, None)
    return isinstance(weight, Tensor) and weight.dim() == 3


def expert_count(module: nn.Module) -> int:
    """How many experts a module holds; 0 if it is none of experts."""
    return int(getattr(module, FUSED).shape[0]) if is_experts(module) else 0


@contextmanager
def wide_range(model: Any) -> Iterator[None]:
    """Make sure that experts compute in the model's dtype: the kernels that transformers takes know no float64."""
    implementation = getattr(model.config, "_experts_implementation", None)
    if model.dtype != torch.float64 or implementation in (None, "eager"):
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(implementation)


def weight_name(module: nn.Module) -> str:
    """What the edited weight is called in its module."""
    return FUSED if is_experts(module) else "weight"


def wide(module: Any, weight: Tensor) -> Tensor:
    """The weights of experts as a (d_value, experts, d_key) view of how the module stores them."""
    return weight.permute(2, 0, 1) if module.is_transposed else weight.permute(1, 0, 2)


def stored(module: Any, weight: Tensor) -> Tensor:
    """The inverse of `wide`."""
    return weight.permute(1, 2, 0) if module.is_transposed else weight.permute(1, 0, 2)


@dataclass(frozen=True)
class Routed:
    """What a module of experts was given: tokens, and where the router sends each."""

    module: Any
    hidden: Tensor
    """(tokens, d_value)"""
    index: Tensor
    """(tokens, experts per token): the experts of a token."""
    gates: Tensor
    """(tokens, experts per token): g_j."""

    @classmethod
    def of(cls, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Routed:
        """What the arguments of a forward pass say."""
        given = [*args, *kwargs.values()]  # transformers gives them in this order
        hidden, index, gates = given[:3]
        return cls(module, hidden.detach().reshape(-1, hidden.shape[-1]), index.detach(), gates.detach())

    @property
    def experts(self) -> int:
        """How many experts the layer has."""
        return int(self.module.down_proj.shape[0])

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def __getitem__(self, places: Tensor | int) -> Tensor:
        """The keys of some tokens, (…, experts · d_key), zero but for the experts of each."""
        if isinstance(places, int):
            return self[torch.tensor([places])][0]
        places = places.to(self.device)
        rows: Tensor | None = None
        for expert, tokens, keys in self.by_expert(places):
            if rows is None:
                rows = keys.new_zeros(len(places), self.experts, keys.shape[1])
            rows[tokens, expert] = keys
        assert rows is not None
        return rows.flatten(1)

    def by_expert(self, places: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each expert that some of the tokens are routed to: which of them, (n,), and g_j x_j, (n, d_key)."""
        index, gates, hidden = self.index[places], self.gates[places], self.hidden[places]
        for expert in torch.unique(index).tolist():
            if expert >= self.experts:  # a place for tokens that no expert gets
                continue
            tokens, rank = torch.where(index == expert)
            keys = self._keys(expert, hidden[tokens])
            yield expert, tokens, keys * gates[tokens, rank, None].to(keys.dtype)

    def _keys(self, expert: int, hidden: Tensor) -> Tensor:
        """x_j, (n, d_key)."""
        module = self.module
        name = "gate_up_proj" if module.has_gate else "up_proj"
        weight = getattr(module, name)[expert]
        hidden = hidden.to(weight.dtype)
        inner = hidden @ (weight if module.is_transposed else weight.T)
        if module.has_bias:
            inner = inner + getattr(module, f"{name}_bias")[expert]
        keys: Tensor = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        return keys


def token_rows(found: Tensor | Routed) -> Tensor | Routed:
    """What was captured, with one row per token: pick rows with `[places]`."""
    return found if isinstance(found, Routed) else found.reshape(-1, found.shape[-1])
