"""2. Which layers are written, in which order, and with what share of the residual."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from factpatch.strategies.later import LATER


@dataclass(frozen=True)
class Step:
    """One write."""

    layer: int
    """The layer whose weight is written."""
    target_layer: int
    """The layer at which the value is optimized and the residual measured."""
    share: float
    """The fraction that this layer takes of the residual, which is measured again just before each write."""


class Spread(ABC):
    """Decide where the residual goes: which layers are written, in order, and with what share.

    A target value is optimized when a step first needs its layer, so after the writes of all earlier steps.
    """

    @abstractmethod
    def steps(self, critical_layers: Sequence[int]) -> list[Step]:
        """Return one step per write."""

    def turns(self, critical_layers: Sequence[int]) -> list[list[Step]]:
        """The steps of one batch after another, over and over; by default those of all batches are the same."""
        return [self.steps(critical_layers)]

    def all_steps(self, critical_layers: Sequence[int]) -> list[Step]:
        """The steps of all turns."""
        return [step for turn in self.turns(critical_layers) for step in turn]


@dataclass(frozen=True)
class Even(Spread):
    """Spread the last critical layer's residual evenly over all, ascending. Source: MEMIT, eq. 20; BLUE, eq. 6."""

    def steps(self, critical_layers: Sequence[int]) -> list[Step]:
        last = critical_layers[-1]
        left = range(len(critical_layers), 0, -1)
        return [Step(layer, last, 1.0 / n) for layer, n in zip(critical_layers, left, strict=True)]


@dataclass(frozen=True)
class SquareRoot(Spread):
    """As `Even`, with the share 1/√(layers left): more for the lower layers. Source: PMET (arXiv:2308.08742)."""

    def steps(self, critical_layers: Sequence[int]) -> list[Step]:
        return [replace(step, share=math.sqrt(step.share)) for step in Even().steps(critical_layers)]


@dataclass(frozen=True)
class Each(Spread):
    """Write every critical layer toward its own target, ascending. Source: BLUE (arXiv:2502.03748), Table 1."""

    def steps(self, critical_layers: Sequence[int]) -> list[Step]:
        return [Step(layer, layer, 1.0) for layer in critical_layers]


@dataclass(frozen=True)
class Boundary(Spread):
    """Write the first and last critical layer, each toward its own target. Source: BLUE (arXiv:2502.03748), 4.3.

    What a shift does to ordinary text grows with the square of the residual that a layer takes. So a target may be
    shared: with `together` = 3, layers 4 to 8 become 4, 5, 6, evenly toward a target at 6, and 7, 8 toward one at 8.
    """

    together: int = field(default=1, metadata=LATER)
    """How many layers share a target, evenly; 1 as published. Where the first and the last so many critical layers
    would overlap, the last ones are fewer."""

    def __post_init__(self) -> None:
        if not self.together >= 1:
            raise ValueError(f"together={self.together!r}: at least one layer takes the residual of a target.")

    def steps(self, critical_layers: Sequence[int]) -> list[Step]:
        first = critical_layers[: self.together]
        last = critical_layers[max(len(first), len(critical_layers) - self.together) :]  # none if there are so few
        return [step for share in (first, last) if share for step in Even().steps(share)]


@dataclass(frozen=True)
class First(Spread):
    """Write the first critical layer alone, toward its own target: an ablation of `Boundary`."""

    def steps(self, critical_layers: Sequence[int]) -> list[Step]:
        return Each().steps(critical_layers[:1])


@dataclass(frozen=True)
class InTurn(Spread):
    """Write some critical layers, each toward its own target, and with the next batch others.

    So no layer takes the facts of all batches. With `at_once` = 2, the two are as far apart as those of other batches:
    of layers 3 to 10, batches write 3 and 7, 4 and 8, 5 and 9, 6 and 10, and then 3 and 7 again.
    """

    at_once: int = 2
    """How many layers a batch writes: one of each of as many parts of the critical layers, of equal length. Where they
    do not come out even, some before the last part are left out."""

    def __post_init__(self) -> None:
        if not self.at_once >= 1:
            raise ValueError(f"at_once={self.at_once!r}: a batch writes at least one layer.")

    def steps(self, critical_layers: Sequence[int]) -> list[Step]:
        return self.turns(critical_layers)[0]

    def turns(self, critical_layers: Sequence[int]) -> list[list[Step]]:
        count = min(self.at_once, len(critical_layers))
        length = len(critical_layers) // count
        parts = [critical_layers[start * length :][:length] for start in range(count - 1)]
        return [Each().steps(layers) for layers in zip(*parts, critical_layers[-length:], strict=True)]
