"""What a strategy remembers of the batches that were edited before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from factpatch.patch.shift import Shift

Traces = Mapping[str, "Tensor"]
"""What is remembered of one batch in one layer, by name."""


ENDING = 16
"""How many of the last token ids are kept with each input."""


@dataclass(frozen=True)
class Inputs:
    """What an MLP gets at some tokens."""

    values: Tensor
    """(n, d_value)."""
    ends: Tensor
    """The ids of the last tokens up to each, its own at the end and −1 before the text begins: (n, `ENDING`)."""
    about: Tensor
    """A number for what the token stands for, the same for all of one subject and 0 in ordinary text: (n,), int64."""


class LayerRows(Protocol):
    """What a batch is to change in one layer."""

    @property
    def layer(self) -> int: ...

    @property
    def keys(self) -> Tensor:
        """K, (n, d_key)."""

    @property
    def residual(self) -> Tensor:
        """R, (n, d_value)."""

    def inputs(self) -> list[Inputs]:
        """What the MLP gets at the subject's last token of each row, in all contexts."""

    def weight(self, place: int) -> Tensor:
        """A weight of the layer as it is now, (d_value, d_key)."""

    def names_subject(self, row: int, ends: Tensor) -> Tensor:
        """Whether ids of the last tokens in ordinary text, (n, m), end with the subject of a row: (n,)."""

    def activation(self, gates: Tensor) -> Tensor:
        """σ of what comes out of the gates."""


class Memory(ABC):
    """What a solver knows of one layer: of ordinary text, and of the batches that were edited before.

    Its bits depend on the sequence of traces alone. So undoing a batch, replaying a patch and resuming a session
    restore it by calling `follow` with the traces in force, and the memory itself never has to be saved.
    """

    rereads: ClassVar[bool] = True
    """Whether the traces of a batch follow from its keys alone. Then a patch suffices to restore them, since keys can
    be read again; otherwise a session saves the traces of each batch with its patch."""

    def __init__(self) -> None:
        self._followed: list[Traces] = []

    def trace(self, keys: Tensor, residual: Tensor | None) -> Traces:
        """What to remember of a batch.

        Args:
            keys: K, (n, d_key), as `solve` took them, or as they are after a regularizer that acts on the batch.
            residual: R, (n, d_value), as `solve` took it; None if only keys were read again.
        """
        return {"keys": keys}

    def met(self, inputs: Sequence[Inputs]) -> Traces:
        """What to remember of a batch in place of `trace`, for solvers with `remembers_inputs`.

        Args:
            inputs: What the MLP of the layer gets of each row once the batch is written: at the subject's last token
                and where the prompt ends, in all contexts.
        """
        raise NotImplementedError(f"{type(self).__name__} remembers no inputs.")

    def without(self, traces: Traces, rows: Sequence[int]) -> Traces:
        """What to remember of a batch of whose facts a later batch has replaced some.

        The key of a replaced fact must not keep its old value: the new one is to be written there. By default the other
        rows stay of traces that all have a row for each fact, or token of an answer; others stay whole, and a subclass
        that keeps sums, say, may do better. Statistics that preserve nothing can stay whole.

        Args:
            traces: As `trace` returned them, of n rows.
            rows: Those of the facts that stay.
        """
        if len({len(trace) if trace.dim() else -1 for trace in traces.values()}) > 1:
            return traces
        return {name: trace[list(rows)] for name, trace in traces.items()}

    def shifts(self, rows: LayerRows) -> dict[int, Shift]:
        """Return what one batch of facts changes, by place; by default what `solve` finds for the down-projection.

        Raises:
            ValueError: As from `solve`.
        """
        return {rows.layer: self.solve(rows.keys, rows.residual)}

    @abstractmethod
    def solve(self, keys: Tensor, residual: Tensor) -> Shift:
        """Return the shift for one batch of facts.

        Args:
            keys: K, (n, d_key), activations.
            residual: R, (n, d_value), in hidden-state units, the layer's share already taken.

        Returns:
            Δ, (d_value, d_key), float64; as factors of rank n where it has this form.

        Raises:
            ValueError: `keys` and `residual` hold different numbers of facts, or the widths disagree.
        """

    def warm(self, rows: Tensor, with_rows: Tensor) -> None:
        """Learn from tokens of ordinary text, before any batch; for solvers with `ordinary_tokens`.

        Called for some of the tokens at a time, in the order of the text, until `Solver.ordinary_tokens` are read.

        Args:
            rows: Of n tokens of the text, what `Solver.ordinary` says: the keys, (n, d_key), where gradients are read,
                or the inputs of the MLP, (n, d_value).
            with_rows: Of the same tokens: the negative gradients, (n, d_value), as if the text were an answer, or the
                `Inputs.ends`, (n, `ENDING`).
        """
        raise NotImplementedError(f"{type(self).__name__} learns nothing from ordinary text.")

    def learned(self) -> Traces | None:
        """What `warm` has left, for the cache; None, as here, if that is not to be kept.

        Asked before any batch. `learn` gives it to a memory of the same class, layer and solver in place of the text.
        """
        return None

    def learn(self, learned: Traces) -> None:
        """Take over what `learned` returned, so that the memory is, to the bit, one that was warmed itself."""
        raise NotImplementedError(f"{type(self).__name__} keeps nothing that it learns from ordinary text.")

    def learns_from(self) -> str | None:
        """What `learned` depends on beside the model and the text; None, as here, for all settings of the solver."""
        return None

    @abstractmethod
    def remember(self, traces: Traces) -> None:
        """Add one more batch."""

    @abstractmethod
    def forget(self) -> None:
        """Return to what was known before any batch."""

    @abstractmethod
    def fresh(self) -> Memory:
        """Another memory of the same layer, which has seen no batch."""

    def follow(self, batches: Sequence[Traces]) -> None:
        """Remember exactly these batches, in order: only the new ones if they continue those of the last call."""
        known = self._followed
        # Empty until the end: after an interruption in the middle of a batch, the next call starts over.
        self._followed = []
        if len(batches) < len(known) or any(a is not b for a, b in zip(known, batches, strict=False)) or not known:
            self.forget()
            known = []
        for traces in batches[len(known) :]:
            self.remember(traces)
        self._followed = list(batches)


def check_rows(keys: Tensor, residual: Tensor) -> None:
    """Raise ValueError unless keys, (n, d_key), and residual, (n, d_value), have as many rows."""
    if keys.shape[0] != residual.shape[0]:
        raise ValueError(
            f"keys hold {keys.shape[0]} facts and residual {residual.shape[0]}; they must be the same facts."
        )
