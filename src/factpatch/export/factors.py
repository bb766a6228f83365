"""Shifts as products of low rank: how many singular values each layer needs, and what is lost with fewer.

With Δ = U diag(s) Vᵀ the factors are up = U diag(√s) and down = diag(√s) Vᵀ, so that Δ = up @ down and both are of one
size. Every format of adapters is written from them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from factpatch.model.places import makes_keys, name_of, part_of, place_of

logger = logging.getLogger(__name__)

Decomposition = tuple[Tensor, Tensor, Tensor]
"""The singular value decomposition U, s, Vᵀ of a shift; see `factpatch.patch.shift.decomposed`."""
_SUGGESTED_RANK = 64


@dataclass(frozen=True, eq=False)
class LowRankFactors:
    """Shifts by layer as products up @ down, cut to their largest singular values and padded to one rank.

    All layers get the largest rank that one of them keeps, padded with zeros, since not every server reads a rank for
    each layer.
    """

    parts: Mapping[int, Decomposition]
    """Δ by layer, ascending, in float64."""
    needed: Mapping[int, int]
    """How many singular values of a layer are more than rounding."""
    ranks: dict[int, int]
    """How many are kept."""
    dtype: torch.dtype
    """What the factors are rounded to."""

    @property
    def rank(self) -> int:
        """The rank of all factors, with the padding."""
        return max(self.ranks.values())

    def up(self, place: int) -> Tensor:
        """(outputs, rank): of a down-projection, d_value outputs."""
        left, singular, right = self.parts[place]
        kept, outputs = self.ranks[place], right.T if makes_keys(place) else left
        made = torch.nn.functional.pad(outputs[:, :kept] * singular[:kept].sqrt(), (0, self.rank - kept))
        return made.to(self.dtype).contiguous()

    def down(self, place: int) -> Tensor:
        """(rank, inputs): of a down-projection, d_key inputs."""
        left, singular, right = self.parts[place]
        kept, inputs = self.ranks[place], left.T if makes_keys(place) else right
        made = torch.nn.functional.pad(singular[:kept].sqrt()[:, None] * inputs[:kept], (0, 0, 0, self.rank - kept))
        return made.to(self.dtype).contiguous()

    def shape(self, layer: int) -> tuple[int, int]:
        """(d_value, d_key) of a layer's Δ."""
        left, _, right = self.parts[layer]
        return len(left), right.shape[1]

    def error(self, layer: int, rank: int | None = None) -> float:
        """What is lost of a layer's Δ, or would be at another rank, relative to the whole in the Frobenius norm."""
        kept = self.ranks[layer] if rank is None else rank
        return _relative_error(self.parts[layer][1], kept)

    def largest_error(self, rank: int | None = None) -> float:
        """The largest error of a layer; 0 where nothing but rounding is left out."""
        kept = {layer: count if rank is None else min(rank, count) for layer, count in self.ranks.items()}
        return max(self.error(layer, kept[layer]) if kept[layer] < self.needed[layer] else 0.0 for layer in kept)

    def energy(self, rank: int) -> float:
        """The largest share of squares, to four digits, with which no layer needs more than this rank."""
        shares = [1 - self.error(layer, min(rank, kept)) ** 2 for layer, kept in self.ranks.items()]
        return max(1, math.floor(1e4 * min(shares))) / 1e4

    def with_every_layer(self, count: int) -> LowRankFactors:
        """The same with zeros for the layers, of the model's `count`, that lack a kind of shift that others have."""
        d_value, d_key = self.shape(next(iter(self.parts)))
        nothing = torch.zeros(d_value, 1), torch.zeros(1), torch.zeros(1, d_key)
        kinds = {part_of(place) for place in self.parts}
        places = sorted(place_of(layer, kind) for kind in kinds for layer in range(count))
        parts = {place: self.parts.get(place, nothing) for place in places}
        needed, ranks = ({layer: known.get(layer, 1) for layer in parts} for known in (self.needed, self.ranks))
        return LowRankFactors(parts, needed, ranks, self.dtype)


