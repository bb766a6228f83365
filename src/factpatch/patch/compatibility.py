"""Whether a patch and a model belong together: architecture, shapes, dtypes and the content of the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from factpatch.model.architectures import SHARED_EXPERT, Architecture, same_layout
from factpatch.model.experts import is_experts
from factpatch.model.gguf import GGUFFile, find_gguf, open_gguf
from factpatch.model.gguf_names import gguf_architecture, gguf_names
from factpatch.model.language_model import (
    LanguageModel,
    editable_names,
    editable_weights,
    loaded_architecture,
    model_name,
    text_config,
)
from factpatch.model.places import layer_list, layer_of, makes_keys, name_of
from factpatch.model.quantized import is_quantized
from factpatch.model.weights import changed_layers, content_hash, matrix_shape
from factpatch.patch.batch import Batch, states
from factpatch.support.words import quoted

# What a model must share with the one that was edited, under the names of any family.
_DIMENSIONS = (
    ("model_type",),
    ("hidden_size", "n_embd"),
    ("intermediate_size", "n_inner", "ffn_dim"),
    ("num_hidden_layers", "n_layer"),
)

_REBASE = "factpatch rebase MODEL PATCH --out NEW, or patch.rebase(model) in Python"


class PatchMismatchError(ValueError):
    """A patch and a model do not belong together; the model is unchanged and the message says what differs."""


def transformers_model(model: Any) -> Any:
    """The transformers model itself, or the one that a `LanguageModel` wraps."""
    return model.model if isinstance(model, LanguageModel) else model


def check_config(config: Mapping[str, Any], model: Any) -> None:
    """Raise PatchMismatchError unless a transformers model has the architecture of a patch's `config`.

    Two model types with the same blocks count as one: a GGUF file of a Mistral model, for instance, is one of Llama's.
    """
    there = text_config(model)
    differing = []
    for names in _DIMENSIONS:
        ours, its = ([d[name] for name in names if d.get(name) is not None] for d in (config, there.to_dict()))
        # A field missing on either side decides nothing; shapes and hashes will.
        if ours and its and ours[0] != its[0] and not (names == ("model_type",) and same_layout(ours[0], its[0])):
            differing.append(f"{names[0]} is {quoted(ours[0])} in the patch and {its[0]!r} in the model")
    if differing:
        raise PatchMismatchError(
            f"the patch was made for another architecture than {model_name(there)}: {'; '.join(differing)}."
        )


def fitting_weights(
    config: Mapping[str, Any], weight_dtype: torch.dtype, batches: Sequence[Batch], model: Any
) -> dict[int, Tensor]:
    """The weights that batches edit; PatchMismatchError unless the architecture, shapes and dtype are right."""
    model = transformers_model(model)
    check_config(config, model)
    name = model_name(text_config(model))
    shared = config.get(SHARED_EXPERT) is True
    known = editable_names(model, shared)
    layers = sorted({layer for batch in batches for layer in batch.shifts})
    missing = [layer for layer in layers if layer not in known]
    if missing:
        last = max(map(layer_of, known))
        raise PatchMismatchError(f"the patch edits {layer_list(missing)}, but {name} has layers 0 to {last}.")
    weights = editable_weights(model, layers, shared)
    for layer, shift in (item for batch in batches for item in batch.shifts.items()):
        if shift.shape != matrix_shape(weights[layer]):
            raise PatchMismatchError(
                f"layer {name_of(layer)}: the patch shifts a weight of shape {shift.shape}, but that of {name} has "
                f"shape {matrix_shape(weights[layer])}."
            )
    others = [layer for layer in layers if weights[layer].dtype != weight_dtype]
    if others:
        if is_quantized(model):
            raise PatchMismatchError(
                f"the patch was made for other weights than {name} has, which is quantized. Rebase it, verify the "
                f"facts there and use the result: {_REBASE}."
            )
        mine, its = (str(dtype).removeprefix("torch.") for dtype in (weight_dtype, weights[others[0]].dtype))
        raise PatchMismatchError(
            f"the patch was made for {mine} weights, but the weights of {layer_list(others)} are {its}; load the model "
            f"with dtype={weight_dtype}."
        )
    return weights


def check_state(
    config: Mapping[str, Any], batches: Sequence[Batch], weights: Mapping[int, Tensor], model: Any, wanted: int
) -> None:
    """Raise PatchMismatchError, saying what the weights are, unless they are those after the first `wanted` batches."""
    known = states(batches)
    found = {layer: content_hash(weights[layer]) for layer in weights}
    if found == known[wanted]:
        return
    name = model_name(text_config(transformers_model(model)))
    held = known.index(found) if found in known else None
    differing = layer_list([layer for layer in found if found[layer] != known[wanted].get(layer)])
    if held == len(batches):
        message = f"{name} already holds this patch; it was not applied a second time."
    elif held == 0:
        message = f"{name} does not hold this patch: its weights are those from before the edit."
    elif held is not None:
        message = (
            f"{name} holds only the first {held} of the patch's {len(batches)} batches; restore the base model first."
        )
    elif wanted == 0:
        message = (
            f"the weights of {differing} of {name} are not those that the patch was made for{_made_for(config)}. Load "
            "that model, without other edits; or rebase the patch, if it is meant for these weights too, and use the "
            f"result: {_REBASE}. factpatch apply and export do both with --rebase."
        )
        if is_quantized(transformers_model(model)):
            message += " Those of a quantized model also depend on the dtype and device it runs in, and on its package."
    elif not all(batch.after for batch in batches):
        message = (
            f"the patch was composed or shrunk and does not record the weights it leaves in {differing}; give base, "
            "from which they can be computed."
        )
    else:
        message = (
            f"the weights of {differing} of {name} are not those that the patch leaves. If they were edited after it, "
            "remove the later edits first. If applying the patch warned that they are rounded differently on this "
            "machine, give base (--base). A GGUF file that the patch was merged into is rounded: use the unedited one."
        )
    raise PatchMismatchError(message)


def base_weights(
    config: Mapping[str, Any], weight_dtype: torch.dtype, expected: Mapping[int, str], model: Any, base: Any
) -> dict[int, Tensor]:
    """The weights of a patch's layers in `base`, a model or a directory, in the patch's dtype.

    Args:
        expected: The content hash of each of these weights.
        model: Shows how the weights of a directory are stored.

    Raises:
        PatchMismatchError: They are not those that the patch was made for, or the architecture differs.
        FileNotFoundError: `base` is a path without safetensors in it.
    """
    layers, shared = sorted(expected), config.get(SHARED_EXPERT) is True
    if isinstance(base, (str, Path)):
        if is_quantized(transformers_model(model)):
            raise PatchMismatchError(
                f"base={str(base)!r}: the files of a quantized model do not hold the weights that were edited; give "
                "the loaded model."
            )
        name, file = str(base), find_gguf(str(base))
        saved = gguf_weights(config, open_gguf(file), layers) if file is not None else None
        found = saved or _saved_weights(Path(base), transformers_model(model), layers, shared)
    else:
        base = transformers_model(base)
        name = model_name(text_config(base))
        check_config(config, base)
        found = editable_weights(base, layers, shared)
    # The same as loading a saved model in the patch's dtype.
    weights = {layer: weight.to(weight_dtype) for layer, weight in found.items()}
    check_base(f"base={name}", config, weights, expected)
    return weights


def check_base(
    name: str, config: Mapping[str, Any], weights: Mapping[int, Tensor], expected: Mapping[int, str], advice: str = ""
) -> None:
    """Raise PatchMismatchError unless these are the weights that a patch was made for, by their content hashes."""
    differing = changed_layers(weights, expected, sorted(expected))
    if differing:
        raise PatchMismatchError(
            f"{name}: the weights of {layer_list(differing)} are not those that the patch was made for"
            f"{_made_for(config)}.{advice}"
        )


def gguf_weights(config: Mapping[str, Any], file: GGUFFile, layers: Sequence[int]) -> dict[int, Tensor]:
    """The editable weights of some layers of a GGUF model, dequantized: (d_value, d_key) in float32.

    Of experts they are (d_value, experts, d_key), as `in_gguf` takes them back.

    Raises:
        PatchMismatchError: It is of another architecture than `config`, or has fewer layers.
        ValueError: llama.cpp has no models of that family.
    """
    wanted, names = gguf_architecture(config), gguf_names(config, layers)
    if file.architecture != wanted:
        raise PatchMismatchError(
            f"{file.path}: its architecture is {quoted(file.architecture)}, and the patch was made for {wanted!r}"
            f"{_made_for(config)}. Give that model as a GGUF file."
        )
    missing = [layer for layer in layers if names[layer] not in file.tensors]
    if missing:
        raise PatchMismatchError(
            f"{file.path}: it has no {names[missing[0]]}, and the patch edits {layer_list(missing)}. Give the model "
            f"that the patch was made on{_made_for(config)}."
        )
    # Copies: of a tensor in float32 the reader shows the file itself, which cannot be written to.
    return {place: in_gguf(torch.tensor(file.dequantized(names[place])), place) for place in layers}


def in_gguf(weight: Tensor, place: int) -> Tensor:
    """Swap the first two dimensions of weights that make keys, and of experts', which are (d_value, experts, d_key)."""
    return weight.transpose(0, 1) if weight.dim() == 3 or makes_keys(place) else weight


