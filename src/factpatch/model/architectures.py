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
        return self.setting is None or getattr(config, self.setting, None) == self.value

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
    gguf: str | None = None
    """What llama.cpp calls the family (`general.architecture` of a GGUF file); None if it cannot run such models."""


@dataclass(frozen=True)
class OtherKind:
    """A kind of model that no row can describe, recognized by its config."""

    fields: tuple[str, ...]
    """Fields of the config, dotted where nested, that only models of this kind have set; a number, to more than 1."""
    reason: str
    """What the model is, why it cannot be edited, and what to do."""

    def includes(self, config: Config) -> bool:
        """Whether a model with this config is of this kind."""
        return any(_is_set(_field(config, name)) for name in self.fields)


def _field(config: Config, path: str) -> Any:
    for name in path.split("."):
        config = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
    return config


def _is_set(value: Any) -> bool:
    return value > 1 if isinstance(value, int) and not isinstance(value, bool) else bool(value)


def _like_llama(model_type: str, gguf: str, refuses: Refusal | None = None) -> Architecture:
    return Architecture(model_type, "model.layers", "mlp.down_proj", "mlp", "self_attn", refuses=refuses, gguf=gguf)


_NORM_AFTER_MLP = Refusal(
    "this family puts a norm between the MLP and the residual stream, and the table does not say how a wanted change "
    "passes that norm"
)
_NORM_AFTER_RESIDUAL = Refusal("a norm lies between the MLP and the residual stream", "do_layer_norm_before", False)

ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture("gpt2", "transformer.h", "mlp.c_proj", "mlp", "attn", transposed=True, gguf="gpt2"),
        # llama.cpp lists "gptj" among its names but has no code for such models; of OPT it has neither.
        Architecture("gptj", "transformer.h", "mlp.fc_out", "mlp", "attn", attends="_attn", returns_tuple=True),
        Architecture("gpt_neox", "gpt_neox.layers", "mlp.dense_4h_to_h", "mlp", "attention", gguf="gptneox"),
        Architecture("opt", "model.decoder.layers", "fc2", "fc2", "self_attn", refuses=_NORM_AFTER_RESIDUAL),
        _like_llama("llama", "llama"),
        _like_llama("mistral", "llama"),
        _like_llama("qwen2", "qwen2"),
        _like_llama("qwen3", "qwen3"),
        _like_llama("phi3", "phi3"),
        _like_llama("gemma2", "gemma2", _NORM_AFTER_MLP),
        _like_llama("gemma3_text", "gemma3", _NORM_AFTER_MLP),
    )
}


# The first that fits is named: a vision-language model may have experts, too.
OTHER_KINDS = (
    OtherKind(
        ("vision_config", "vit_config"),
        "it is a vision-language model, and the text model inside it is not reached. Edit the text model on its own, "
        "loaded as a causal language model",
    ),
    OtherKind(
        ("audio_config", "speech_config"),
        "it is a model of sound and text, and the text model inside it is not reached. Edit the text model on its own, "
        "loaded as a causal language model",
    ),
    OtherKind(
        (
            "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts",
            "num_routed_experts", "ffn_config.moe_num_experts",
        ),
        "it is a mixture of experts, whose blocks have no single down-projection that every fact passes. Choose a "
        "dense model",
    ),
    OtherKind(
        ("is_encoder_decoder",), "it has an encoder and a decoder. Choose a causal language model (decoder only)"
    ),
    OtherKind(
        ("state_size", "mamba_d_state", "ssm_state_size", "ssm_cfg", "attention_hidden_size", "rescale_every"),
        "its blocks have a state in place of attention and MLP. Choose a transformer",
    ),
)  # fmt: skip


def register_architecture(row: Architecture) -> None:
    """Add a family to the table, or replace its row."""
    ARCHITECTURES[row.model_type] = row


def same_layout(one: str, other: str) -> bool:
    """Whether llama.cpp has one name for two model types, and their edited weights are in the same places."""
    first, second = ARCHITECTURES.get(one), ARCHITECTURES.get(other)
    if first is None or second is None or first.gguf is None:
        return one == other
    layouts = [(row.gguf, row.blocks, row.down_projection, row.transposed) for row in (first, second)]
    return layouts[0] == layouts[1]


def architecture_of(config: Config) -> Architecture:
    """Return the row for a model's config.

    Raises:
        ValueError: The family is not in the table, its row refuses this config, or it is of a kind without a row.
    """
    model_type = getattr(config, "model_type", None)
    row = ARCHITECTURES.get(str(model_type))
    if row is None:
        for kind in OTHER_KINDS:
            if kind.includes(config):
                raise ValueError(f"model_type={model_type!r} cannot be edited: {kind.reason}.")
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
