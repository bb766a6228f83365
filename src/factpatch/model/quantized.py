"""Quantized models: each layer computes as its package has it, and what an edit writes is added beside it.

    key ──▶ quantized layer, untouched ───────▶ + ──▶ value
     └────▶ weight − original, float32, dense ──┘

`original` is what the layer computes, as a matrix: its outputs for the unit vectors. `weight` begins as a copy of it,
and is what an edit, a patch and an undo see and write. So nothing is quantized a second time, no package is asked how
it stores its numbers, and the model is the one that is served with the shift as an adapter.

A layer's matrices exist from when its weight is first asked for: only layers that are edited take memory for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from factpatch.model.hooks import captured

K = TypeVar("K")

PLAIN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Unit vectors that a layer is given at once.
_ROWS = 1024
# How far a layer may be from its matrix on a key, relative to the value. Activations in 8 bits differ by a few percent.
_LINEAR = 0.2


def is_plain(weight: Tensor) -> bool:
    """Whether a tensor holds the floating-point numbers that it seems to, so that they can be read and written."""
    return type(weight) in (Tensor, nn.Parameter) and weight.dtype in PLAIN_DTYPES


def is_quantized(model: Any) -> bool:
    """Whether a transformers model was loaded as a quantized one, or holds weights of a package's own kind."""
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        return True
    return any(not is_plain(weight) for weight in model.parameters())


def quantization(model: Any) -> str:
    """Return what messages call the quantization of a model, such as bitsandbytes or gptq."""
    about = getattr(model.config, "quantization_config", None)
    method = about.get("quant_method") if isinstance(about, Mapping) else getattr(about, "quant_method", None)
    return str(getattr(method, "value", method) or "of a kind that its config does not name")


def is_quantized_layer(module: nn.Module) -> bool:
    """Whether a module of a quantized model, without modules in it, is one that its package has put there."""
    if any(module.children()):
        return False
    place = type(module).__module__
    own = place.startswith(("torch.", "transformers.")) and not place.startswith("transformers.integrations.")
    holds = any(True for _ in (*module.parameters(), *module.buffers()))  # activation functions hold nothing
    replaced = "forward" in vars(module) and not hasattr(module, "_hf_hook")
    return replaced or (holds and not own) or any(not is_plain(weight) for weight in module.parameters())


class Unmerged:
    """The dense weight of a quantized layer, a forward hook of that layer which adds what was written to it.

    A hook leaves the layer's place, class, parameters and state as they are, so that the package, transformers and peft
    find the layer that they know.
    """

    def __init__(self, original: Tensor) -> None:
        self.original = original
        """(d_value, d_key): what the layer computes."""
        self.weight = nn.Parameter(original.clone(), requires_grad=False)
        """(d_value, d_key): what the layer computes with what is added."""
        self._shift: Tensor | None = None
        self._seen = self.weight._version

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a tensor counts its writes anew, and would reach a number that was seen in the original.
        return {**self.__dict__, "_shift": None, "_seen": -1}

    @property
    def written(self) -> bool:
        """Whether the weight differs from what the layer computes."""
        return not torch.equal(self.weight, self.original)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # The difference is formed once after each time that the weight was written, and not for every token.
        if self._seen != self.weight._version:
            with torch.inference_mode(False), torch.no_grad():  # what is formed in inference mode takes no gradients
                self._shift = self.weight - self.original if self.written else None
            self._seen = self.weight._version
        if self._shift is None:
            return output
        shift = self._shift.to(output.device)
        return (output.to(shift.dtype) + args[0].to(shift.dtype) @ shift.T).to(output.dtype)


def held(module: nn.Module) -> Unmerged | None:
    """Return the dense weight of a layer if there is one yet."""
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, Unmerged)), None)


def release(module: nn.Module) -> None:
    """Remove the dense weight of a layer, and what was written to it."""
    for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, Unmerged)]:
        del module._forward_hooks[key]


def all_held(module: nn.Module) -> Iterator[tuple[str, Unmerged]]:
    """The dense weights that there are in a model or a part of it, by the name of their layer."""
    for name, part in module.named_modules():
        if (found := held(part)) is not None:
            yield name, found


def first_pass(model: Any, modules: Mapping[K, nn.Module]) -> dict[K, Tensor]:
    """Run a quantized model on one token; return what enters some modules, (1, 1, width), as it is when they run.

    Some packages bring weights into the form that they compute with only now.

    Raises:
        ValueError: It cannot run.
    """
    _keep_differentiable(model)
    try:
        with torch.inference_mode(False), torch.no_grad(), captured(inputs=modules) as seen:
            embeddings = model.get_input_embeddings()
            device = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
            device = embeddings.weight.device if device is None else device
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=False)
        if any(inputs.is_meta for inputs in seen.values()):
            raise ValueError("it has no weights in memory")
    except Exception as error:  # packages raise many kinds
        raise ValueError(_cannot(model, f"cannot run here: {_line(error)}", _SERVED)) from error
    return seen