def _made_for(config: Mapping[str, Any]) -> str:
    origin = config.get("_name_or_path")
    return f" ({origin})" if origin else ""


def _saved_weights(directory: Path, model: Any, layers: Sequence[int], shared: bool) -> dict[int, Tensor]:
    """Read the editable weights of some layers of a saved `model` from its safetensors, as (d_value, d_key) views."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if not single.is_file() and not index.is_file():
        raise FileNotFoundError(
            f"base={str(directory)!r} holds neither {single.name} nor {index.name}; give the directory of a model that "
            "was saved with save_pretrained."
        )
    row, names = loaded_architecture(model, shared), editable_names(model, shared)
    if any(is_experts(model.get_submodule(names[layer].rpartition(".")[0])) for layer in layers):
        # In its files, transformers has every expert apart, under names that differ by family.
        return editable_weights(type(model).from_pretrained(directory, dtype="auto", local_files_only=True), layers)
    weights = {}
    try:
        if single.is_file():
            with safe_open(single, framework="pt") as file:
                shards = dict.fromkeys(file.keys(), single.name)
        else:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for layer in layers:
            name = _name_in(shards, names[layer], row)
            if name is None:
                raise PatchMismatchError(f"base={str(directory)!r} has no weight named {names[layer]}.")
            with safe_open(directory / shards[name], framework="pt") as file:
                tensor = file.get_tensor(name)
            weights[layer] = tensor.T if row.turned(layer) else tensor
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise PatchMismatchError(f"base={str(directory)!r} cannot be read: {error}.") from error
    return weights


def _name_in(shards: Mapping[str, str], name: str, row: Architecture) -> str | None:
    """What a checkpoint calls a weight; None if it has none of that name.

    A checkpoint of the body alone, such as the original GPT-2, lacks the name of the body. Of a model of images and
    text, transformers writes the names that it had in older versions, in which the text model stood elsewhere.
    """
    bare = name.partition(".")[2]
    found = [there for there in (name, bare) if there in shards]
    if row.text_model is not None and not found:
        within = name.removeprefix(f"{row.text_model}.")
        found = [there for there in shards if there.endswith(f".{within}") and "vision" not in there]
    return found[0] if found else None
