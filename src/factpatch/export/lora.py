"""Shifts as a LoRA adapter, for peft and for servers that serve many adapters on one base model."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from factpatch.model.architectures import architecture_of
from factpatch.model.embedded import EMBEDDED
from factpatch.model.language_model import projection_name
from factpatch.support.files import atomic_directory

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
"""The file of the factors, as peft names it."""
_SUGGESTED_RANK = 64
# An id of the Hugging Face Hub, with or without an owner.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
Factors = tuple[Tensor, Tensor, Tensor]
"""The singular value decomposition of a shift; see `factpatch.patch.shift.decomposed`."""


def write_lora(
    parts: Mapping[int, Factors],
    model_config: Mapping[str, Any],
    written_dtype: torch.dtype,
    directory: str | Path,
    rank: int | None = None,
    base_model_name: str | None = None,
) -> dict[int, int]:
    """Write shifts as a LoRA adapter, to be loaded on the unedited base model.

    With Δ = U diag(s) Vᵀ an adapter holds lora_B = U diag(√s) and lora_A = diag(√s) Vᵀ. A singular value below
    s₁ · eps of `written_dtype` is rounding and left out. The edited model rounds W + Δ to the dtype of W, the adapter
    does not; otherwise they are the same. All layers get the largest rank that one of them needs, padded with zeros,
    since not every server reads a rank for each layer; lora_alpha is that rank, so that the factors are not scaled.

    Args:
        parts: Δ by layer, as its singular value decomposition U, s, V.T in float64.
        model_config: The config of the base model; nothing checks that the adapter is loaded on that model.
        written_dtype: The dtype that shifts are written in (float32, or float64 in exact mode).
        directory: A new or empty directory.
        rank: The largest rank to write; by default the one that is exact up to rounding.
        base_model_name: What the adapter calls its base model; by default `known_base`.

    Returns:
        By layer, how many singular values are written.

    Raises:
        ImportError: peft is not installed.
        ValueError: `base_model_name` is blank; `rank` is below 1, or not given though exact factors would be larger
            than the weights; or the model's family is unknown.
        FileExistsError: The directory is not empty.
        OSError: It cannot be written; nothing is left behind.
    """
    _check_arguments(rank, base_model_name)
    lora_config = _config_class()
    architecture = architecture_of(SimpleNamespace(**model_config))
    kept = _kept_ranks(parts, torch.finfo(written_dtype).eps, rank)
    widest = max(kept.values())
    modules = {layer: projection_name(architecture, str(layer)) for layer in parts}
    config = lora_config(
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base_model_name or known_base(model_config),
        r=widest,
        lora_alpha=widest,
        lora_dropout=0.0,
        fan_in_fan_out=architecture.transposed,
    )
    config.target_modules = list(modules.values())  # peft would make it a set, which is saved in random order
    tensors: dict[str, Tensor] = {}
    for layer, factors in parts.items():
        up, down = _padded(factors, kept[layer], widest)
        name = f"base_model.model.{modules[layer]}"
        tensors[f"{name}.lora_A.weight"] = down.to(written_dtype).contiguous()
        tensors[f"{name}.lora_B.weight"] = up.to(written_dtype).contiguous()
    with atomic_directory(directory) as draft:
        config.save_pretrained(str(draft))
        save_file(tensors, draft / WEIGHTS, {"format": "pt"})
    return kept


def _check_arguments(rank: int | None, base_model_name: str | None) -> None:
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank}: must be at least 1.")
    if base_model_name is not None and not base_model_name.strip():
        raise ValueError(f"base_model_name={base_model_name!r}: must not be blank; leave it out to write none.")


def _config_class() -> Any:
    try:
        from peft import LoraConfig
    except ImportError:
        raise ImportError("adapters are written with the `peft` package; pip install 'factpatch[lora]'.") from None
    return LoraConfig


def _kept_ranks(parts: Mapping[int, Factors], eps: float, rank: int | None) -> dict[int, int]:
    """How many singular values of each layer are written."""
    # peft has no rank 0, which a shift of zeros would have.
    needed = {layer: max(1, int((values > eps * values[0]).sum())) for layer, (_, values, _) in parts.items()}
    if rank is None:
        _check_low_rank(parts, needed)
        return needed
    kept = {layer: min(rank, count) for layer, count in needed.items()}
    for layer, (_, singular, _) in parts.items():
        error = 100 * _relative_error(singular, kept[layer])
        logger.info("layer %d: rank %d of %d, relative error %.2g %%", layer, kept[layer], needed[layer], error)
    return kept


def _padded(factors: Factors, rank: int, width: int) -> tuple[Tensor, Tensor]:
    """B, (d_value, width), and A, (width, d_key), of `rank` singular values, padded with zeros."""
    left, singular, right = factors
    root = singular[:rank].sqrt()
    pad = torch.nn.functional.pad
    return pad(left[:, :rank] * root, (0, width - rank)), pad(root[:, None] * right[:rank], (0, 0, 0, width - rank))


def _relative_error(singular: Tensor, rank: int) -> float:
    """What is lost beyond a rank, relative to the whole, in the Frobenius norm."""
    norm = float(singular.norm())
    return float(singular[rank:].norm()) / norm if norm else 0.0


def _check_low_rank(parts: Mapping[int, Factors], needed: Mapping[int, int]) -> None:
    """Raise ValueError if the exact factors of a layer are larger than its weight."""
    shapes = {layer: (len(left), right.shape[1]) for layer, (left, _, right) in parts.items()}
    # Up to this rank the factors are smaller than the weights.
    limit = min(math.prod(shape) // sum(shape) for shape in shapes.values())
    if all(count * sum(shapes[layer]) <= math.prod(shapes[layer]) for layer, count in needed.items()):
        return
    offered = max(1, min(_SUGGESTED_RANK, limit))
    layers = "; ".join(
        f"layer {layer} needs rank {needed[layer]} (at rank {min(offered, needed[layer])} the relative error is "
        f"{100 * _relative_error(singular, offered):.2g} %)"
        for layer, (_, singular, _) in parts.items()
    )
    raise ValueError(
        f"rank=None: the patch is not of low rank, so an exact adapter would be larger than the weights: {layers}. "
        f"Give the rank to write, such as rank={offered}, and verify the facts with the adapter; or apply the patch."
    )


def known_base(model_config: Mapping[str, Any]) -> str | None:
    """What others may call the model of a config: its ID on the Hub, or None for a model that only this machine has."""
    return hub_id(str(model_config.get("_name_or_path") or "")) or None


def hub_id(origin: str) -> str:
    """The name if it may be an id of the Hub, which refuses a card that names a directory; else an empty text."""
    known = _HUB_ID.fullmatch(origin) and origin not in EMBEDDED and not Path(origin).exists()
    return origin if known else ""