def unmerged(model: Any, modules: Mapping[K, nn.Module]) -> dict[K, Unmerged]:
    """Return the dense weights of some layers of a quantized model; what is not there yet is read and put in place.

    Raises:
        ValueError: The model cannot run, or a layer's output is no linear map of its input.
    """
    missing = {name: module for name, module in modules.items() if held(module) is None}
    if missing:
        for name, inputs in first_pass(model, missing).items():
            missing[name].register_forward_hook(Unmerged(_dequantized(model, missing[name], inputs)))
    return {name: found for name, module in modules.items() if (found := held(module)) is not None}


def _dequantized(model: Any, layer: Any, inputs: Tensor) -> Tensor:
    """What a layer computes, (d_value, d_key), without its bias: its outputs for the unit vectors.

    Args:
        inputs: (1, 1, d_key), a real input of the layer.
    """
    width = inputs.shape[-1]
    rows = []
    bias: Any = getattr(layer, "bias", None)
    # Not the real input: that of a token that pads is zero.
    key = torch.randn((1, width), generator=torch.Generator().manual_seed(0)).to(inputs)
    try:
        if bias is not None:
            layer.bias = None  # subtracting it would round
        # Not called as a module: hooks are for real inputs.
        with torch.inference_mode(False), torch.no_grad():
            for start in range(0, width, _ROWS):
                units = torch.zeros((min(_ROWS, width - start), width), dtype=inputs.dtype, device=inputs.device)
                units.diagonal(start).fill_(1)
                rows.append(layer.forward(units))
            value = layer.forward(key)
    finally:
        if bias is not None:
            layer.bias = bias
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    original = torch.cat(rows).to(dtype).T.contiguous()
    expected = key.to(original.device, dtype) @ original.T
    if not float((expected - value.to(dtype)).norm()) <= _LINEAR * float(value.to(dtype).norm()):
        raise ValueError(
            _cannot(model, "the output of a down-projection is no linear map of its input", _SERVED)
        )  # fmt: skip
    return original


def check_gradients(model: Any, layer: nn.Module) -> None:
    """Raise ValueError unless gradients pass a quantized model's layers, as the optimization of values needs."""
    (inputs,) = first_pass(model, {0: layer}).values()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            key = inputs.clone().requires_grad_()
            layer(key).float().sum().backward()  # type: ignore[no-untyped-call]
            passes = key.grad is not None and bool(key.grad.any())
            said = "no gradients pass them"
    except Exception as error:  # packages raise many kinds
        passes, said = False, _line(error)
    if not passes:
        raise ValueError(_cannot(model, f"values cannot be optimized through its layers: {said}", _REBASED))


def check_mergeable(model: Any) -> None:
    """Raise ValueError for a quantized model: its files have no place for what was written beside its layers."""
    if is_quantized(model):
        raise ValueError(
            _cannot(
                model,
                "an edit cannot be merged into its weights",
                "Keep the patch, and serve it beside this model: factpatch export PATCH --to peft --out DIR. Or edit "
                "the model that it was made from, and quantize the result.",
            )
        )


def _keep_differentiable(model: Any) -> None:
    """Keep bitsandbytes from laying 4-bit weights out for inference, as on some CPUs it does when they first run.

    Raises:
        ValueError: It has done so. The way back that it has does not give the same scales.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
        if getattr(getattr(getattr(module, "weight", None), "quant_state", None), "packing_format_for_cpu", False):
            raise ValueError(
                _cannot(
                    model,
                    "has run here before: on this CPU its package then rounds its scales and lets no gradients pass",
                    "Load it again, and give it to factpatch before it runs.",
                )
            )


_SERVED = (
    "Edit the model that it was made from, and give the patch to the quantized one where that is served: factpatch "
    "export PATCH --to peft --out DIR."
)
_REBASED = (
    "Edit the model that it was made from, or what model.dequantize() returns, and use the patch here: factpatch "
    "rebase MODEL PATCH --out NEW, or patch.rebase(model) in Python."
)


def _cannot(model: Any, what: str, remedy: str) -> str:
    name = getattr(model.config, "_name_or_path", "") or model.config.model_type
    return f"{name} is quantized ({quantization(model)}), and {what.rstrip('.')}. {remedy}"


def _line(error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"
