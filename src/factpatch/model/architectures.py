"""One row per model family: where its blocks are, which projection is edited and how its weight is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Config = Any  # a transformers configuration; its attributes differ by family


def _nothing_to_refuse(config: Config) -> str | None:
    return None


@dataclass(frozen=True)
class Architecture:
    """What an editor has to know about one family of models.

    The mathematics assumes that the output of the edited projection is added to the residual stream as it is, so that a
    wanted change of the block's output is a wanted change of the projection's output. `refuse` returns the reason why
    this does not hold for a given config, or None.
    """

    model_type: str
    """`config.model_type` in transformers."""
    blocks: str
    """Path from the causal language model to its list of blocks."""
    down_projection: str
    """Path from a block to the MLP's second projection, whose inputs are the keys."""
    mlp: str
    """Path from a block to the module that ends with the down-projection."""
    attention: str
    """Path from a block to its attention module."""
    transposed: bool = False
    """Whether the weight is stored as (d_key, d_value), as by GPT-2's Conv1D."""
    attends: str | None = None
    """The method of the attention module that attends, if the family does not use transformers' attention interface."""
    returns_tuple: bool = False
    """Whether a block returns a tuple that begins with the hidden states, instead of the hidden states."""
    refuse: Callable[[Config], str | None] = _nothing_to_refuse


def _norm_after_residual(config: Config) -> str | None:
    if not config.do_layer_norm_before:
        return "do_layer_norm_before=False puts a norm between the MLP and the residual stream"
    return None


def _norm_after_mlp(config: Config) -> str | None:
    return (
        "this family puts a norm between the MLP and the residual stream, and the table does not say how a wanted "
        "change passes that norm"
    )


def _like_llama(model_type: str, refuse: Callable[[Config], str | None] = _nothing_to_refuse) -> Architecture:
    return Architecture(model_type, "model.layers", "mlp.down_proj", "mlp", "self_attn", refuse=refuse)


ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture("gpt2", "transformer.h", "mlp.c_proj", "mlp", "attn", transposed=True),
        Architecture("gptj", "transformer.h", "mlp.fc_out", "mlp", "attn", attends="_attn", returns_tuple=True),
        Architecture("gpt_neox", "gpt_neox.layers", "mlp.dense_4h_to_h", "mlp", "attention"),
        Architecture("opt", "model.decoder.layers", "fc2", "fc2", "self_attn", refuse=_norm_after_residual),
        _like_llama("llama"),
        _like_llama("mistral"),
        _like_llama("qwen2"),
        _like_llama("qwen3"),
        _like_llama("phi3"),
        _like_llama("gemma2", refuse=_norm_after_mlp),
        _like_llama("gemma3_text", refuse=_norm_after_mlp),
    )
}


def register_architecture(row: Architecture) -> None:
    """Add a family to the table, or replace its row."""
    ARCHITECTURES[row.model_type] = row


def architecture_of(config: Config) -> Architecture:
    """Return the row for a model's config.

    Raises:
        ValueError: the family is not in the table, or it is there with a reason to refuse this config.
    """
    model_type = getattr(config, "model_type", None)
    row = ARCHITECTURES.get(str(model_type))
    if row is None:
        raise ValueError(
            f"model_type={model_type!r} is not in the table of architectures (known: "
            f"{', '.join(sorted(ARCHITECTURES))}). These facts are needed about it: the path from the model to its "
            "list of blocks, the paths from a block to the MLP's down-projection, to the MLP and to the attention "
            "module, whether the down-projection's weight is stored as (d_key, d_value), whether a block returns a "
            "tuple, and which method attends if the family does not use transformers' attention interface. "
            f"Register them with factpatch.register_architecture(Architecture(model_type={model_type!r}, blocks=..., "
            "down_projection=..., mlp=..., attention=..., transposed=..., returns_tuple=..., attends=...))."
        )
    reason = row.refuse(config)
    if reason is not None:
        raise ValueError(f"model_type={model_type!r} cannot be edited: {reason}.")
    return row
