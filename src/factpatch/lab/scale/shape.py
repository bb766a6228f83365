"""A model's sizes, from its config alone: its modules are made on the meta device, with shapes and no contents."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from factpatch.model.architectures import ARCHITECTURES
from factpatch.model.embedded import EMBEDDED, embedded_directory
from factpatch.support.words import suggestion

DTYPES: dict[str, int] = {name: getattr(torch, name).itemsize for name in ("float32", "bfloat16", "float16", "float64")}
"""Bytes of a number."""
# Fields of configs that say how many experts a block has, and how many of them a token passes.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_PASSED = ("num_experts_per_tok", "moe_topk", "top_k")


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    name: str
    config: Any
    """As transformers reads it."""
    parameters: int
    """All of them; those that are tied count once."""
    layers: int
    d_value: int
    d_key: int
    """Of an expert, in a mixture of experts."""
    vocabulary: int
    block: int
    """Entries of the matrices of one block that a token passes, so that it costs twice as many operations."""
    experts: int = 0
    """How many each block has; 0 if the model is dense."""
    passed: int = 1
    """How many of them a token passes."""
    dtype: str = "float32"
    """What the checkpoint has."""

    @property
    def head(self) -> int:
        """Entries of the output head."""
        return self.d_value * self.vocabulary

    @property
    def matrices(self) -> int:
        """How many down-projections a layer has."""
        return max(1, self.experts)

    def weights(self, dtype: str | None = None) -> int:
        """Bytes of all weights in a dtype, by default the checkpoint's."""
        return self.parameters * DTYPES[dtype or self.dtype]

    def edited(self, dtype: str | None = None) -> int:
        """Bytes of the down-projections of one layer."""
        return self.matrices * self.d_key * self.d_value * DTYPES[dtype or self.dtype]

    def second_moment(self) -> int:
        """Bytes of the second moments of one layer: (d_key, d_key) in float64, for each expert."""
        return self.matrices * self.d_key**2 * 8

    def through(self, layer: int) -> int:
        """Entries of the matrices that a token passes up to a layer's end."""
        return (layer + 1) * self.block


def shape_of(config: Any, name: str = "") -> Shape:
    """Count a model that has this config.

    Raises:
        ValueError: transformers knows no causal language model of this kind.
    """
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # a config can be wrong in as many ways as its family has fields
        raise ValueError(
            f"config of {name or config.model_type}: no causal language model can be made of it "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}). Give the config of a text model."
        ) from error
    blocks = max(
        (part for part in model.modules() if isinstance(part, nn.ModuleList)),
        key=lambda part: sum(weight.numel() for weight in part.parameters()),
        default=None,
    )
    if not blocks:
        raise ValueError(f"config of {name or config.model_type}: the model has no list of blocks; give a transformer.")
    experts = _first(config, _EXPERTS)
    passed = (_first(config, _PASSED) or experts) if experts else 1
    d_key, d_value = _widths(blocks[-1], config, experts)
    return Shape(
        name=name or str(config.model_type),
        config=config,
        parameters=sum(weight.numel() for weight in model.parameters()),
        layers=len(blocks),
        d_value=d_value,
        d_key=d_key,
        vocabulary=int(config.vocab_size),
        # The last one: the first blocks of some mixtures are dense.
        block=_entries(blocks[-1], experts, passed),
        experts=experts,
        passed=passed,
        dtype=_dtype(config),
    )


def _first(config: Any, names: tuple[str, ...]) -> int:
    """The first of some fields that a config has; 0 if it has none, or one that means nothing."""
    found = (getattr(config, name, None) for name in names)
    number = next((value for value in found if isinstance(value, int)), 0)
    return number if number > 1 else 0


def _entries(block: nn.Module, experts: int, passed: int) -> int:
    """Entries of the matrices of a block that a token passes: of its experts, those that it is sent to."""
    total = 0
    for name, weight in block.named_parameters():
        of_expert = bool(experts) and (weight.dim() == 3 or ".experts." in name)
        if weight.dim() > 1:
            total += weight.numel() * passed // experts if of_expert else weight.numel()
    return total


def _widths(block: nn.Module, config: Any, experts: int) -> tuple[int, int]:
    """d_key, the other side of the down-projection, and d_value, the width of the residual stream."""
    d_value = int(config.hidden_size)
    if experts:
        return int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size), d_value
    row = ARCHITECTURES.get(str(config.model_type))
    matrices = [weight for weight in block.parameters() if weight.dim() == 2]
    # The last matrix of a block is nearly always its down-projection, in families that the table does not have too.
    last = matrices[-1] if row is None else block.get_parameter(f"{row.down_projection}.weight")
    return last.numel() // d_value, d_value


def _dtype(config: Any) -> str:
    name = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return name if name in DTYPES else "float32"


def shape_named(model: str) -> Shape:
    """The shape of a model that a user names, from its config; nothing else of it is read or fetched.

    Args:
        model: A directory, a config.json, the name of an embedded model, or an id of the Hugging Face Hub whose config
            is in the cache.

    Raises:
        ValueError: There is no such config, or it is no language model's.
        EmbeddedModelUnavailable, OSError: As from `embedded_directory`.
    """
    place = str(embedded_directory(model)) if model in EMBEDDED else model
    path = Path(place)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"model={model!r}: the directory has no config.json; give one that transformers can load.")
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError, json.JSONDecodeError) as error:
        reason = "cannot be read" if path.exists() else "no such directory or file, and the cache has no such config"
        raise ValueError(
            f"model={model!r}: {reason}. Give a directory, a config.json, or a shape that is shipped (--like "
            f"{', '.join(shipped())})."
        ) from error
    return shape_of(config, model)


@cache
def shipped() -> dict[str, dict[str, Any]]:
    """The configs that the package ships, by name."""
    text = resources.files("factpatch.lab.scale").joinpath("configs.yaml").read_text("utf-8")
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return found


def shape_like(name: str) -> Shape:
    """The shape of a model whose config the package ships; a ValueError suggests the nearest name."""
    if name not in shipped():
        raise ValueError(f"like={name!r}: no such shape is shipped.{suggestion(name, shipped())}")
    fields = dict(shipped()[name])
    return shape_of(CONFIG_MAPPING[fields.pop("model_type")](**fields), name)
