"""A patch merged into a GGUF model: whether they belong together, and the edited weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from factpatch.export.gguf_model import TENSOR_TYPES, write_gguf_model, written_types
from factpatch.model.gguf_names import gguf_names
from factpatch.model.places import name_of
from factpatch.model.weights import changed_layers, matrix_shape, snapshot
from factpatch.patch.batch import first_states, last_states
from factpatch.patch.compatibility import PatchMismatchError, check_base, gguf_weights, in_gguf
from factpatch.patch.history import write_all

if TYPE_CHECKING:
    from factpatch.model.gguf import GGUFFile
    from factpatch.patch.patch import Patch


@dataclass(frozen=True)
class MergedTensor:
    """An edited tensor of a GGUF model."""

    name: str
    was: str
    """The type that it had, such as q4_k."""
    kind: str
    """The type that it is written in."""
    error: float
    """What rounding to that type takes from the shift or adds to it, relative to it, in the Frobenius norm."""


def fitting_gguf_weights(patch: Patch, file: GGUFFile, rebase: bool = False) -> dict[int, Tensor]:
    """The dequantized weights of a GGUF model that a patch edits, in float32, as `gguf_weights` returns them.

    Args:
        file: The model, not edited.
        rebase: Whether they may be other weights than those that the patch was made on, of the same shapes: another
            quantization of the same model. Nothing guarantees that the facts hold there.

    Raises:
        PatchMismatchError: It is another architecture, has other shapes or other weights, or holds the patch already.
        ValueError: llama.cpp has no models of the patch's family.
    """
    weights = gguf_weights(patch.config, file, patch.places)
    for layer, shift in (item for batch in patch.batches for item in batch.shifts.items()):
        if shift.shape != (shape := matrix_shape(weights[layer])):
            raise PatchMismatchError(
                f"{file.path}: layer {name_of(layer)} has a weight of shape {shape}, and the patch shifts one of shape "
                f"{shift.shape}. Give the model that the patch was made on."
            )
    stored = {layer: weight.to(patch.weight_dtype) for layer, weight in weights.items()}
    if patch.sealed and not changed_layers(stored, last_states(patch.batches), patch.places):
        raise PatchMismatchError(f"{file.path}: it holds this patch already, which would be added a second time.")
    if not rebase:
        advice = " If it is another quantization of that model, add --rebase, and verify the facts on the result."
        check_base(str(file.path), patch.config, stored, first_states(patch.batches), advice)
    return weights


def merge_gguf(
    patch: Patch, file: GGUFFile, path: str | Path, tensor_type: str | None = None, rebase: bool = False
) -> list[MergedTensor]:
    """Write a GGUF model with a patch merged into its weights.

    An edited weight is what the file's blocks stand for, in float32, plus the shifts, rounded once to the type that it
    is written in. All else is copied byte for byte.

    Args:
        file: The model, not edited.
        path: The file to write; one that is there is replaced.
        tensor_type: The type of the edited tensors: f16, bf16 or f32. By default their own, or f16 if that is a
            quantized one, which would round a small shift away.
        rebase: As in `fitting_gguf_weights`.

    Returns:
        What became of the edited tensors.

    Raises:
        PatchMismatchError: As in `fitting_gguf_weights`.
        FloatingPointError: An edited weight is not finite, or too large for its type.
        ValueError: There is no such type, or llama.cpp has no models of the patch's family.
        OSError: It cannot be written; nothing is left behind.
    """
    return write_merged(patch, file, fitting_gguf_weights(patch, file, rebase), path, tensor_type)


def write_merged(
    patch: Patch, file: GGUFFile, weights: dict[int, Tensor], path: str | Path, tensor_type: str | None = None
) -> list[MergedTensor]:
    """As `merge_gguf`, of weights that `fitting_gguf_weights` has returned; they hold the patch afterwards."""
    names = gguf_names(patch.config, patch.places)
    types = written_types(file, names.values(), tensor_type)
    before = snapshot(weights)
    write_all(weights, patch.batches, patch.written_dtype)
    write_gguf_model(file, {names[place]: in_gguf(weight, place) for place, weight in weights.items()}, types, path)
    merged = []
    for layer, weight in weights.items():
        lost = weight.to(TENSOR_TYPES[types[names[layer]]]).float() - weight
        whole = float((weight - before[layer]).norm())
        kind = file.tensors[names[layer]].tensor_type.name.lower()
        merged.append(
            MergedTensor(names[layer], kind, types[names[layer]], float(lost.norm()) / whole if whole else 0.0)
        )
    return merged
