"""The file of a patch: one safetensors file, the same bytes for the same content, refused if altered anywhere.

Its tensors are the parts of the shifts, named batch.layer.part. Its metadata holds everything else as JSON under
"factpatch". The first entry of that JSON, "sha256", is the checksum of the whole file with zeros in place of the
checksum. Up to format 2 the checksum was a metadata entry of its own and covered only the JSON and the tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from factpatch.support.files import atomic_write

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMAT = 3
"""Increased when the format changes; a file of a newer format is refused."""
# The safetensors format allows no longer header.
_LONGEST_HEADER = 100_000_000
_NO_CHECKSUM = "0" * 64


class PatchFileError(ValueError):
    """A file is not a readable patch; the message names the file and says what is wrong with it."""


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in a document."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The inverse of `dtype_name`; AttributeError or TypeError if there is no such dtype."""
    import torch

    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name!r} is not a dtype")
    return dtype


def asked_in_chat(settings: Mapping[str, Any]) -> bool:
    """Whether settings are those of edits in a chat; of a composed patch, whether all are."""
    return all(part.get("chat", False) for part in settings.get("composed", [settings]))


def write_patch_file(path: str | Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a JSON-able document, and tensors that are contiguous and on the CPU, to one file, whole or not at all.

    Raises:
        ValueError: The facts need more room than the format's header has.
        OSError: The file cannot be written.
    """
    from safetensors.torch import save

    body = json.dumps({"format": FORMAT, **document}, sort_keys=True)
    text = f'{{"sha256": "{_NO_CHECKSUM}", {body[1:]}'
    size = len(json.dumps(text))  # in the header, which is JSON itself
    if size > _LONGEST_HEADER:
        raise ValueError(
            f"the facts take {size} bytes and a safetensors header holds {_LONGEST_HEADER}; save the patch in several "
            "parts, or leave out paraphrases and neighbors."
        )
    # With a single entry in the metadata, safetensors writes the same bytes every time.
    content = bytearray(save(dict(tensors), {"factpatch": text}))
    place = content.index(_NO_CHECKSUM.encode())
    content[place : place + 64] = hashlib.sha256(content).hexdigest().encode()
    atomic_write(path, lambda draft: draft.write_bytes(content))


def read_patch_file(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the document and the tensors that `write_patch_file` wrote.

    Raises:
        PatchFileError: There is no such file, or it is not a patch, of a newer format, cut short, or altered anywhere.
    """
    from safetensors.torch import load

    document, metadata = _description(path)
    try:
        content = Path(path).read_bytes()
        # Copies, since what is loaded from bytes cannot be written to.
        tensors = {name: tensor.clone() for name, tensor in load(content).items()}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise PatchFileError(f"{path}: cannot be read: {error}.") from error
    if document["format"] > 2:
        place = content.find(document["sha256"].encode())
        found = hashlib.sha256(content[:place] + _NO_CHECKSUM.encode() + content[place + 64 :]).hexdigest()
    else:
        found = _checksum_up_to_format_2(metadata["factpatch"], tensors)
    if found != document["sha256"]:
        raise PatchFileError(f"{path}: was altered: its checksum does not fit its content. Get an intact copy.")
    return document, tensors


def describe(path: str | Path) -> dict[str, Any]:
    """Return a patch file's description, without reading its tensors or verifying its checksum.

    Returns:
        The fields of `Patch`, with dtypes by name and batches without shifts, plus "format", "layers", the "sha256"
        that the file states, and the file's size as "bytes".

    Raises:
        PatchFileError: There is no such file, or it is not a patch, of a newer format, or cut short.
    """
    document, _ = _description(path)
    try:
        layers = sorted({int(layer) for batch in document["batches"] for layer in batch["before"]})
    except (KeyError, TypeError, ValueError) as error:
        raise PatchFileError(f"{path}: was altered: its batches cannot be read. Get an intact copy.") from error
    return {**document, "layers": layers, "bytes": Path(path).stat().st_size}


def _description(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The document of a patch file, with its checksum, and the metadata that holds it."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise PatchFileError(f"{path}: no such file.") from error
    except OSError as error:
        raise PatchFileError(f"{path}: cannot be read: {error}.") from error
    except SafetensorError as error:
        raise PatchFileError(
            f"{path}: is not a safetensors file, or one that was cut short or altered ({error}). Get an intact copy."
        ) from error
    if "factpatch" not in metadata:
        raise PatchFileError(f"{path}: is a safetensors file, but not one that factpatch wrote.")
    try:
        document = {**metadata, **json.loads(metadata["factpatch"])}
        newer = document["format"] > FORMAT
        known = len(document.pop("factpatch")) > 0 and len(document["sha256"]) == 64
    except (ValueError, KeyError, TypeError) as error:
        raise PatchFileError(f"{path}: was altered: its description cannot be read. Get an intact copy.") from error
    if newer:
        raise PatchFileError(
            f"{path}: is of format {document['format']}, which a newer factpatch wrote; this one reads up to {FORMAT}. "
            "Upgrade factpatch."
        )
    if not known:
        raise PatchFileError(f"{path}: was altered: it states no checksum. Get an intact copy.")
    return document, metadata


def _checksum_up_to_format_2(text: str, tensors: Mapping[str, Tensor]) -> str:
    import torch

    codes = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16",
             torch.float16: "F16", torch.uint8: "U8"}  # fmt: skip
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{codes.get(tensor.dtype)}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
