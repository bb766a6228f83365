"""How a CPU multiplies by a weight when a model is only asked, and nothing is optimized.

PyTorch hands float32 products to MKL, Intel's library. On AMD's processors it takes up to four times as long for a few
rows, such as those of a step of decoding, as oneDNN, which PyTorch brings along too: docs/performance.md.
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
    """Let the linear maps of a float32 model take the faster library, where gradients are not wanted.

    Results differ by rounding, so nothing that a patch is made of is computed inside.
    """
    with shadowed(_replacements(lm) if _by_onednn() else ()):
        yield


def _replacements(lm: LanguageModel) -> Iterator[tuple[nn.Module, str, Callable[[Tensor], Tensor]]]:
    for module in lm.model.modules():
        # Not its subclasses, nor what accelerate brings in when it is called.
        if type(module) is not nn.Linear or hasattr(module, "_hf_hook"):
            continue
        weight = module.weight
        if is_plain(weight) and weight.device.type == "cpu" and weight.dtype == torch.float32:
            yield module, "forward", _product(module)


def _product(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(hidden: Tensor) -> Tensor:
        if hidden.dtype != torch.float32 or hidden.numel() == 0:
            return F.linear(hidden, module.weight, module.bias)
        # Not public: what torch.compile makes of a linear map on a CPU.
        found: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, module.weight, module.bias, "none", [], "")
        return found

    return forward


@cache
def _by_onednn() -> bool:
    """Whether to multiply by oneDNN: told by the processor, as a measurement would not always say the same."""
    made_by = platform.processor()
    with suppress(OSError):
        made_by += Path("/proc/cpuinfo").read_text("utf-8")
    return "AuthenticAMD" in made_by and hasattr(torch.ops.mkldnn, "_linear_pointwise")
