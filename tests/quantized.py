"""Tiny models whose layers hold 8-bit codes, as a package of no particular kind would quantize them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from tests.models import tiny_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Coded(nn.Module):
    """A linear layer of 8-bit codes and a scale for each row of its weight, which computes in one dtype only."""

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        super().__init__()
        weight = layer.weight.detach()
        weight = weight.T if isinstance(layer, Conv1D) else weight
        scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("codes", (weight.float() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.to(weight.dtype))
        self.bias = layer.bias

    @property
    def dense(self) -> Tensor:
        """(d_value, d_key), what it computes."""
        assert isinstance(self.scale, Tensor)
        assert isinstance(self.codes, Tensor)
        return self.codes.to(self.scale.dtype) * self.scale

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.dense, self.bias)


class Detached(Coded):
    """One whose kernel is for inference only."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).detach()


class Broken(Coded):
    """One whose kernel is for another device."""

    def forward(self, hidden: Tensor) -> Tensor:
        raise RuntimeError("no kernel image is available\nfor this device")


class Packing(Coded):
    """One that lays its weights out for inference when it first runs, as bitsandbytes does on some CPUs."""

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        super().__init__(layer)
        self.support_avx512bf16_for_cpu = True
        self.weight = SimpleNamespace(quant_state=SimpleNamespace(packing_format_for_cpu=False))

    def forward(self, hidden: Tensor) -> Tensor:
        if self.support_avx512bf16_for_cpu and not hidden.requires_grad:
            self.weight.quant_state.packing_format_for_cpu = True
        output = super().forward(hidden)
        return output.detach() if self.weight.quant_state.packing_format_for_cpu else output


class Saturating(Coded):
    """One that is not linear."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.clamp(-1e-3, 1e-3))


def quantized_model(
    family: str = "llama", kind: type[Coded] = Coded, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:
    """A tiny model with all linear layers of its blocks quantized, as transformers gives it."""
    model = tiny_model(family, seed, dtype)
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Linear, Conv1D)) and module is not model.get_output_embeddings():
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, kind(module))
    model.is_quantized = True
    model.config.quantization_config = {"quant_method": "coded", "bits": 8}
    model.config.dtype = dtype
    return model.eval()


def dense_model(quantized: Any, family: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    """The model of plain layers that computes the same."""
    model = tiny_model(family, dtype=dtype)
    for name, module in quantized.named_modules():
        if isinstance(module, Coded):
            layer = model.get_submodule(name)
            layer.weight.data.copy_(module.dense.T if isinstance(layer, Conv1D) else module.dense)
    return model
