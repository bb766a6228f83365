"""Batch: what one call of the editor changed, as shifts by layer between two states of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from factpatch.facts import Fact
from factpatch.model.places import layer_list

if TYPE_CHECKING:
    from factpatch.patch.description import BatchDescription
    from factpatch.patch.shift import Shift


@dataclass(frozen=True, eq=False)
class Batch:
    """What one call of the editor changed, or several together.

    Raises:
        ValueError: `shifts`, `before` and `after` do not hold the same layers, or `edits` does not count the facts.
    """

    facts: tuple[Fact, ...]
    """The facts that were edited at once."""
    shifts: dict[int, Shift]
    """Δ by layer, in the dtype it is stored in: float32, or float64 in exact mode."""
    before: dict[int, str]
    """The content hash of each edited weight before the batch."""
    after: dict[int, str]
    """The content hash of each edited weight after the batch; empty if not computed yet."""
    edits: tuple[int, ...] = ()
    """How many facts each of the summed edits had; one edit by default."""
    conditioned: bool = False
    """Whether a regularizer that acts on the session, such as PRUNE's, changed the sum."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", tuple(self.facts))
        object.__setattr__(self, "edits", tuple(self.edits) or (len(self.facts),))
        if sum(self.edits) != len(self.facts):
            raise ValueError(f"edits={self.edits} count {sum(self.edits)} facts, but there are {len(self.facts)}.")
        for name in ("before", "after") if self.after else ("before",):
            layers = sorted(getattr(self, name))
            if layers != sorted(self.shifts):
                raise ValueError(
                    f"{name} holds {layer_list(layers)} and shifts {layer_list(self.shifts)}; they must agree."
                )

    @property
    def left(self) -> dict[int, str]:
        """`after`, with "" where it was not computed yet."""
        return self.after or dict.fromkeys(self.shifts, "")


def states(batches: Sequence[Batch]) -> list[dict[int, str]]:
    """The content hashes of all edited weights before the first batch and after each one; "" where unknown."""
    found = [first_states(batches)]
    for batch in batches:
        found.append({**found[-1], **batch.left})
    return found


def first_states(batches: Sequence[Batch | BatchDescription]) -> dict[int, str]:
    """The content hash of every edited weight before the first batch that edited it."""
    found: dict[int, str] = {}
    for batch in reversed(batches):
        found |= batch.before
    return found


def last_states(batches: Iterable[Batch]) -> dict[int, str]:
    """The content hash of every edited weight after the last batch; "" where it is unknown."""
    found: dict[int, str] = {}
    for batch in batches:
        found |= batch.left
    return found
