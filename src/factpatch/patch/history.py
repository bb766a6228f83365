"""History: the batches that some weights hold. Shifts reach weights here and nowhere else, in order.

    unedited ──batch 1──▶ … ──batch n──▶ full ──read out──▶ shown

`full` is what the next batch is edited on. Usually it is also what the model holds. A regularizer that acts on the
session, such as PRUNE's, turns the sum of all batches into `shown`, which the model then holds; a copy of `full` is
kept, so that the session continues as if it had never been read out.

    open:       shown ──restore full──▶ full ──the block's shifts──▶ full' ──read out──▶ shown'
    take_back:  shown ──restore unedited──▶ unedited ──the shifts of the entries that stay──▶ full' ──read out──▶ shown'

A sum in floating point cannot be undone by subtraction, so going back means writing the earlier batches again. Hashes
prove that this gave the same bits. If anything fails on the way, `shown` is restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.places import layer_list, name_of
from factpatch.model.weights import add_shift, changed_layers, content_hash, restore, snapshot
from factpatch.patch.batch import Batch, first_states, last_states
from factpatch.patch.shift import Shift, total


class Entry(Protocol):
    """What a history consists of."""

    @property
    def batches(self) -> Sequence[Batch]: ...


E = TypeVar("E", bound=Entry)
ReadOut = Callable[[Mapping[int, Shift], Mapping[int, Tensor]], dict[int, Shift]]
"""From the total shift and the unedited weight of each layer to the shift that the model is to hold."""


def write(weights: Mapping[int, Tensor], shifts: Mapping[int, Shift], written_dtype: torch.dtype) -> None:
    """Add shifts to (d_value, d_key) weights in place.

    An edit, its replay and the application of its patch all write this way: hence the same bits. Each Δ, the product of
    its factors, is rounded to `written_dtype` first.

    Raises:
        FloatingPointError: A sum is not finite in the weight's dtype; that weight is unchanged.
    """
    for layer, shift in shifts.items():
        try:
            add_shift(weights[layer], shift.matrix().to(written_dtype))
        except FloatingPointError as error:
            raise FloatingPointError(f"layer {name_of(layer)}: {error}") from error


def write_all(weights: Mapping[int, Tensor], batches: Iterable[Batch], written_dtype: torch.dtype) -> None:
    """Write batches in order; FloatingPointError as from `write`."""
    for index, batch in enumerate(batches):
        try:
            write(weights, batch.shifts, written_dtype)
        except FloatingPointError as error:
            raise FloatingPointError(f"batches[{index}], {error}; nothing was changed") from error


def subtract_all(weights: Mapping[int, Tensor], batches: Sequence[Batch], written_dtype: torch.dtype) -> None:
    """Subtract batches from weights, last to first, in the dtype they were added in, and round once.

    Raises:
        FloatingPointError: A restored weight is not finite; the weights of earlier layers are changed already.
    """
    for layer, weight in weights.items():
        accumulator = torch.promote_types(torch.promote_types(weight.dtype, written_dtype), torch.float32)
        left = weight.to(accumulator, copy=True)
        for batch in reversed(batches):
            if layer in batch.shifts:
                add_shift(left, -batch.shifts[layer].matrix().to(written_dtype))
        restored = left.to(weight.dtype)
        if not bool(torch.isfinite(restored).all()):
            raise FloatingPointError(
                f"layer {name_of(layer)}: without the patch the weight is not finite in {weight.dtype}; nothing was "
                "changed"
            )
        weight.copy_(restored)


def rebased(weights: Mapping[int, Tensor], batches: Iterable[Batch], written_dtype: torch.dtype) -> Iterator[Batch]:
    """Write batches in order, and yield each with the content hashes of what it changed here."""
    for batch in batches:
        before = _hashes(weights, batch.shifts)
        write(weights, batch.shifts, written_dtype)
        yield replace(batch, before=before, after=_hashes(weights, batch.shifts))


def _hashes(weights: Mapping[int, Tensor], layers: Iterable[int]) -> dict[int, str]:
    return {layer: content_hash(weights[layer]) for layer in layers}


def total_shifts(batches: Sequence[Batch]) -> dict[int, Shift]:
    """The sum of all shifts, by layer in ascending order; see `factpatch.patch.shift.total`."""
    layers = sorted({layer for batch in batches for layer in batch.shifts})
    return {layer: total([batch.shifts[layer] for batch in batches if layer in batch.shifts]) for layer in layers}


@contextmanager
def unchanged_on_failure(weights: Mapping[int, Tensor]) -> Iterator[dict[int, Tensor]]:
    """Restore the weights bit for bit if the block raises anything; yield the copies that this takes."""
    copies = snapshot(weights)
    try:
        yield copies
    except BaseException:
        restore(weights, copies)
        raise


@dataclass(eq=False)
class Draft(Generic[E]):
    """An open history: weights that hold all batches in full, to write to, and entries to be added."""

    weights: dict[int, Tensor]
    """(d_value, d_key) by layer."""
    before: dict[int, Tensor]
    """Copies of them as they were when the history was opened."""
    written_dtype: torch.dtype
    entries: tuple[E, ...]
    """Those in force, and those that were added."""

    def write(self, shifts: Mapping[int, Shift]) -> None:
        """Add shifts to the weights."""
        write(self.weights, shifts, self.written_dtype)

    def rewrite(self, shifts: Mapping[int, Shift]) -> None:
        """Write shifts instead of all that was written since the history was opened."""
        restore(self.weights, self.before)
        self.write(shifts)

    def batch(self, facts: Sequence[Fact], shifts: Mapping[int, Shift]) -> Batch:
        """What was written since the history was opened."""
        return Batch(tuple(facts), dict(shifts), _hashes(self.before, shifts), _hashes(self.weights, shifts))

    def keep(self, entry: E) -> None:
        """Add an entry, whose batches the weights now hold."""
        self.entries = (*self.entries, entry)

    def replay(self, batch: Batch) -> Batch:
        """Write a batch again, and return it with the weights it leaves, if it did not record them.

        Raises:
            RuntimeError: This machine writes other bits than the one that edited.
        """
        self.write(batch.shifts)
        if changed_layers(self.weights, batch.after, batch.after):
            raise RuntimeError(
                "replay: this machine rounds the shifts differently from the one that edited, so the edits cannot be "
                "continued here bit for bit. Apply their patch instead, and edit from there."
            )
        return replace(batch, after=_hashes(self.weights, batch.shifts))


class History(Generic[E]):
    """The entries in force, and the weights that hold them.

    Args:
        find: Returns the (d_value, d_key) weights of some layers, as views that write to the model.
        written_dtype: What a shift is rounded to before it is added.
        read_out: What a regularizer that acts on the session makes of the total shift; None without one.
    """

    def __init__(
        self,
        find: Callable[[Sequence[int]], dict[int, Tensor]],
        written_dtype: torch.dtype,
        read_out: ReadOut | None = None,
    ) -> None:
        self.find = find
        self.written_dtype = written_dtype
        self.read_out = read_out
        self.entries: tuple[E, ...] = ()
        self.shown: Batch | None = None
        """The read-out that the model holds; None if it holds the sum of the batches."""
        self._unedited: dict[int, Tensor] = {}  # copies of every weight that was written
        self._full: dict[int, Tensor] = {}  # copies with every batch in full, if the model holds a read-out

    @property
    def batches(self) -> list[Batch]:
        """The batches in force, in order."""
        return [batch for entry in self.entries for batch in entry.batches]

    @contextmanager
    def open(self, layers: Iterable[int], action: str) -> Iterator[Draft[E]]:
        """Let the block, called `action` in messages, write these layers and add entries.

        If it fails or is interrupted, weights and history are as they were.

        Raises:
            ValueError: The weights were changed by somebody else since the last entry.
        """
        self.check_untouched(action)
        # With a read-out every layer is needed, since the next one is made from the sums of all layers.
        weights = self.find(sorted({*layers, *self._full}))
        with self._unchanged_on_failure(weights) as shown:
            restore(weights, self._full)
            before = snapshot(weights) if self._full else shown
            draft = Draft(weights, before, self.written_dtype, self.entries)
            yield draft
            # A layer that was never written before is unedited as it was just now.
            self._commit(draft.entries, {**shown, **self._unedited}, weights)

    def take_back(self, to: int, action: str) -> None:
        """Return to where the first `to` entries left the weights, bit for bit.

        Raises:
            ValueError: The weights were changed by somebody else since the last entry.
            RuntimeError: The entries that stay cannot be written with the same bits; nothing was changed.
        """
        self.check_untouched(action)
        kept, undone = self.entries[:to], self.entries[to:]
        # What the undone entries found is what the entries that stay must give again.
        expected = first_states([batch for entry in undone for batch in entry.batches])
        weights = self.find(sorted(self._unedited))
        with self._unchanged_on_failure(weights):
            restore(weights, self._unedited)
            write_all(weights, (batch for entry in kept for batch in entry.batches), self.written_dtype)
            differing = changed_layers(weights, expected, expected)
            if differing and kept:
                raise RuntimeError(
                    f"{action}: writing the earlier edits again gave other bits in {layer_list(differing)}; did the "
                    "number of threads change? The model is as it was before the call."
                )
            if differing:
                raise RuntimeError(
                    f"{action}: the copies of the unedited weights of {layer_list(differing)} were altered. The model "
                    "is as it was before the call; load it anew."
                )
            self._commit(kept, self._unedited, weights)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Let the block take entries back and add others to the same layers; if it fails, all is as it was."""
        with self._unchanged_on_failure(self.find(sorted(self._unedited))):
            yield

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Let the block read the unedited model; afterwards the weights are those of the entries in force again."""
        weights = self.find(sorted(self._unedited))
        copies = snapshot(weights)
        try:
            restore(weights, self._unedited)
            yield
        finally:
            restore(weights, copies)

    def check_untouched(self, action: str) -> None:
        """Raise ValueError if somebody else has changed the weights since the last entry."""
        expected = last_states(self.batches if self.shown is None else [self.shown])
        changed = changed_layers(self.find(list(expected)), expected, expected)
        if changed:
            raise ValueError(
                f"{action}: the weights of {layer_list(changed)} were changed outside this editor since its last edit; "
                "restore them, or make a new Editor."
            )

    def _commit(self, entries: tuple[E, ...], unedited: dict[int, Tensor], weights: dict[int, Tensor]) -> None:
        """Put these entries in force, whose batches the weights hold in full, and write their read-out, if any."""
        batches = [batch for entry in entries for batch in entry.batches]
        held = {layer for batch in batches for layer in batch.shifts}  # batches need not all edit the same layers
        unedited, weights = ({layer: some[layer] for layer in some if layer in held} for some in (unedited, weights))
        full: dict[int, Tensor] = {}
        shown = None
        if batches and self.read_out is not None:
            full = snapshot(weights)
            shifts = self.read_out(total_shifts(batches), unedited)
            restore(weights, unedited)
            write(weights, shifts, self.written_dtype)
            shown = Batch(
                facts=tuple(fact for batch in batches for fact in batch.facts),
                shifts=shifts,
                before=_hashes(unedited, weights),
                after=_hashes(weights, weights),
                edits=tuple(len(batch.facts) for batch in batches),
                conditioned=True,
            )
        # In a single step: an interruption finds all of it done or nothing.
        self.__dict__.update(entries=entries, shown=shown, _unedited=unedited if entries else {}, _full=full)

    @contextmanager
    def _unchanged_on_failure(self, weights: Mapping[int, Tensor]) -> Iterator[dict[int, Tensor]]:
        """As `unchanged_on_failure`, for the fields of the history as well."""
        # One block for both: between two, an interruption would restore the fields and not the weights.
        before, copies = dict(self.__dict__), snapshot(weights)
        try:
            yield copies
        except BaseException:
            restore(weights, copies)
            self.__dict__.update(before)
            raise
