"""A patch as a LoRA adapter, for peft and for servers that hold one base model and many adapters."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from factpatch.export.card import hub_id
from factpatch.model.architectures import architecture_of
from factpatch.model.language_model import projection_name
from factpatch.patch.patch import Patch, total_shifts
from factpatch.patch.shift import decomposed
from factpatch.support.files import atomic_directory

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
"""The file of the factors, as peft names it."""
_SUGGESTED_RANK = 64


def write_lora(patch: Patch, directory: str | Path, rank: int | None = None) -> dict[int, int]:
    """Write the sum of a patch's shifts as a LoRA adapter, to be loaded on the unedited base model.

    With Δ = U diag(s) Vᵀ an adapter holds lora_B = U diag(√s) and lora_A = diag(√s) Vᵀ, in the dtype that shifts are
    written in (float32, or float64 in exact mode). A singular value below s₁ · eps of that dtype (for float32
    s₁ · 1.2e-7) is rounding and left out. The edited model rounds W + Δ to the dtype of W and the adapter does not;
    otherwise they are the same.

    All layers get the largest rank that one of them needs, filled up with zeros: not every server reads a rank for each
    layer, and some divide lora_alpha by the rank of the tensor. lora_alpha is that rank, so that the factors count as
    they are.

    Args:
        patch: What to write; the adapter cannot check that it is loaded on the model that the patch was made for.
        directory: A new or empty directory.
        rank: The largest rank to write; by default what it takes to be exact to rounding.

    Returns:
        By layer, how many singular values are written.

    Raises:
        ImportError: peft is not installed.
        ValueError: `rank` is below 1, or not given though exact factors would be larger than the weights; or the
            patch's family of models is not in the table of architectures.
        FileExistsError: The directory exists and is not empty.
        OSError: It cannot be written; nothing is left behind.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank}: must be at least 1.")
    lora_config = _config_class()
    architecture = architecture_of(SimpleNamespace(**patch.config))
    parts = {layer: decomposed(shift) for layer, shift in total_shifts(patch.batches).items()}
    eps = torch.finfo(patch.written_dtype).eps
    needed = {layer: _numeric_rank(singular, eps) for layer, (_, singular, _) in parts.items()}
    if rank is None:
        _check_low_rank(parts, needed)
    kept = {layer: count if rank is None else min(rank, count) for layer, count in needed.items()}
    if rank is not None:
        for layer, (_, singular, _) in parts.items():
            error = 100 * _relative_error(singular, kept[layer])
            logger.info("layer %d: rank %d of %d, relative error %.2g %%", layer, kept[layer], needed[layer], error)

    widest = max(kept.values())
    modules = {layer: projection_name(architecture, str(layer)) for layer in parts}
    tensors: dict[str, Tensor] = {}
    for layer, (left, singular, right) in parts.items():
        root = singular[: kept[layer]].sqrt()
        up, down = left[:, : kept[layer]] * root, root[:, None] * right[: kept[layer]]
        missing = widest - kept[layer]
        name = f"base_model.model.{modules[layer]}"
        tensors[f"{name}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, missing))
        tensors[f"{name}.lora_B.weight"] = torch.nn.functional.pad(up, (0, missing))
    config = lora_config(
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=hub_id(str(patch.config.get("_name_or_path") or "")) or None,
        r=widest,
        lora_alpha=widest,
        lora_dropout=0.0,
        fan_in_fan_out=architecture.transposed,
    )
    config.target_modules = list(modules.values())  # a set, as peft makes of it, is written in a random order
    with atomic_directory(directory) as draft:
        config.save_pretrained(str(draft))
        stored = {name: tensor.to(patch.written_dtype).contiguous() for name, tensor in tensors.items()}
        save_file(stored, draft / WEIGHTS, {"format": "pt"})
    return kept


def _config_class() -> Any:
    try:
        from peft import LoraConfig
    except ImportError:
        raise ImportError("adapters are written with the `peft` package; pip install 'factpatch[lora]'.") from None
    return LoraConfig


def _numeric_rank(singular: Tensor, eps: float) -> int:
    # peft has no rank 0, which a shift of zeros would have.
    return max(1, int((singular > eps * singular[0]).sum()))


def _relative_error(singular: Tensor, rank: int) -> float:
    """What is lost beyond a rank, relative to the whole, in the Frobenius norm."""
    norm = float(singular.norm())
    return float(singular[rank:].norm()) / norm if norm else 0.0


def _check_low_rank(parts: dict[int, tuple[Tensor, Tensor, Tensor]], needed: dict[int, int]) -> None:
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
        f"rank=None: the patch has no low rank, so that an exact adapter would be larger than the weights: {layers}. "
        f"Give the rank to write, such as rank={offered}, and verify the facts with the adapter; or apply the patch."
    )
