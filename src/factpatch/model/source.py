"""Where the files of a model are that a user names, in the format of transformers: made of a GGUF file if need be."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.filesize import decimal

from factpatch.model.embedded import EMBEDDED, embedded_directory, embedded_gguf
from factpatch.model.gguf import find_gguf, open_gguf
from factpatch.model.kept import file_stamp, kept_digest, kept_model, models_directory
from factpatch.model.memory import free_memory

logger = logging.getLogger(__name__)

# What the weights of a GGUF file are kept in; wider ones are made of float32 at loading.
_KEPT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Source:
    """A model, as it is to be loaded."""

    location: str
    """A directory, or an ID on the Hugging Face Hub."""
    shown: str | None = None
    """What to call the model instead of `location`, which may be a directory of the cache; None to call it that."""


def model_source(name: str, dtype: torch.dtype | None = None) -> Source:
    """Return where to load the model from that a user names; a GGUF file is dequantized into the cache first.

    The directory made of a GGUF file is found again by the SHA-256 of its content, wherever the file lies.

    Args:
        name: An embedded model, a directory of transformers or with a GGUF file, a GGUF file, an Ollama model, or
            an ID on the Hugging Face Hub.
        dtype: What the weights of a GGUF file are rounded to: float32 by default.

    Raises:
        ValueError: A GGUF file is damaged, of a kind that cannot be converted, or changed while it was read.
        EmbeddedModelUnavailable, OSError: As from `embedded_directory`.
    """
    if name in EMBEDDED:
        return Source(str(embedded_directory(name)), name)
    gguf = find_gguf(name)
    if gguf is None:
        return Source(name)
    if not os.path.exists(name):
        logger.info("%s is the Ollama model in %s", name, gguf)
    shown = gguf.name if os.path.exists(name) else name
    return Source(str(_dequantized(gguf, dtype if dtype in _KEPT_DTYPES else torch.float32)), shown)


def gguf_of(name: str) -> Path | None:
    """Return the GGUF file of a model that a user names; None if it has none.

    Raises:
        ValueError, EmbeddedModelUnavailable, OSError: As from `model_source`.
    """
    return embedded_gguf(name) if name in EMBEDDED else find_gguf(name)


def _dequantized(path: Path, dtype: torch.dtype) -> Path:
    kind, stamp = str(dtype).removeprefix("torch."), file_stamp(path)
    digest = kept_digest(path)
    final = models_directory() / f"gguf-{digest[:16]}-{kind}"

    def make(folder: Path, made: Path) -> None:
        # Here and not above, because its imports take seconds and a model that is in the cache does not need them.
        from factpatch.model.conversion import convert

        file = open_gguf(path)
        weights = sum(int(tensor.n_elements) for tensor in file.reader.tensors)
        size = weights * dtype.itemsize
        logger.info(
            "dequantizing %s into %s, once: %s weights take %s in %s",
            path.name, final, f"{weights:,}", decimal(size), kind,
        )  # fmt: skip
        if size > free_memory(torch.device("cpu")) and dtype.itemsize > 2:
            logger.warning(
                "%s of memory are free, and the model needs %s; load it in 16 bits (dtype bfloat16) to halve that",
                decimal(free_memory(torch.device("cpu"))), decimal(size),
            )  # fmt: skip
        convert(file, made, dtype)
        if file_stamp(path) != stamp:
            raise ValueError(f"{path} was changed while it was read. Run again when it is complete.")

    needs = f"{path.name}, which in {kind} takes several times its size"
    return kept_model(final, {"gguf_sha256": digest, "dtype": kind}, make, needs)
