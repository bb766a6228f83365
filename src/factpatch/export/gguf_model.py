"""A GGUF model with some of its tensors replaced, for engines that take no adapters."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from factpatch.support.files import atomic_write

if TYPE_CHECKING:
    from gguf import ReaderTensor

    from factpatch.model.gguf import GGUFFile

TENSOR_TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
"""What replaced tensors can be written in, by llama.cpp's names. A quantized type would round a small shift away."""


def written_types(file: GGUFFile, names: Iterable[str], tensor_type: str | None = None) -> dict[str, str]:
    """The type of each tensor to be replaced: the one given, else its own where that is a float type, else f16.

    Raises:
        ValueError: There is no such type.
    """
    if tensor_type is not None and tensor_type not in TENSOR_TYPES:
        raise ValueError(f"tensor_type={tensor_type!r}: must be one of {', '.join(TENSOR_TYPES)}.")
    own = {name: file.tensors[name].tensor_type.name.lower() for name in names}
    return {name: tensor_type or (kind if kind in TENSOR_TYPES else "f16") for name, kind in own.items()}


def write_gguf_model(
    file: GGUFFile, replaced: Mapping[str, Tensor], types: Mapping[str, str], path: str | Path
) -> None:
    """Write a copy of a GGUF file in which some tensors are others, of the same shape.

    The metadata and all other tensors are copied byte for byte, in their order and at the file's alignment. What is
    copied goes from the memory map to the disk, so that a model larger than the memory can be written.

    Args:
        file: The model as it is.
        replaced: By name, in float32, in the order of the file.
        types: By name, a key of `TENSOR_TYPES`.
        path: A file; one that is there is replaced.

    Raises:
        FloatingPointError: A number is infinite or undefined, or too large for its type.
        OSError: It cannot be written; nothing is left behind.
    """
    from gguf import GGMLQuantizationType

    reader = file.reader
    content = {name: _rounded(name, tensor, types[name]) for name, tensor in replaced.items()}
    in_order = sorted(reader.tensors, key=lambda tensor: int(tensor.data_offset))
    # Where its tensors begin does not change: a tensor's type and place are numbers of a fixed size.
    head = bytearray(reader.data[: reader.data_offset].tobytes())
    place = 0
    for tensor in in_order:
        there, size = _where_described(tensor), int(tensor.n_bytes)
        kind = int(tensor.tensor_type)
        if tensor.name in content:
            kind, size = int(GGMLQuantizationType[types[tensor.name].upper()]), content[tensor.name].numel()
        struct.pack_into("<IQ", head, there, kind, place)
        place += size + _padding(size, int(reader.alignment))

    def write(draft: Path) -> None:
        with draft.open("wb") as out:
            out.write(head)
            for tensor in in_order:
                start = int(tensor.data_offset)
                data = (
                    content[tensor.name].numpy()
                    if tensor.name in content
                    else reader.data[start : start + int(tensor.n_bytes)]
                )
                out.write(data.data)
                out.write(bytes(_padding(len(data), int(reader.alignment))))

    atomic_write(path, write)


def _rounded(name: str, tensor: Tensor, kind: str) -> Tensor:
    """The bytes of a tensor in a type."""
    made = tensor.to(TENSOR_TYPES[kind]).contiguous()
    if not bool(torch.isfinite(made).all()):
        largest = float(tensor.abs().max())
        raise FloatingPointError(
            f"{name}: the edited weight holds {largest:.3g}, which {kind} cannot; write it as bf16 or f32 "
            "(--tensor-type)."
        )
    return made.view(torch.uint8).reshape(-1)


def _where_described(tensor: ReaderTensor) -> int:
    """Where a file describes a tensor's type, which its place follows; before it come its name and its shape."""
    name_length, name, dimensions, shape = tensor.field.parts[:4]
    return int(tensor.field.offset) + sum(int(part.nbytes) for part in (name_length, name, dimensions, shape))


def _padding(size: int, alignment: int) -> int:
    return -size % alignment
