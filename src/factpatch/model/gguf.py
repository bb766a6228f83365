"""A GGUF file, the format of llama.cpp and Ollama: where people keep one, whether it is whole, and its tensors."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from struct import Struct
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader, GGUFValueType, ReaderTensor

from factpatch.model.checkpoint import CONFIG
from factpatch.support.text import stand_in
from factpatch.support.words import quoted, suggestion

_MAGIC = b"GGUF"
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
# The least that a field and the description of a tensor take, in bytes: a count beyond that is damage.
_LEAST_FIELD, _LEAST_TENSOR = 13, 24
_CUT_OFF = "it is cut off: it ends within its last tensor or before; download it again"
_LONGEST_ARRAY = 2_000_000  # several times the tokens and merges of the largest vocabularies
_OLLAMA_NAME = re.compile(r"(?:[\w.-]+(?::\d+)?/){0,2}[\w.-]+(?::[\w.-]+)?", re.ASCII)
_OLLAMA_LIBRARY = ("registry.ollama.ai", "library")
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
# Where Ollama keeps models when its users start it, and when a Linux system does.
_OLLAMA_FOLDERS = ("~/.ollama/models", "/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models")


class _Reader(GGUFReader):  # type: ignore[misc]
    """The reader of the gguf package, several times as fast, and without its endless loops on a file that is cut."""

    @property
    def data(self) -> Any:
        return self._data

    @data.setter
    def data(self, mapped: Any) -> None:
        # A plain array on the same memory map: slicing the map itself a million times is what takes the time.
        self._data = mapped.view(np.ndarray)

    def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        kind = np.dtype(dtype)
        end = offset + kind.itemsize * int(count)
        if end > len(self._data):
            raise ValueError(_CUT_OFF)
        order = override_order or self.byte_order
        return self._data[offset:end].view(kind if order == "I" else kind.newbyteorder(order))

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        kind, length = GGUFValueType(int(head[0][0])), int(head[1][0])
        if length > _LONGEST_ARRAY:
            raise ValueError(f"it has an array of {length} entries; it is damaged. Download it again")
        begin, types = orig_offs + 12, [GGUFValueType(raw_type), *([kind] if length else [])]
        # The reader of the package asks for one entry after another, which takes minutes with many tokens.
        if kind == GGUFValueType.STRING:
            parts, end = self._strings(begin, length)
            return end - orig_offs, [*head, *parts], list(range(3, 2 + len(parts), 2)), types
        if kind in self.gguf_scalar_to_np:
            values = self._get(begin, self.gguf_scalar_to_np[kind], length)
            numbers = list(range(2, 2 + length))
            return 12 + values.nbytes, [*head, *values.reshape(-1, 1)], numbers, types
        return super()._get_field_parts(orig_offs, raw_type)

    def _strings(self, begin: int, count: int) -> tuple[list[Any], int]:
        """The lengths and the contents of strings, in turn, as bytes, and where the last one ends."""
        whole, size = self._data, Struct("<Q" if self.byte_order == "I" and sys.byteorder == "little" else ">Q")
        raw = memoryview(whole)
        parts: list[Any] = []
        for _ in range(count):
            if begin + size.size > len(whole):
                raise ValueError(_CUT_OFF)
            end = begin + size.size + size.unpack_from(raw, begin)[0]
            if end > len(whole):
                raise ValueError(_CUT_OFF)
            parts += (whole[begin : begin + size.size], whole[begin + size.size : end])
            begin = end
        return parts, begin


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file that is whole."""

    path: Path
    reader: GGUFReader
    """Its fields and tensors, mapped into memory."""

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the architecture, such as llama or qwen2."""
        return str(self.field("general.architecture"))

    @cached_property
    def tensors(self) -> dict[str, ReaderTensor]:
        """The tensors by name; `shape` is reversed, the columns first."""
        return {tensor.name: tensor for tensor in self.reader.tensors}

    def field(self, name: str, default: Any = None) -> Any:
        """The value of a field of the metadata, `{arch}` standing for the architecture."""
        if "{arch}" in name:
            name = name.format(arch=self.architecture)
        found = self.reader.get_field(name)
        return default if found is None else found.contents()

    def dequantized(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor in float32, as llama.cpp computes it from its blocks; (rows, columns) for a matrix.

        Raises:
            ValueError: It is of a type that the gguf package cannot dequantize.
        """
        tensor = self.tensors[name]
        try:
            found: np.ndarray[Any, Any] = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise ValueError(
                f"{self.path}: {name} is of the type {tensor.tensor_type.name}, which the gguf package cannot "
                "dequantize. Requantize the model: llama-quantize --allow-requantize OLD.gguf NEW.gguf Q8_0."
            ) from None
        return found.reshape([int(size) for size in reversed(tensor.shape)])