def low_rank(
    parts: Mapping[int, Decomposition],
    dtype: torch.dtype,
    rank: int | None = None,
    energy: float | None = None,
    experts: Mapping[int, int] | None = None,
) -> LowRankFactors:
    """Choose how many singular values of each shift to keep; where some are cut, the errors are logged.

    A singular value below s₁ · eps of `dtype` is rounding and left out.

    Args:
        parts: Δ by layer, as its singular value decomposition U, s, Vᵀ in float64.
        dtype: What the factors are to be rounded to.
        rank: The largest rank to keep; by default the one that is exact up to rounding.
        energy: In place of `rank`: the least share to keep of the sum of a layer's squared singular values.
        experts: How many experts a layer has, of a mixture: an adapter has factors for each.

    Raises:
        ValueError: `rank` is below 1, `energy` is no share, or both are given; or neither is given, and exact factors
            would be larger than the weights.
    """
    if rank is not None and energy is not None:
        raise ValueError(f"rank={rank}, energy={energy}: give one of them.")
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank}: must be at least 1.")
    check_energy(energy)
    eps = torch.finfo(dtype).eps
    # No format has a rank of 0, which a shift of zeros would have.
    needed = {layer: max(1, int((values > eps * values[0]).sum())) for layer, (_, values, _) in parts.items()}
    if rank is None and energy is None:
        _check_low_rank(parts, needed, experts or {})
        return LowRankFactors(parts, needed, needed, dtype)
    ranks = {}
    for layer, (_, singular, _) in parts.items():
        ranks[layer] = min(needed[layer], rank or holding(singular, energy or 1.0))
        error = 100 * _relative_error(singular, ranks[layer])
        logger.info(
            "layer %s: rank %d of %d, relative error %.2g %%", name_of(layer), ranks[layer], needed[layer], error
        )
    return LowRankFactors(parts, needed, ranks, dtype)


def of_each_expert(down: Tensor, up: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """The factors of each expert of a layer, (experts, rank, d_key) and (experts, d_value, rank), given those of all.

    All experts have the same `up`: Δ is [Δ_1 … Δ_E] = up · [down_1 … down_E].
    """
    apart = down.reshape(len(down), experts, -1).transpose(0, 1).contiguous()
    return apart, up.expand(experts, *up.shape).contiguous()


def check_energy(energy: float | None) -> None:
    """Raise ValueError unless this is a share of the squared singular values, or None."""
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy={energy}: must be a share above 0, at most 1.")


def holding(singular: Tensor, energy: float) -> int:
    """How many of the largest singular values hold this share of the sum of all squares."""
    squares = singular.square().cumsum(0)
    return min(int(torch.searchsorted(squares, energy * squares[-1])) + 1, len(singular))


def _relative_error(singular: Tensor, rank: int) -> float:
    norm = float(singular.norm())
    return float(singular[rank:].norm()) / norm if norm else 0.0


def _check_low_rank(parts: Mapping[int, Decomposition], needed: Mapping[int, int], experts: Mapping[int, int]) -> None:
    """Raise ValueError if the exact factors of a layer are larger than its weight."""
    shapes = {layer: (len(left), right.shape[1] // experts.get(layer, 1)) for layer, (left, _, right) in parts.items()}
    # Up to this rank the factors are smaller than the weights.
    limit = min(math.prod(shape) // sum(shape) for shape in shapes.values())
    if all(count * sum(shapes[layer]) <= math.prod(shapes[layer]) for layer, count in needed.items()):
        return
    offered = max(1, min(_SUGGESTED_RANK, limit))
    layers = "; ".join(
        f"layer {name_of(layer)} needs rank {needed[layer]} (at rank {min(offered, needed[layer])} the relative error "
        f"is {100 * _relative_error(singular, offered):.2g} %)"
        for layer, (_, singular, _) in parts.items()
    )
    raise ValueError(
        f"rank=None: the patch is not of low rank, so an exact adapter would be larger than the weights: {layers}. "
        f"Give the rank to write, such as rank={offered}, or the energy, and verify the facts with the adapter; or "
        "merge the patch into the model: factpatch apply, or factpatch export --to gguf for llama.cpp."
    )
