"""In which dtypes the value optimization computes: matrix products in one, everything small in another."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from factpatch.model.hooks import shadowed
from factpatch.model.language_model import LanguageModel
from factpatch.model.quantized import is_quantized_layer, quantization
from factpatch.support.words import suggestion

logger = logging.getLogger(__name__)

AUTO = "auto"
COMPILER = "inductor"
"""The backend of `torch.compile`."""


@dataclass(frozen=True)
class Precision:
    """A pair of dtypes under a name."""

    name: str
    products: torch.dtype
    """Of matrix products: the linear maps in the blocks and the output head, their inputs and outputs."""
    stream: torch.dtype
    """Of everything else: hidden states, norms, attention, losses, δ and Adam's state."""
    compiled: bool = False
    """Whether `torch.compile` fuses the MLPs and the norms of the blocks, which takes a minute at first. Attention runs
    as always: its rows differ in length."""


PRECISIONS = {
    row.name: row
    for row in (
        Precision("exact", torch.float64, torch.float64),
        Precision("float32", torch.float32, torch.float32),
        Precision("fast", torch.bfloat16, torch.float32),
    )
}
_FASTER = 1.3
"""Conversions and what is not a product take back some of what products in 16 bits save."""
_STORED = {torch.float64: "exact", torch.float32: "float32"}


def check_precision(name: str | None) -> None:
    """Raise ValueError unless there is a precision of this name; None and 'auto' follow what the model is stored in."""
    if name is not None and name not in (AUTO, *PRECISIONS):
        raise ValueError(f"precision={name!r}: no such precision.{suggestion(str(name), [AUTO, *PRECISIONS])}")


def precision_for(lm: LanguageModel, name: str | None = None, short: bool = False) -> Precision:
    """Return the precision of a name, for a model.

    `exact` is float64 and `float32` is float32 throughout. `fast` has 16-bit products, in float16 for a model that is
    stored so and else in bfloat16, and everything small in float32. The default follows what the model is stored in:
    exact for float64, float32 for float32, fast for 16 bits.

    What PyTorch multiplies as float32 is float32 on every device by default. A program may allow less, by
    `torch.set_float32_matmul_precision` or `torch.backends`: TF32 on CUDA, bfloat16 on some CPUs. factpatch respects
    that and never asks for it.

    Args:
        name: A key of `PRECISIONS`, or None or 'auto' for the default.
        short: Whether the default of a float32 model is fast, where its device multiplies in bfloat16 faster.

    Raises:
        ValueError: No such precision.
    """
    check_precision(name)
    if name == AUTO:
        name = None
    if name is None and short and lm.dtype == torch.float32 and not lm.quantized and _short_products(lm.device):
        name = "fast"
    if name == "exact" and lm.quantized:
        raise ValueError(
            f"precision='exact': {lm.name} is quantized ({quantization(lm.model)}), and its layers do not compute in "
            "float64. Use float32, or edit the model that it was made from."
        )
    if name == "fast" and lm.device.type == "cpu" and _short_products(lm.device) is False:
        _warn_of_slow_products()
    chosen = PRECISIONS[_STORED.get(lm.dtype, "fast") if name is None else name]
    in_float16 = chosen.products == torch.bfloat16 and lm.dtype == torch.float16
    return replace(chosen, products=torch.float16) if in_float16 else chosen


def _short_products(device: torch.device) -> bool | None:
    """Whether a device multiplies in bfloat16 faster than in float32; None if it is not known.

    Of a CPU with instructions for it, that is measured: without AMX, those of some are slower than float32's.
    """
    instructions = _short_instructions(device)
    return _measured_faster() if instructions and device.type == "cpu" else instructions


@lru_cache(maxsize=1)
def _measured_faster() -> bool:
    """Whether this CPU multiplies `_FASTER` times as fast in bfloat16; a twentieth of a second."""

    def took(factors: tuple[Tensor, Tensor]) -> float:
        start = time.perf_counter()
        torch.mm(*factors)
        return time.perf_counter() - start

    with torch.inference_mode():
        dtypes = (torch.bfloat16, torch.float32)
        pairs = [(torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)) for dtype in dtypes]
        # In turns, and the best of some: other work can slow either down, and nothing speeds it up.
        runs = [[took(pair) for pair in pairs] for _ in range(6)]
    short, plain = (min(times) for times in zip(*runs, strict=True))
    logger.debug("256 x 1024 x 1024: %.4f s in bfloat16, %.4f s in float32", short, plain)
    return bool(plain > _FASTER * short)


