"""One row per model family: where its blocks are, which projection is edited and how its weight is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Config = Any  # a transformers configuration; its attributes differ by family


@dataclass(frozen=True)
class Refusal:
    """Why models of a family cannot be edited: all of them, or those with one value of one setting."""

    reason: str
    setting: str | None = None
    """The field of the config that decides; None if every model is refused."""
    value: Any = None
    """The value of that field that is refused."""

    def applies(self, config: Config) -> bool:
        """Whether a model with this config is refused."""
        return self.setting is None or getattr(config, self.setting) == self.value

    def __str__(self) -> str:
        return self.reason if self.setting is None else f"with {self.setting}={self.value}, {self.reason}"


@dataclass(frozen=True)
class Architecture:
    """What an editor has to know about one family of models.

    The mathematics assumes that the output of the edited projection is added to the residual stream as it is, so that a
    wanted change of the block's output is a wanted change of the projection's output. `refuses` says where it is not.
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
    refuses: Refusal | None = None
    """Which models of the family cannot be edited."""


def _like_llama(model_type: str, refuses: Refusal | None = None) -> Architecture:
    return Architecture(model_type, "model.layers", "mlp.down_proj", "mlp", "self_attn", refuses=refuses)


_NORM_AFTER_MLP = Refusal(
    "this family puts a norm between the MLP and the residual stream, and the table does not say how a wanted change "
    "passes that norm"
)
_NORM_AFTER_RESIDUAL = Refusal("a norm lies between the MLP and the residual stream", "do_layer_norm_before", False)

ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture("gpt2", "transformer.h", "mlp.c_proj", "mlp", "attn", transposed=True),
        Architecture("gptj", "transformer.h", "mlp.fc_out", "mlp", "attn", attends="_attn", returns_tuple=True),
        Architecture("gpt_neox", "gpt_neox.layers", "mlp.dense_4h_to_h", "mlp", "attention"),
        Architecture("opt", "model.decoder.layers", "fc2", "fc2", "self_attn", refuses=_NORM_AFTER_RESIDUAL),
        *map(_like_llama, ("llama", "mistral", "qwen2", "qwen3", "phi3")),
        _like_llama("gemma2", _NORM_AFTER_MLP),
        _like_llama("gemma3_text", _NORM_AFTER_MLP),
    )
}


def register_architecture(row: Architecture) -> None:
    """Add a family to the table, or replace its row."""
    ARCHITECTURES[row.model_type] = row


def architecture_of(config: Config) -> Architecture:
    """Return the row for a model's config.

    Raises:
        ValueError: The family is not in the table, or its row refuses this config.
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
    if row.refuses is not None and row.refuses.applies(config):
        raise ValueError(f"model_type={model_type!r} cannot be edited: {row.refuses}.")
    return row
