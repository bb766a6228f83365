"""The file of a patch: one safetensors file, the same bytes for the same content, refused if altered anywhere.

Its tensors are the parts of the shifts, named batch.layer.part. Its metadata holds everything else as JSON under
"factpatch". The first entry of that JSON, "sha256", is the checksum of the whole file with zeros in place of the
checksum. Up to format 2 the checksum was a metadata entry of its own and covered only the JSON and the tensors. Up to
format 3 facts did not have the fields of `factpatch.facts.LATER_FIELDS`, and up to format 4 only down-projections were
edited.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from factpatch.facts import LATER_FIELDS
from factpatch.model.places import makes_keys, place_named
from factpatch.patch.description import Description
from factpatch.support.files import atomic_write
from factpatch.support.validation import parsed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMAT = 5
"""Increased when the format changes; a file of a newer format is refused."""
PLAIN_FORMAT, FACTS_FORMAT = 3, 4
"""What is written where nothing needs a newer one, and where a fact does."""
# The safetensors format allows no longer header.
_LONGEST_HEADER = 100_000_000
_NO_CHECKSUM = "0" * 64


class PatchFileError(ValueError):
    """A file is not a readable patch; the message names the file and says what is wrong with it."""


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in a description."""
    return str(dtype).removeprefix("torch.")


def write_patch_file(path: str | Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a JSON-able document, and tensors that are contiguous and on the CPU, to one file, whole or not at all.

    The document may state its "format"; by default it is the oldest one that is written.

    Raises:
        ValueError: The facts need more room than the format's header has.
        OSError: The file cannot be written.
    """
    from safetensors.torch import save

    body = json.dumps({"format": PLAIN_FORMAT, **document}, sort_keys=True)
    text = f'{{"sha256": "{_NO_CHECKSUM}", {body[1:]}'
    size = len(json.dumps(text))  # in the header, which is JSON itself
    if size > _LONGEST_HEADER:
        raise ValueError(
            f"the facts take {size} bytes and a safetensors header holds {_LONGEST_HEADER}; save the patch in several "
            "parts, or leave out paraphrases, questions, neighbors and ripples."
        )
    # With a single entry in the metadata, safetensors writes the same bytes every time.
    content = bytearray(save(dict(tensors), {"factpatch": text}))
    place = content.index(_NO_CHECKSUM.encode())
    content[place : place + 64] = hashlib.sha256(content).hexdigest().encode()
    atomic_write(path, lambda draft: draft.write_bytes(content))


def format_of(facts: Iterable[Mapping[str, Any]], places: Iterable[int] = ()) -> int:
    """The oldest format that can hold the records of some facts and shifts at some places.

    So that earlier versions read what they can.
    """
    if any(map(makes_keys, places)):
        return FORMAT
    return FACTS_FORMAT if any(not LATER_FIELDS.isdisjoint(fact) for fact in facts) else PLAIN_FORMAT


def read_patch_file(path: str | Path) -> tuple[Description, dict[str, Tensor]]:
    """Return the description and the tensors that `write_patch_file` wrote.

    Raises:
        PatchFileError: There is no such file, or it is not a patch, of a newer format, cut short, or altered anywhere.
    """
    from safetensors.torch import load

    content, described = _checked(path)
    try:
        # Copies, since what is loaded from bytes cannot be written to.
        return described, {name: tensor.clone() for name, tensor in load(content).items()}
    except (SafetensorError, KeyError, ValueError) as error:
        raise PatchFileError(f"{path}: cannot be read: {error}.") from error


def describe(path: str | Path, verify: bool = False) -> Description:
    """Return a patch file's description, without its tensors.

    Args:
        path: The file.
        verify: Whether to read the whole file and verify its checksum.

    Raises:
        PatchFileError: There is no such file, or it is not a patch, of a newer format, cut short, or its description
            cannot be used.
    """
    return _checked(path)[1] if verify else _described(path, *_document(path)[:2])


def ranks(path: str | Path) -> dict[int, int]:
    """The rank of the shifts of each place in a patch file that are products of factors, summed over batches.

    Reads no tensor; raises as `describe`.
    """
    _document(path)
    found: dict[int, int] = {}
    with safe_open(path, framework="numpy") as file:
        for name in list(file.keys()):
            layer, _, part = name.partition(".")[2].partition(".")
            if part == "down":
                place = place_named(layer)
                found[place] = found.get(place, 0) + int(file.get_slice(name).get_shape()[0])
    return dict(sorted(found.items()))


def _checked(path: str | Path) -> tuple[bytes, Description]:
    """The bytes of a patch file and their description, once the checksum fits."""
    document, names, text = _document(path)
    try:
        content = Path(path).read_bytes()
        if document["format"] > 2:
            place = content.find(document["sha256"].encode())
            found = hashlib.sha256(content[:place] + _NO_CHECKSUM.encode() + content[place + 64 :]).hexdigest()
        else:
            found = _checksum_up_to_format_2(text, content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PatchFileError(f"{path}: cannot be read: {error}.") from error
    if found != document["sha256"]:
        raise PatchFileError(f"{path}: was altered: its checksum does not fit its content. Get an intact copy.")
    return content, _described(path, document, names)


def _described(path: str | Path, document: Mapping[str, Any], names: Sequence[str]) -> Description:
    try:
        described = Description.of(document)
        described.check_names(names)
    except (TypeError, ValueError) as error:
        raise unusable(path, error) from error
    return described


def unusable(path: str | Path, error: Exception) -> PatchFileError:
    """The error about a file whose checksum may fit and whose content cannot be used."""
    return PatchFileError(f"{path}: was altered, or is not a factpatch patch: {error} Get an intact copy.")


def _document(path: str | Path) -> tuple[dict[str, Any], list[str], str]:
    """The document of a patch file with its format and its checksum, the names of its tensors, and the document's text.

    Nothing else of the document is checked.
    """
    try:
        _check_entries(Path(path))
        with safe_open(path, framework="numpy") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
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
    text = metadata["factpatch"]
    try:
        document = parsed(text)
        if not isinstance(document, dict) or type(document.get("format")) is not int:
            raise ValueError("it states no format")
    except ValueError as error:
        raise PatchFileError(
            f"{path}: was altered: its description cannot be read ({error}). Get an intact copy."
        ) from error
    if document["format"] > FORMAT:
        raise PatchFileError(
            f"{path}: is of format {document['format']}, which a newer factpatch wrote; this one reads up to {FORMAT}. "
            "Upgrade factpatch."
        )
    if document["format"] <= 2:
        document["sha256"] = metadata.get("sha256")
    if not re.fullmatch("[0-9a-f]{64}", str(document.get("sha256"))):
        raise PatchFileError(f"{path}: was altered: it states no checksum. Get an intact copy.")
    return document, names, text


def _check_entries(path: Path) -> None:
    """Raise PatchFileError if a header lists more tensors than there are bytes of them: reading it takes long."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        body = path.stat().st_size - 8 - length
        if 0 <= body < length <= _LONGEST_HEADER and file.read(length).count(b'"data_offsets"') > body + 1:
            raise PatchFileError(f"{path}: was altered: it lists more tensors than it holds. Get an intact copy.")


def _checksum_up_to_format_2(text: str, content: bytes) -> str:
    """The checksum of the description and of the tensors, by name."""
    body = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name, about in sorted(parsed(content[8:body]).items()):
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            digest.update(f"{name}{about['dtype']}{tuple(about['shape'])}".encode())
            digest.update(memoryview(content)[body + begin : body + end])
    return digest.hexdigest()