def open_gguf(path: str | Path) -> GGUFFile:
    """Open a GGUF file and check that it is whole; tensors are mapped into memory, not read.

    Raises:
        ValueError: It is something else, cut off, one part of several, or holds a tensor of an unknown type; the
            message names the file and says what to do.
        OSError: It cannot be read.
    """
    path = Path(path)
    try:
        _check_head(path)
        reader = _Reader(path)
        file = GGUFFile(path, reader)
        _check_tensors(file)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        said = " ".join(str(error).split()).rstrip(".")[:300]
        if "GGMLQuantizationType" in said:
            said = (
                f"it holds a tensor of a quantization that the gguf package {version('gguf')} does not know ({said}). "
                "Update the package, or requantize the model: llama-quantize --allow-requantize OLD.gguf NEW.gguf Q8_0"
            )
        raise ValueError(f"{path} cannot be read: {said}.") from error
    return file


def _check_head(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(24)
    if said := stand_in(head):
        raise ValueError(said)
    if head[:4] != _MAGIC:
        raise ValueError("it is not a GGUF file")
    if len(head) < 24:
        raise ValueError("it is cut off; download it again")
    number = int.from_bytes(head[4:8], "little")
    if number & 0xFFFF == 0:
        raise ValueError("it is written for big-endian machines; convert it with gguf-convert-endian")
    if number not in gguf.gguf_reader.READER_SUPPORTED_VERSIONS:
        raise ValueError(f"it is GGUF version {number}; convert the model again with llama.cpp's convert_hf_to_gguf.py")
    tensors, fields = (int.from_bytes(head[first : first + 8], "little") for first in (8, 16))
    if tensors * _LEAST_TENSOR + fields * _LEAST_FIELD > path.stat().st_size:
        raise ValueError("it is cut off or damaged; download it again")
    if tensors == 0:
        raise ValueError("it holds no tensors, only a vocabulary or metadata; download the model itself")


def _check_tensors(file: GGUFFile) -> None:
    kind = file.field("general.type", "model")
    if kind != "model":
        raise ValueError(f"it is of general.type {quoted(kind)}, not a model; give the model that it belongs to")
    if file.reader.get_field("general.architecture") is None:
        raise ValueError("it names no general.architecture, so it is not a model")
    if (parts := int(file.field("split.count", 1))) > 1:
        raise ValueError(
            f"it is one of {parts} parts; join them first: llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf"
        )


# Fields that must be finite and above zero, and how many heads there are.
_POSITIVE = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base")
_HEADS = ("attention.head_count", "attention.head_count_kv")


def check_sizes(file: GGUFFile) -> None:
    """Raise ValueError unless the sizes in the metadata can be those of the tensors."""
    fields = {name: file.field(f"{{arch}}.{name}") for name in ("block_count", "embedding_length", *_HEADS, *_POSITIVE)}
    for name in (name for name in _HEADS if isinstance(fields[name], list)):
        raise ValueError(
            f"{file.path}: {name} is {quoted(fields[name])}; models whose layers have different numbers of heads "
            "cannot be read. Edit the model that it was made from."
        )
    longest = max(int(size) for tensor in file.reader.tensors for size in tensor.shape)
    layers = {match[1] for name in file.tensors if (match := re.match(r"blk\.(\d+)\.", name))}
    heads, groups = (fields[name] for name in _HEADS)
    wrong = {
        "block_count": fields["block_count"] is not None and fields["block_count"] != len(layers),
        "embedding_length": (fields["embedding_length"] or 0) > longest,
        "attention.head_count": heads is not None and heads < 1,
        "attention.head_count_kv": groups is not None and (groups < 1 or (heads or 0) % groups != 0),
        **{name: fields[name] is not None and not 0 < fields[name] < math.inf for name in _POSITIVE},
    }
    for name in (name for name, broken in wrong.items() if broken):
        raise ValueError(
            f"{file.path}: {file.architecture}.{name} is {quoted(fields[name])}, which cannot be that of its tensors. "
            "The file is damaged; download it again."
        )


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF by its ending or by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix.lower() == ".gguf" or file.read(4) == _MAGIC


def find_gguf(name: str) -> Path | None:
    """Return the GGUF file that a user names: the file, the directory that holds it, or an Ollama model.

    Args:
        name: A path, or what `ollama list` shows. Ollama models are looked for under the environment variable
            OLLAMA_MODELS, or where Ollama keeps models by default.

    Returns:
        The file; None if the name is that of something else.

    Raises:
        ValueError: A directory holds several, or Ollama knows the model and its weights are absent.
    """
    path = Path(name)
    if not os.path.exists(path):  # which a name that is too long for a path does not, either
        return _of_ollama(name)
    if path.is_dir():
        return _in_directory(path)
    return path if is_gguf(path) else None


def _in_directory(path: Path) -> Path | None:
    if (path / CONFIG).exists():
        return None  # a model of transformers
    found = sorted(file for file in path.glob("*.gguf") if not file.name.startswith("mmproj"))
    if len(found) > 1:
        shown = ", ".join(file.name for file in found[:5])
        joined = " Join the parts first: llama-gguf-split --merge." if _SHARD.search(found[0].name) else ""
        raise ValueError(f"{path} holds {len(found)} GGUF files: {shown}. Name one of them.{joined}")
    return found[0] if found else None


def why_absent(name: str) -> str | None:
    """Say what is not there under a name that is that of a GGUF file or an Ollama model; None if it is neither."""
    if name.lower().endswith(".gguf"):
        return "there is no such file."
    known = sorted(_known_to_ollama())
    if not _OLLAMA_NAME.fullmatch(name) or not (":" in name or known or os.environ.get("OLLAMA_MODELS")):
        return None
    places = ", ".join(map(str, _ollama_folders()))
    return f"there is no such directory, and no such Ollama model in {places}.{suggestion(name, known)}"


def _ollama_folders() -> list[Path]:
    own = os.environ.get("OLLAMA_MODELS")
    return [Path(folder).expanduser() for folder in ((own,) if own else _OLLAMA_FOLDERS)]


def _known_to_ollama() -> Iterator[str]:
    """The models of Ollama's own library that are here."""
    for folder in _ollama_folders():
        for manifest in (folder / "manifests" / Path(*_OLLAMA_LIBRARY)).glob("*/*"):
            yield f"{manifest.parent.name}:{manifest.name}"


def _of_ollama(name: str) -> Path | None:
    if not _OLLAMA_NAME.fullmatch(name) or ".." in name:
        return None
    for models in _ollama_folders():
        manifest = models / "manifests" / _manifest(name)
        if os.path.isfile(manifest):  # a name may be too long for a path
            return _blob(name, models, manifest)
    return None


def _manifest(name: str) -> Path:
    """Where Ollama describes a model, below its manifests: host, owner, name and tag, each with a default."""
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, tag = name, "latest"
    parts = path.split("/")
    return Path(*_OLLAMA_LIBRARY[: 3 - len(parts)], *parts, tag)


def _blob(name: str, models: Path, manifest: Path) -> Path:
    try:
        layers = json.loads(manifest.read_text("utf-8"))["layers"]
        digests = [str(layer["digest"]) for layer in layers if layer["mediaType"] == _OLLAMA_MODEL]
        kinds = {str(layer["mediaType"]).rpartition(".")[2] for layer in layers}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{manifest} is not an Ollama manifest. Download it again: ollama pull {name}") from error
    if "adapter" in kinds:
        raise ValueError(
            f"the Ollama model {name} is a model with an adapter, such as an edit of factpatch; only the model without "
            "it would be read. Name the model that it was made from; to ask this one: factpatch verify --engine ollama."
        )
    for digest in digests:
        blob = models / "blobs" / digest.replace(":", "-")
        if re.fullmatch(r"sha256[:-][0-9a-f]{64}", digest) and blob.is_file():
            return blob
    raise ValueError(f"Ollama knows {name}, but its weights are not in {models / 'blobs'}. Run: ollama pull {name}")