def _short_instructions(device: torch.device) -> bool | None:
    """Whether a device has instructions for products in bfloat16; None if it is not known."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    # Not public, and not in every version.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    known = [bool(check()) for check in (getattr(torch.cpu, name, None) for name in names) if check is not None]
    return any(known) if known else None


@lru_cache(maxsize=1)
def _warn_of_slow_products() -> None:
    """Once in a process."""
    logger.warning(
        "precision='fast' is slower on this CPU than precision='float32', since it multiplies no faster in bfloat16. "
        "The result is as good as where it is fast."
    )


@contextmanager
def computing(lm: LanguageModel, precision: Precision) -> Iterator[LanguageModel]:
    """Let a model compute in a precision, whatever it is stored in. Its parameters stay, its methods are restored.

    Where products are in another dtype than their weights, cast copies of the weights live as long as the context, or
    as that of `sharing_copies` around it: of all blocks and the head, so that a float32 model takes half as much memory
    again for fast, and twice for exact. Weights that accelerate offloads are not kept; they are cast whenever they are
    brought in. A module that is stored in the very dtypes asked for is left alone. The layers of a quantized model
    compute as always, in what the model runs in. Gradients reach activations, not parameters.

    Yields:
        The same model, seen with hidden states in this precision.
    """
    with shadowed(_replacements(lm, precision)), shadowed(_fused(lm) if precision.compiled else ()):
        yield lm.with_stream(precision.stream)


def _fused(lm: LanguageModel) -> Iterator[tuple[nn.Module, str, Callable[..., Any]]]:
    """The MLPs and norms of all blocks, compiled once for rows of any number."""
    for layer, block in enumerate(lm.blocks):
        for module in block.modules():
            # A norm has a vector of weights, if any at all, and no part.
            own = list(module.parameters())
            norm = own and all(weight.dim() == 1 for weight in own) and not list(module.children())
            if norm or module is lm.mlp(layer):
                yield module, "forward", torch.compile(module.forward, dynamic=True, backend=COMPILER)


def _replacements(lm: LanguageModel, precision: Precision) -> Iterator[tuple[nn.Module, str, Callable[..., Any]]]:
    """The modules that would compute in another dtype, the method that computes, and its replacement."""
    for module in lm.model.modules():
        # accelerate's `forward` brings the weights and calls this one.
        method = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
        if lm.quantized and is_quantized_layer(module):
            if lm.dtype != precision.stream:
                yield module, method, _in_its_own(getattr(module, method), lm.dtype, precision.stream)
            continue
        stored = {parameter.dtype for parameter in module.parameters(recurse=False) if parameter.is_floating_point()}
        if not stored:
            continue
        if isinstance(module, (nn.Linear, Conv1D)):
            if stored | {precision.products} != {precision.stream}:
                yield module, method, _product(module, precision)
        elif stored != {precision.stream}:
            if isinstance(module, nn.LayerNorm):
                yield module, method, _layer_norm(module)
            elif any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
                # Routers, fused experts and convolutions multiply what they are given by what they store.
                yield module, method, _in_its_own(getattr(module, method), min(stored, key=str), precision.stream)
            else:
                yield module, method, _cast(getattr(module, method), precision.stream)


_Copies = dict[tuple[int, torch.dtype], tuple[Tensor, int, Tensor]]
"""By a weight's identity and a dtype: the weight, the number of its writes when it was cast, and the copy."""
_kept_copies: ContextVar[_Copies | None] = ContextVar("kept copies", default=None)


@contextmanager
def sharing_copies() -> Iterator[None]:
    """Let all `computing` inside share their cast copies of weights, which then live until this context ends.

    A weight that is written meanwhile is cast again.
    """
    token = _kept_copies.set({})
    try:
        yield
    finally:
        _kept_copies.reset(token)


def _copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A cast copy, or one that is there already."""
    known = _kept_copies.get()
    # Of inference tensors writes are not counted; what is no parameter may be made anew each time.
    if known is None or weight.is_inference() or not isinstance(weight, nn.Parameter):
        return weight.detach().to(dtype)
    name = id(weight), dtype
    _, writes, copy = known.get(name, (weight, -1, weight))
    if writes != weight._version:
        copy = weight.detach().to(dtype)
        known[name] = weight, weight._version, copy
    return copy


def _product(module: nn.Linear | Conv1D, precision: Precision) -> Callable[[Tensor], Tensor]:
    def parameters(weight: Tensor) -> tuple[Tensor, Tensor | None]:
        bias = None if module.bias is None else module.bias.detach().to(precision.products)
        return (weight.T if isinstance(module, Conv1D) else weight), bias

    copied = module.weight.dtype != precision.products and not module.weight.is_meta
    kept = parameters(_copy(module.weight, precision.products)) if copied else None

    def forward(hidden: Tensor) -> Tensor:
        weight, bias = kept or parameters(module.weight.detach().to(precision.products))
        return F.linear(hidden.to(precision.products), weight, bias).to(precision.stream)

    return forward


def _in_its_own(forward: Callable[..., Any], given: torch.dtype, returned: torch.dtype) -> Callable[..., Any]:
    """A module that takes and gives one dtype only: a quantized layer's kernels, or matrices in no linear map."""

    def cast(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, tuple):
            return tuple(cast(one, dtype) for one in value)
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def forward_in_it(*args: Any, **kwargs: Any) -> Any:
        named = {name: cast(value, given) for name, value in kwargs.items()}
        return cast(forward(*(cast(value, given) for value in args), **named), returned)

    return forward_in_it


def _layer_norm(module: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """PyTorch refuses a layer norm whose parameters have another dtype than what it norms."""

    def forward(hidden: Tensor) -> Tensor:
        weight, bias = (None if part is None else part.to(hidden.dtype) for part in (module.weight, module.bias))
        return F.layer_norm(hidden, module.normalized_shape, weight, bias, module.eps)

    return forward


def _cast(forward: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """Embeddings return what they store, and other norms the wider of two dtypes."""

    def cast(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return output.to(dtype) if isinstance(output, Tensor) else output

    return cast
