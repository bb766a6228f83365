"""What can be tried: critical layers, the value optimization's settings, and how much of a residual is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

# Where windows of critical layers begin, as shares of the depth. Published ones lie between 0.1 (GPT-J, Llama 3) and
# 0.3 (GPT2-XL); in Qwen2.5-Coder-0.5B, layers 0 to 6 of 24 are better than later ones.
STARTS = (0.14, 0.04, 0.07, 0.21, 0.28)
LENGTH = 5
# The share of its residual that a fact edited alone would get; see `Solver.scaled`.
SHARES = (0.75, 0.88, 0.6)


@dataclass(frozen=True)
class Candidate:
    """Settings in units that mean the same in every model."""

    critical_layers: tuple[int, ...]
    target: tuple[tuple[str, Any], ...]
    """Settings of the value optimization by dotted name."""
    written: float
    """The share of its residual that a fact edited alone gets; it makes λ or L2, see `Solver.scaled`."""

    def __str__(self) -> str:
        layers = f"layers {self.critical_layers[0]}-{self.critical_layers[-1]}"
        return ", ".join([layers, *(f"{name}={value}" for name, value in self.target), f"written={self.written}"])


def windows(depth: int, length: int = LENGTH) -> list[tuple[int, ...]]:
    """Windows of critical layers in a model of this depth that begin at `STARTS`, the most usual one first."""
    length = min(length, depth)
    starts = dict.fromkeys(min(round(start * depth), depth - length) for start in STARTS)
    return [tuple(range(start, start + length)) for start in starts]


def grid(
    layers: Sequence[tuple[int, ...]], targets: Sequence[Mapping[str, Any]], shares: Sequence[float] = SHARES
) -> list[Candidate]:
    """All combinations, those first that differ from the first ones in the fewest choices.

    A search that runs out of time has then tried each choice with the others as usual.
    """
    places = product(range(len(layers)), range(len(targets)), range(len(shares)))
    ordered = sorted(places, key=lambda place: (sum(index > 0 for index in place), place))
    return [Candidate(layers[i], tuple(targets[j].items()), shares[k]) for i, j, k in ordered]
