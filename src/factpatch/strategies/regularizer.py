"""4. What happens to the weight shift before it is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from factpatch.shift import Shift


class Acts(Enum):
    """When a regularizer acts."""

    NEVER = "never"
    BATCH = "once per batch, on the shift of each layer"


class Regularizer(ABC):
    """Change the shifts of a batch once all its layers are solved and written."""

    acts: Acts

    @abstractmethod
    def regularize(self, shifts: Mapping[int, Shift], before: Mapping[int, Tensor]) -> dict[int, Shift]:
        """Return the shifts to keep.

        Args:
            shifts: the full shift of each written layer, (d_value, d_key).
            before: the weight of each of these layers before the batch, (d_value, d_key).
        """


@dataclass(frozen=True)
class Unchanged(Regularizer):
    """Keep the shifts as the solver gave them."""

    acts = Acts.NEVER

    def regularize(self, shifts: Mapping[int, Shift], before: Mapping[int, Tensor]) -> dict[int, Shift]:
        return dict(shifts)
