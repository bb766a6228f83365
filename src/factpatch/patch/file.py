"""The file of a patch: one safetensors file, the same bytes for the same content, refused if altered anywhere.

Its tensors are the parts of the shifts, named batch.layer.part. Its metadata holds everything else as JSON under
"factpatch", and under "sha256" a checksum of that JSON and all tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from factpatch.patch.shift import Shift, shift_from_tensors
from factpatch.support.files import atomic_write

FORMAT = 2
"""Raised by one when files are written differently; a file of a newer format is refused."""

_DTYPE_CODES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}
# The safetensors format allows no longer header.
_LONGEST_HEADER = 100_000_000


class PatchFileError(ValueError):
    """A file is not a patch that can be read; the message names the file and says what is wrong with it."""


def dtype_name(dtype: torch.dtype) -> str:
    """What a document calls a dtype."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The inverse of `dtype_name`.

    Raises:
        AttributeError, TypeError: There is no dtype of this name.
    """
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name!r} is not a dtype")
    return dtype


def tensors_by_name(batches: Iterable[Mapping[int, Shift]]) -> dict[str, Tensor]:
    """Name the parts of every batch's shifts, which are given by layer, as a file does."""
    return {
        f"{index}.{layer}.{part}": tensor.detach().to("cpu").contiguous()
        for index, shifts in enumerate(batches)
        for layer, shift in shifts.items()
        for part, tensor in shift.tensors().items()
    }


def shifts_by_batch(tensors: Mapping[str, Tensor]) -> dict[int, dict[int, Shift]]:
    """The inverse of `tensors_by_name`: shifts by batch and, in ascending order, by layer.

    Raises:
        ValueError: A name is not of the form batch.layer.part, or the parts of a shift are incomplete.
    """
    parts: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, layer, part = name.split(".")
        parts.setdefault((int(index), int(layer)), {})[part] = tensor
    batches: dict[int, dict[int, Shift]] = {}
    for place in sorted(parts):
        batches.setdefault(place[0], {})[place[1]] = shift_from_tensors(parts[place])
    return batches


def write_patch_file(path: str | Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a document and tensors to one file, which replaces a file that is there.

    Args:
        path: Where the file goes; its folder must exist.
        document: What JSON can hold.
        tensors: By name, contiguous and on the CPU, in one of the dtypes of the shifts' parts.

    Raises:
        ValueError: The facts need more room than the format's header has.
        OSError: The file cannot be written; nothing is left behind.
    """
    header = _header(json.dumps({"format": FORMAT, **document}, sort_keys=True), tensors)
    if len(header) > _LONGEST_HEADER:
        raise ValueError(
            f"the facts take {len(header)} bytes and a safetensors header holds {_LONGEST_HEADER}; save the patch in "
            "several parts, or leave out paraphrases and neighbors."
        )

    # Not safetensors' own writer, which orders the metadata at random.
    def write(draft: Path) -> None:
        with draft.open("xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in _file_order(tensors):
                file.write(_bytes(tensors[name]))

    atomic_write(path, write)


def read_patch_file(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the document and the tensors that `write_patch_file` wrote.

    Raises:
        PatchFileError: There is no such file, it is no patch, of a newer format, cut short, or altered anywhere.
    """
    document, metadata = _description(path)
    try:
        with safe_open(path, framework="pt") as file:
            # Copies, since a tensor that is still mapped changes with the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        with Path(path).open("rb") as opened:
            header = opened.read(int.from_bytes(opened.read(8), "little"))
    except (OSError, SafetensorError) as error:
        raise PatchFileError(f"{path}: cannot be read: {error}.") from error
    known = all(tensor.dtype in _DTYPE_CODES for tensor in tensors.values())
    # The header holds the checksum. Comparing all of it also finds what a checksum of the content cannot see, such as
    # an exchanged space.
    if not known or header != _header(metadata["factpatch"], tensors):
        raise PatchFileError(f"{path}: was altered: its checksum does not fit its content. Get an intact copy.")
    return document, tensors


def describe(path: str | Path) -> dict[str, Any]:
    """Return what a patch file says about itself, without reading its tensors and so without its checksum.

    Returns:
        The fields of `Patch`, with dtypes by name and batches without shifts, plus "format", "layers", the "sha256"
        that the file states, and the file's size as "bytes".

    Raises:
        PatchFileError: There is no such file, it is no patch, of a newer format, or cut short.
    """
    document, metadata = _description(path)
    try:
        layers = sorted({int(layer) for batch in document["batches"] for layer in batch["before"]})
    except (KeyError, TypeError, ValueError) as error:
        raise PatchFileError(f"{path}: was altered: its batches cannot be read. Get an intact copy.") from error
    return {**document, "layers": layers, "sha256": metadata["sha256"], "bytes": Path(path).stat().st_size}


def _description(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The document that a patch file holds, and the metadata that it is read from."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise PatchFileError(f"{path}: no such file.") from error
    except OSError as error:
        raise PatchFileError(f"{path}: cannot be read: {error}.") from error
    except SafetensorError as error:
        raise PatchFileError(
            f"{path}: is not a safetensors file, or one that was cut short or altered ({error}). Get an intact copy."
        ) from error
    if not {"factpatch", "sha256"} <= metadata.keys():
        raise PatchFileError(f"{path}: is a safetensors file, but not one that factpatch wrote.")
    try:
        document = json.loads(metadata["factpatch"])
        newer = document["format"] > FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise PatchFileError(f"{path}: was altered: its description cannot be read. Get an intact copy.") from error
    if newer:
        raise PatchFileError(
            f"{path}: is of format {document['format']}, which a newer factpatch wrote; this one reads up to {FORMAT}. "
            "Upgrade factpatch."
        )
    return document, metadata


def _header(text: str, tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"factpatch": text, "sha256": _checksum(text, tensors)}}
    start = 0
    for name in _file_order(tensors):
        tensor = tensors[name]
        end = start + tensor.nbytes
        entries[name] = {
            "dtype": _DTYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    header = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        digest.update(f"{name}{_DTYPE_CODES[tensors[name].dtype]}{tuple(tensors[name].shape)}".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    # Wide numbers first, so that every tensor begins at a multiple of its width.
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
