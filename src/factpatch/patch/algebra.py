"""What needs no model: sum shifts, keep their largest singular values, check whether patches fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from factpatch.export.factors import check_energy, holding
from factpatch.facts import Fact
from factpatch.model.places import layer_list, makes_keys, name_of
from factpatch.patch.batch import Batch, first_states, last_states
from factpatch.patch.history import total_shifts
from factpatch.patch.shift import LowRank, Shift, decomposed, distance, norm, smaller


def same_model(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The fields in which two configs differ, apart from where and with which version the models were loaded."""
    return [
        name
        for name in sorted(there.keys() | here.keys())
        if not name.startswith("_") and name != "transformers_version" and there.get(name) != here.get(name)
    ]


def check_summable(parts: Sequence[Sequence[Batch]]) -> dict[int, str]:
    """Check that the batches of several patches may be summed; return the hashes of the weights they begin with.

    Raises:
        ValueError: A patch was made on weights that neither the base model nor the patches before it have, or
            independent patches edit the same fact.
    """
    base: dict[int, str] = {}
    present: dict[int, str] = {}
    for index, batches in enumerate(parts):
        before = first_states(batches)
        successive = all(present.get(layer, found) == found for layer, found in before.items())
        independent = all(base.get(layer, found) == found for layer, found in before.items())
        if not successive and not independent:
            broken = [layer for layer, found in before.items() if present.get(layer, found) != found]
            raise ValueError(
                f"patches[{index}] was made on weights of {layer_list(broken)} that neither the base model nor the "
                "patches before it have. Rebase it first, if it is meant for these: factpatch rebase MODEL PATCH --out "
                "NEW, or patch.rebase(model) in Python."
            )
        # If two patches share no layer, no hash shows which came first.
        replaced = sorted(place for place in present.keys() & before.keys() if makes_keys(place))
        if not successive and replaced:
            raise ValueError(
                f"patches[{index}] and those before it replace neurons of {layer_list(replaced)}, and were not made "
                "one after another, so they replace the same ones. Edit their facts in one session."
            )
        if not successive or not present.keys() & before.keys():
            _check_apart(_facts(batch for part in parts[:index] for batch in part), _facts(batches), index)
        base = {**before, **base}
        present |= last_states(batches) if successive else dict.fromkeys(before, "")
    return base


def summed(batches: Sequence[Batch], before: Mapping[int, str]) -> Batch:
    """One batch with the sum of all shifts; it leaves open which weights result."""
    return Batch(
        facts=tuple(_facts(batches)),
        shifts={layer: _as_stored(shift, batches) for layer, shift in total_shifts(batches).items()},
        before={layer: before[layer] for layer in sorted(before)},
        after={},
        edits=tuple(count for batch in batches for count in batch.edits),
        conditioned=any(batch.conditioned for batch in batches),
    )


def shrunk(whole: Batch, rank: int | None, energy: float | None) -> tuple[Batch, dict[str, dict[str, Any]]]:
    """The largest singular values of each shift: at most `rank`, or as many as hold the share `energy` of all squares.

    Returns:
        The batch with them, and by layer the rank and the error in the Frobenius norm, relative to the whole.

    Raises:
        ValueError: Not exactly one of them is given, or it is out of range.
    """
    if (rank is None) == (energy is None):
        raise ValueError(f"rank={rank!r}, energy={energy!r}: give one of them.")
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank}: must be at least 1.")
    check_energy(energy)
    shifts, about = {}, {}
    for layer, shift in whole.shifts.items():
        left, singular, right = decomposed(shift)
        size = min(rank or holding(singular, energy or 1.0), len(singular))
        short = _as_stored(smaller(LowRank(left[:, :size] * singular[:size], right[:size])), [whole])
        whole_norm = norm(shift)
        shifts[layer] = short
        about[name_of(layer)] = {"rank": size, "error": distance(short, shift) / whole_norm if whole_norm else 0.0}
    return replace(whole, shifts=shifts), about


def _facts(batches: Any) -> list[Fact]:
    return [fact for batch in batches for fact in batch.facts]


def _check_apart(earlier: Sequence[Fact], facts: Sequence[Fact], index: int) -> None:
    """Raise ValueError if a patch edits a fact that an independent one edits too: the sum would overshoot."""
    known = {fact.key for fact in earlier}
    for fact in facts:
        if fact.key in known:
            raise ValueError(
                f"patches[{index}] edits {fact.text!r}, which a patch before it edits too, and nothing shows that it "
                "was made after that one; their sum would overshoot. Leave one of the patches out."
            )


def _as_stored(shift: Shift, batches: Sequence[Batch]) -> Shift:
    """A sum in the dtype of its terms."""
    parts = [tensor for batch in batches for part in batch.shifts.values() for tensor in part.tensors().values()]
    exact = any(tensor.dtype == torch.float64 for tensor in parts)
    return shift.to(torch.float64 if exact else torch.float32)
