"""Shifts as a LoRA adapter, for peft and for servers that serve many adapters on one base model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from factpatch.export.factors import LowRankFactors
from factpatch.export.origin import known_base
from factpatch.model.architectures import EDITED_AT, EXPERTS_OF, architecture_of
from factpatch.model.experts import FUSED
from factpatch.model.language_model import projection_name
from factpatch.support.files import atomic_directory

WEIGHTS = "adapter_model.safetensors"
"""The file of the factors, as peft names it."""


def write_lora(
    factors: LowRankFactors,
    model_config: Mapping[str, Any],
    directory: str | Path,
    base_model_name: str | None = None,
) -> None:
    """Write shifts as a LoRA adapter, to be loaded on the unedited base model.

    The edited model rounds W + Δ to the dtype of W, the adapter does not; otherwise they are the same, as far as the
    factors are exact. lora_alpha is the rank, so that the factors are not scaled.

    Args:
        factors: Δ by layer; lora_B is `up` and lora_A is `down`.
        model_config: The config of the base model; nothing checks that the adapter is loaded on that model.
        directory: A new or empty directory.
        base_model_name: What the adapter calls its base model; by default `known_base`.

    Raises:
        ImportError: peft is not installed.
        ValueError: `base_model_name` is blank, or the model's family is unknown.
        FileExistsError: The directory is not empty.
        OSError: It cannot be written; nothing is left behind.
    """
    if base_model_name is not None and not base_model_name.strip():
        raise ValueError(f"base_model_name={base_model_name!r}: must not be blank; leave it out to write none.")
    lora_config = _config_class()
    architecture = architecture_of(SimpleNamespace(**model_config))
    modules = {layer: projection_name(model_config, layer) for layer in factors.ranks}
    experts = {int(layer): count for layer, count in model_config.get(EXPERTS_OF, {}).items()}
    config = lora_config(
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base_model_name or known_base(model_config),
        r=factors.rank,
        lora_alpha=factors.rank,
        lora_dropout=0.0,
        fan_in_fan_out=architecture.transposed,
    )
    # peft would make it a set, which is saved in random order
    config.target_modules = list(modules.values())
    if experts or EDITED_AT in model_config:
        # By its parameter, whether fused or not: in families with experts, peft takes any module called down_proj for
        # one of the experts that transformers had apart in older versions.
        names = {layer: FUSED if layer in experts else "weight" for layer in modules}
        config.target_modules = []
        config.target_parameters = [f"{module}.{names[layer]}" for layer, module in modules.items()]
    tensors: dict[str, Tensor] = {}
    for layer, module in modules.items():
        down, up = factors.down(layer), factors.up(layer)
        if layer in experts:
            down, up = _for_experts(down, up, experts[layer])
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
    with atomic_directory(directory) as draft:
        config.save_pretrained(str(draft))
        save_file(tensors, draft / WEIGHTS, {"format": "pt"})


def _for_experts(down: Tensor, up: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """The factors as peft has them for a fused parameter: (experts · rank, d_key) and (d_value, rank · experts).

    All experts have the same `up`: Δ is [Δ_1 … Δ_E] = up · [down_1 … down_E].
    """
    rank = len(down)
    apart = down.reshape(rank, experts, -1).transpose(0, 1)
    return apart.flatten(0, 1).contiguous(), up[:, :, None].expand(-1, -1, experts).flatten(1).contiguous()


def _config_class() -> Any:
    try:
        from peft import LoraConfig
    except ImportError:
        raise ImportError("adapters are written with the `peft` package; pip install 'factpatch[lora]'.") from None
    return LoraConfig
