"""Shifts as a LoRA adapter, for peft and for servers that serve many adapters on one base model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from factpatch.export.factors import LowRankFactors, of_each_expert
from factpatch.export.origin import known_base
from factpatch.model.architectures import EDITED_AT, architecture_of, experts_of
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
    experts = experts_of(model_config)
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
            # For a fused parameter peft wants (experts · rank, d_key) and (d_value, rank · experts).
            each_down, each_up = of_each_expert(down, up, experts[layer])
            down, up = each_down.flatten(0, 1), each_up.permute(1, 2, 0).flatten(1)
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
    with atomic_directory(directory) as draft:
        config.save_pretrained(str(draft))
        save_file(tensors, draft / WEIGHTS, {"format": "pt"})


def _config_class() -> Any:
    try:
        from peft import LoraConfig
    except ImportError:
        raise ImportError("adapters are written with the `peft` package; pip install 'factpatch[lora]'.") from None
    return LoraConfig
