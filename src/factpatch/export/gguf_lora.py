"""A patch as an adapter in a GGUF file, which llama.cpp and Ollama load on the base model, quantized or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factpatch.export.factors import LowRankFactors, of_each_expert
from factpatch.export.origin import base_name, hub_id, origin_of
from factpatch.model.architectures import experts_of
from factpatch.model.gguf_names import gguf_architecture, gguf_names
from factpatch.support.files import atomic_write


def write_gguf_lora(factors: LowRankFactors, model_config: Mapping[str, Any], path: str | Path) -> None:
    """Write shifts as a LoRA adapter for llama.cpp; the same factors give the same bytes.

    llama.cpp adds α/r · B A x to what the base's weight makes of x, with r from the shape of each B; here α = r for all
    layers, so that nothing is scaled. The base's weights stay as they are, in whatever type they are stored. Of experts
    each has its own A and B, (experts, r, d_key) and (experts, d_value, r), and adds to what it makes of its tokens.

    Args:
        factors: Δ by layer; B is `up` and A is `down`, written in float32.
        model_config: The config of the base model.
        path: A file; one that is there is replaced.

    Raises:
        ValueError: llama.cpp has no models of this family, or it is unknown.
        OSError: It cannot be written; nothing is left behind.
    """
    from gguf import GGUFType, GGUFWriter, Keys

    architecture, names = gguf_architecture(model_config), gguf_names(model_config, factors.ranks)
    experts = experts_of(model_config)
    name, origin = base_name(model_config), hub_id(origin_of(model_config))

    def write(draft: Path) -> None:
        writer = GGUFWriter(draft, architecture)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_name(f"{name}, edited with factpatch")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, origin.rpartition("/")[2] or name)
        if "/" in origin:
            writer.add_base_model_organization(0, origin.partition("/")[0])
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, float(factors.rank))
        for layer, tensor in names.items():
            down, up = factors.down(layer).float(), factors.up(layer).float()
            if layer in experts:
                down, up = of_each_expert(down, up, experts[layer])
            writer.add_tensor(f"{tensor}.lora_a", down.numpy())
            writer.add_tensor(f"{tensor}.lora_b", up.numpy())
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    atomic_write(path, write)
