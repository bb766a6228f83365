"""The edited weights of a model alone, for those who have the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from factpatch.model.experts import is_experts, stored
from factpatch.model.language_model import editable_names, editable_weights, loaded_architecture
from factpatch.model.quantized import check_mergeable
from factpatch.support.files import atomic_write


def write_changed(model: Any, places: Sequence[int], path: str | Path, shared_expert: bool = False) -> list[str]:
    """Write the weights at some places as one safetensors file, as the model's state dict has them.

    `model.load_state_dict(load_file(path), strict=False)` puts them into the unedited model: their names, their dtype
    and their orientation, which GPT-2 transposes, are the model's own.

    Args:
        model: A transformers model that holds the edit.
        path: A file; one that is there is replaced.
        shared_expert: Whether the edited weights are those of the shared expert of a mixture of experts.

    Returns:
        The names of the weights.

    Raises:
        ValueError: Unknown family, absent weights, or a quantized model.
        OSError: It cannot be written; nothing is left behind.
    """
    check_mergeable(model)
    names = editable_names(model, shared_expert)
    row = loaded_architecture(model)
    tensors = {}
    for place, weight in editable_weights(model, places, shared_expert).items():
        module = model.get_submodule(names[place].rpartition(".")[0])
        as_stored = stored(module, weight) if is_experts(module) else weight.T if row.turned(place) else weight
        tensors[names[place]] = as_stored.cpu().contiguous()
    atomic_write(path, lambda draft: save_file(tensors, draft, {"format": "pt"}))
    return list(tensors)
