"""Every edited weight seen as (d_value, d_key): identity, snapshot, restore, and the one way in which it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from factpatch.model.experts import is_experts, weight_name, wide
from factpatch.model.quantized import all_held, is_plain, is_quantized
from factpatch.support.words import counted


def oriented(projection: nn.Module, transposed: bool) -> Tensor:
    """Return the weight of a down-projection as a (d_value, d_key) view; writing to the view writes to the model.

    Of experts, it is a (d_value, experts, d_key) view: see `factpatch.model.experts`.
    """
    weight = stored_weight(projection).detach()
    if is_experts(projection):
        return wide(projection, weight)
    return weight.T if transposed else weight


def stored_weight(module: nn.Module) -> Tensor:
    """Return the weight of a module where it is kept between forward passes.

    accelerate keeps the weights of offloaded modules aside, and a placeholder without data in the module. Those in
    memory can be written there; those on disk are read anew each time, so that for them the placeholder is returned.
    """
    name = weight_name(module)
    weight = getattr(module, name)
    assert isinstance(weight, Tensor)
    aside = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    if weight.is_meta and aside is not None:
        kept: Tensor = aside[name]
        if kept.data_ptr() == aside[name].data_ptr():
            return kept
    return weight


def content_hash(weight: Tensor) -> str:
    """Return the SHA-256 of a weight's dtype, shape and bytes."""
    contiguous = weight.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{contiguous.dtype}{tuple(contiguous.shape)}".encode())
    digest.update(contiguous.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def contents(module: nn.Module, quantized: bool) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model, or of a part of it, with their names: all that its outputs depend on.

    Of a quantized one, the codes and scales that its package saves, and what was written beside them.
    """
    if not quantized:
        yield from module.named_parameters()
        return
    for name, weight in module.state_dict().items():
        yield from _parts(name, weight)
    for name, layer in all_held(module):
        if layer.written:
            yield f"{name}.unmerged", layer.weight


def _parts(name: str, weight: object) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a tensor of a package's own kind consists of."""
    if hasattr(weight, "__tensor_flatten__"):
        for part in weight.__tensor_flatten__()[0]:
            yield from _parts(f"{name}.{part}", getattr(weight, part))
    elif isinstance(weight, Tensor):
        yield name, weight


def model_hash(model: nn.Module) -> str:
    """Return the SHA-256 of all weights of a model with their names. It takes as long as reading them once.

    Of a weight that accelerate has put aside, its name, dtype and shape count, and not what it holds.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(contents(model, is_quantized(model))):
        content = f"{weight.dtype}{tuple(weight.shape)}" if weight.is_meta else content_hash(weight)
        digest.update(f"{name}={content}\n".encode())
    return digest.hexdigest()


def check_finite(model: nn.Module) -> None:
    """Raise FloatingPointError if a weight of a model is NaN or infinite; what is not in memory is not read.

    It takes as long as reading the weights once.
    """
    broken = []
    for name, weight in model.named_parameters():
        if weight.is_meta or not is_plain(weight) or weight.numel() == 0:
            continue
        # Both ends in one pass, ten times as fast as asking every number; NaN comes through.
        if not bool(torch.isfinite(torch.stack(torch.aminmax(weight.detach()))).all()):
            broken.append((name, weight.dtype))
    if broken:
        name, dtype = broken[0]
        others = f", and so do {counted(len(broken) - 1, 'other weight')}" if len(broken) > 1 else ""
        wider = ", or load it with dtype bfloat16 or float32 if float16 is too narrow" if dtype == torch.float16 else ""
        raise FloatingPointError(
            f"{name} holds NaN or infinity{others}, so the model is not finite and cannot be used. Get it again{wider}."
        )


def snapshot(weights: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return copies of weights, by layer."""
    return {layer: weight.clone() for layer, weight in weights.items()}


def restore(weights: Mapping[int, Tensor], copies: Mapping[int, Tensor]) -> None:
    """Put copies back, bit for bit."""
    for layer, copy in copies.items():
        weights[layer].copy_(copy)


def add_shift(weight: Tensor, shift: Tensor) -> None:
    """Add a (d_value, d_key) shift in place: accumulated in float32 or wider, cast once.

    Of experts, whose weight is (d_value, experts, d_key), the shift is as wide as all of them together.

    Raises:
        FloatingPointError: The sum is not finite in the weight's dtype; the weight is unchanged.
    """
    accumulator = torch.promote_types(torch.promote_types(weight.dtype, shift.dtype), torch.float32)
    total = (weight.to(accumulator) + shift.to(weight.device, accumulator).reshape(weight.shape)).to(weight.dtype)
    if not bool(torch.isfinite(total).all()):
        raise FloatingPointError(f"the shift makes a weight of dtype {weight.dtype} infinite or undefined")
    weight.copy_(total)


def matrix_shape(weight: Tensor) -> tuple[int, int]:
    """The shape of a shift of a weight: (d_value, d_key), or (d_value, experts · d_key)."""
    return weight.shape[0], weight[0].numel()


def matrices(weights: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Weights as matrices of the shape of their shifts; of experts, copies."""
    return {layer: weight.flatten(1) for layer, weight in weights.items()}


def changed_layers(weights: Mapping[int, Tensor], expected: Mapping[int, str], layers: Iterable[int]) -> list[int]:
    """Return the layers whose weight does not have the expected content hash."""
    return [layer for layer in layers if content_hash(weights[layer]) != expected[layer]]
