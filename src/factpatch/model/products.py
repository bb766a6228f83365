"""How a CPU multiplies by a weight when a model is only asked, and nothing is optimized.

PyTorch hands float32 products to MKL, Intel's library. On AMD's processors with AVX-512 it takes up to three times as
long for a few rows, such as those of a step of decoding, as oneDNN, which PyTorch has too: docs/performance.md.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factpatch.model.hooks import shadowed
from factpatch.model.language_model import LanguageModel
from factpatch.model.quantized import is_plain


@contextmanager
def asking(lm: LanguageModel) -> Iterator[None]:
    """Let the linear maps of a float32 model take the faster library, except where gradients are recorded.

    Results differ by rounding, so no key, value or shift is computed inside. What is decided by asking may fall the
    other way where two answers are as good as equal: which facts are mended, for example.
    """
    with shadowed(_replacements(lm) if _by_onednn() else ()):
        yield


def _replacements(lm: LanguageModel) -> Iterator[tuple[nn.Module, str, Callable[[Tensor], Tensor]]]:
    for module in lm.model.modules():
        # Not its subclasses, nor what accelerate brings in when it is called, nor what somebody else has replaced.
        if type(module) is not nn.Linear or hasattr(module, "_hf_hook") or "forward" in module.__dict__:
            continue
        weight = module.weight
        if is_plain(weight) and weight.device.type == "cpu" and weight.dtype == torch.float32:
            yield module, "forward", _product(module)


def _product(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(hidden: Tensor) -> Tensor:
        if hidden.dtype != torch.float32 or hidden.numel() == 0 or torch.is_grad_enabled():
            return F.linear(hidden, module.weight, module.bias)
        return _multiplied(hidden, module.weight, module.bias)

    return forward


def _multiplied(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Not public: what torch.compile makes of a linear map on a CPU.
    found: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return found


def _by_onednn() -> bool:
    """Whether to multiply by oneDNN. The processor decides: a measurement would not decide alike every time."""
    return bool(torch.backends.mkldnn.enabled) and _pays() and _can_multiply()


@cache
def _pays() -> bool:
    """Whether this is a processor of AMD's with AVX-512. Without it MKL is about as fast, with one thread faster."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    described = platform.processor()
    with suppress(OSError):
        described += Path("/proc/cpuinfo").read_text("utf-8")
    return "AuthenticAMD" in described


@cache
def _can_multiply() -> bool:
    """Whether this PyTorch has the operation, with the arguments that are given here."""
    try:
        with torch.inference_mode():
            _multiplied(torch.ones(2, 2), torch.ones(2, 2), None)
    except (AttributeError, RuntimeError):
        return False
    return True
