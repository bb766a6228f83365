"""What llama.cpp calls an edited model and its edited tensors, by the tables of the `gguf` package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from factpatch.model.architectures import ARCHITECTURES, architecture_of, experts_of
from factpatch.model.language_model import projection_name
from factpatch.model.places import layer_of, name_of

if TYPE_CHECKING:
    from gguf import TensorNameMap

_EXPERTS = "model.layers.{}.mlp.experts.down_proj"
"""By which the tables know the down-projections of all families' experts."""


def gguf_architecture(model_config: Mapping[str, Any]) -> str:
    """What `general.architecture` is in a GGUF file of a model with this config.

    Raises:
        ValueError: llama.cpp has no such models, or the family is unknown.
    """
    row = architecture_of(SimpleNamespace(**model_config))
    if row.gguf is None:
        can = ", ".join(sorted(name for name, other in ARCHITECTURES.items() if other.gguf))
        raise ValueError(
            f"model_type={row.model_type!r}: llama.cpp and Ollama cannot run such models (of the families that can be "
            f"edited, they run {can}). Serve the edit as an adapter for peft (--to peft) or as a whole model (--to "
            "safetensors)."
        )
    return row.gguf


def tensor_names(architecture: str, layers: int) -> TensorNameMap:
    """The table of the `gguf` package with the names of tensors of an architecture of so many layers.

    Raises:
        ValueError: The package does not know the architecture.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next((kind for kind, called in MODEL_ARCH_NAMES.items() if called == architecture), None)
    if kind is None:
        raise ValueError(f"gguf={architecture!r}: the installed gguf package knows no such family; upgrade it.")
    return get_tensor_name_map(kind, layers)


def gguf_names(model_config: Mapping[str, Any], layers: Iterable[int]) -> dict[int, str]:
    """The names of the weights at some places in a GGUF file, such as blk.4.ffn_down.weight.

    In a GGUF file they are stored as (d_value, d_key), whichever way transformers stores them, and what makes keys as
    (d_key, d_value); those of experts as (experts, d_value, d_key).

    Raises:
        ValueError: As from `gguf_architecture`, or the `gguf` package does not know the tensors of the family.
    """
    name = gguf_architecture(model_config)
    layers = list(layers)
    known = tensor_names(name, max(map(layer_of, layers), default=-1) + 1)
    # llama.cpp has a text model in a file of its own.
    paths = {layer: projection_name(model_config, layer, within=False) for layer in layers}
    paths |= {layer: _EXPERTS.format(layer) for layer in experts_of(model_config) if layer in paths}
    names = {layer: known.get_name(path) for layer, path in paths.items()}
    for layer, found in names.items():
        if found is None:
            raise ValueError(
                f"layer {name_of(layer)}: the installed gguf package does not know what {paths[layer]} is "
                f"called in a GGUF file of {name}; upgrade it, or correct `blocks` and `down_projection` of the "
                "registered architecture."
            )
    return {layer: f"{found}.weight" for layer, found in names.items()}
