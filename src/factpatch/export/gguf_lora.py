"""A patch as an adapter in a GGUF file, which llama.cpp and Ollama load on the base model, quantized or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from factpatch.export.factors import LowRankFactors
from factpatch.export.origin import base_name, hub_id, origin_of
from factpatch.model.gguf_names import gguf_architecture, gguf_names
from factpatch.support.files import atomic_write


def write_gguf_lora(
    patch: Any, path: str | Path, rank: int | None = None, energy: float | None = None
) -> LowRankFactors:
    """Write a patch as a LoRA adapter for llama.cpp; the same patch gives the same bytes.

    llama.cpp adds α/r · B A x to what the base's weight makes of x, with r from the shape of each B; here α = r for all
    layers, so that nothing is scaled. The base's weights stay as they are, in whatever type they are stored.

    Args:
        patch: A `factpatch.Patch`, which knows its factors: so nothing here imports it.
        path: A file; one that is there is replaced.
        rank, energy: As in `Patch.factors`.

    Returns:
        What was written: the ranks and the errors.

    Raises:
        ValueError: llama.cpp has no models of this family, or as in `Patch.factors`.
        FloatingPointError: A shift is not finite.
        OSError: It cannot be written; nothing is left behind.
    """
    from gguf import GGUFType, GGUFWriter, Keys

    architecture, names = gguf_architecture(patch.config), gguf_names(patch.config, patch.layers)
    factors: LowRankFactors = patch.factors(rank, energy, torch.float32)
    name, origin = base_name(patch.config), hub_id(origin_of(patch.config))

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
            writer.add_tensor(f"{tensor}.lora_a", factors.down(layer).numpy())
            writer.add_tensor(f"{tensor}.lora_b", factors.up(layer).numpy())
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    atomic_write(path, write)
    return factors
