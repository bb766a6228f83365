"""One row per model family: where its blocks are, which projection is edited and how its weight is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from factpatch.model.places import makes_keys

if TYPE_CHECKING:
    from torch import Tensor

Config = Any  # a transformers configuration; its attributes differ by family


@dataclass(frozen=True)
class Refusal:
    """Why some models of a family cannot be edited."""

    reason: str
    setting: str
    """The field of the config that decides: models are refused that have it set, to more than 0."""

    def applies(self, config: Config) -> bool:
        """Whether a model with this config is refused."""
        return bool(getattr(config, self.setting, None))

    def __str__(self) -> str:
        return f"with {self.setting}, {self.reason}"


@dataclass(frozen=True)
class Between:
    """What lies between the MLP's output and the residual stream, in all models of a family or in some."""

    what: str
    """As in "puts ... between the MLP and the residual stream"."""
    setting: str | None = None
    """The field of the config that decides; None if it lies there in every model."""
    value: Any = None
    """The value of that field with which it lies there."""

    def applies(self, config: Config) -> bool:
        """Whether it lies there in a model with this config."""
        return self.setting is None or getattr(config, self.setting, None) == self.value


@dataclass(frozen=True)
class Logits:
    """What becomes of the head's output before it is exponentiated, by fields of the config, in this order."""

    times: str | None = None
    """It is multiplied by this number."""
    over: str | None = None
    """It is divided by this number."""
    cap: str | None = None
    """With this number c it becomes c · tanh(x / c), unless c is None."""

    def of(self, output: Tensor, config: Config) -> Tensor:
        """Return the logits, (positions, vocabulary)."""
        if self.times is not None:
            output = output * getattr(config, self.times)
        if self.over is not None:
            output = output / getattr(config, self.over)
        cap = None if self.cap is None else getattr(config, self.cap)
        return output if cap is None else cap * (output / cap).tanh()


@dataclass(frozen=True)
class SharedExpert:
    """Where the expert is that every token passes beside those that it is sent to; it can be edited in their place."""

    down_projection: str
    """Path from a block to its down-projection; see `Architecture.down_projection` for `|`."""
    mlp: str
    """Path from a block to the module that ends with the down-projection."""
    between: Between | None = None
    """What lies between its output and the residual stream."""


@dataclass(frozen=True)
class Architecture:
    """What an editor has to know about one family of models.

    Where the MLP's output is added to the residual stream as it is, a wanted change of the block's output is a wanted
    change of the MLP's output, and any layer below can take its share of it. `between` says where it is not: there
    values are optimized, and residuals measured, at the output of the MLP itself.
    """

    model_type: str
    """`config.model_type` in transformers."""
    blocks: str
    """Path from the causal language model to its list of blocks."""
    down_projection: str
    """Path from a block to the MLP's second projection, whose inputs are the keys. Several with `|` between them where
    blocks of one model differ: the first that a block has."""
    mlp: str
    """Path from a block to the module that ends with the down-projection."""
    attention: str
    """Path from a block to its attention module, or to what stands in its place; see `down_projection` for `|`."""
    transposed: bool = False
    """Whether the weight is stored as (d_key, d_value), as by GPT-2's Conv1D."""
    attends: str | None = None
    """The method of the attention module that attends, if the family does not use transformers' attention interface."""
    whole: str | None = None
    """Path from a block to the module in which tokens meet, if that can only run on whole texts: its attention knows
    places (ALiBi, local windows) without transformers' interface, or it is no attention; see `down_projection`."""
    returns_tuple: bool = False
    """Whether a block returns a tuple that begins with the hidden states, instead of the hidden states."""
    logits: Logits | None = None
    """What happens to what the head puts out; None if these are the logits."""
    between: Between | None = None
    """What lies between the MLP's output and the residual stream; None if the one is added to the other as it is."""
    shared: SharedExpert | None = None
    """The shared expert of a family that has one."""
    text_model: str | None = None
    """Path from the model to its text model, of a model of more than text; see `TEXT_MODELS`."""
    refuses: tuple[Refusal, ...] = ()
    """Which models of the family cannot be edited."""
    gguf: str | None = None
    """What llama.cpp calls the family (`general.architecture` of a GGUF file); None if it cannot run such models."""

    def turned(self, place: int) -> bool:
        """Whether the weight at a place is stored as the transpose of the (d_value, d_key) that it is seen as."""
        return self.transposed != makes_keys(place)

    def of_shared_expert(self) -> Architecture:
        """The same row for an edit of the shared expert; ValueError if the family has none."""
        if self.shared is None:
            having = ", ".join(sorted(name for name, row in ARCHITECTURES.items() if row.shared))
            raise ValueError(
                f"shared_expert=True: model_type={self.model_type!r} has no expert that every token passes (families "
                f"that have one: {having}). Leave shared_expert out, to edit the experts that facts are routed to."
            )
        found = self.shared
        return replace(self, down_projection=found.down_projection, mlp=found.mlp, between=found.between)


# Models of images and text: `config.model_type` in transformers, and the path from the model to its text model. Their
# blocks are those of the text model's own row. Text is read by the text model alone, as the whole model reads a text
# without an image; models that read text in another way then, such as PaliGemma, are not among them.
TEXT_MODELS = {
    **dict.fromkeys(
        (
            "aya_vision", "cohere2_vision", "deepseek_vl", "exaone4_5", "gemma3", "gemma4", "got_ocr2",
            "hyperclovax_vision_v2", "internvl", "janus", "lfm2_vl", "lighton_ocr", "llava", "llava_next",
            "llava_next_video", "llava_onevision", "mistral3", "ovis2", "qianfan_ocr", "qwen2_5_vl", "qwen2_vl",
            "qwen3_5", "qwen3_vl", "video_llama_3", "video_llava", "vipllava",
        ),
        "model.language_model",
    ),
    **dict.fromkeys(("idefics2", "idefics3", "smolvlm"), "model.text_model"),
}  # fmt: skip
TEXT_MODEL_AT = "text_model_at"
"""The field of a patch's config that holds this path: a patch records the config of the text model alone."""
EDITED_AT = "edited_at"
"""The field of a patch's config that holds the path from a block to what is edited, by layer, where blocks differ."""
EXPERTS_OF = "experts_of"
"""The field of a patch's config that says which layers are mixtures of experts, and how many experts each has."""
SHARED_EXPERT = "shared_expert"
"""The field of a patch's config that says that the shared expert was edited in place of the others."""


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


def _like_llama(model_type: str, gguf: str | None = None, **others: Any) -> Architecture:
    return Architecture(model_type, "model.layers", "mlp.down_proj", "mlp", "self_attn", gguf=gguf, **others)


def _shared_at(path: str, between: Between | None = None) -> SharedExpert:
    """A shared expert beside the others; blocks without experts have their MLP there."""
    return SharedExpert(f"{path}.down_proj|mlp.down_proj", f"{path}|mlp", between)


_SHARED = _shared_at("mlp.shared_experts")
_GATED = _shared_at("mlp.shared_expert", Between("a gate"))


def _of_experts(
    model_type: str, gguf: str | None = None, shared: SharedExpert | None = None, **others: Any
) -> Architecture:
    """A row of a family with experts in place of the MLP, in all blocks or in some; see `factpatch.model.experts`."""
    path = "mlp.experts|mlp.down_proj"
    return Architecture(model_type, "model.layers", path, "mlp", "self_attn", gguf=gguf, shared=shared, **others)


def _granite_of_experts(model_type: str, gguf: str | None = None, shared: SharedExpert | None = None) -> Architecture:
    path = "block_sparse_moe"
    return Architecture(
        model_type, "model.layers", f"{path}.experts", path, "self_attn",
        between=_FACTOR, logits=Logits(over="logits_scaling"), gguf=gguf, shared=shared,
    )  # fmt: skip


def _mixed(model_type: str, down_projection: str, mlp: str, mixers: str, **others: Any) -> Architecture:
    """A row of a family in which some blocks have a state, or a convolution, in place of attention."""
    return Architecture(model_type, "model.layers", down_projection, mlp, mixers, whole=mixers, **others)


def _with_states_and_experts(model_type: str, gguf: str) -> Architecture:
    path = "mlp.experts|mlp.down_proj"
    return _mixed(model_type, path, "mlp", "self_attn|linear_attn", shared=_GATED, gguf=gguf)


_NORM = Between("a norm")
_FACTOR = Between("a factor")
_BESIDE = SharedExpert("shared_mlp.output_linear", "shared_mlp", _FACTOR)
_CAPPED = Logits(cap="final_logit_softcapping")
_BY_TOKEN = Refusal(
    "each layer adds an embedding of the token itself, which a pass from the middle of the model does not know",
    "hidden_size_per_layer_input",
)
_SHARED_KEYS = Refusal("upper layers attend to the keys of lower ones, which do not run again", "num_kv_shared_layers")

ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture("gpt2", "transformer.h", "mlp.c_proj", "mlp", "attn", transposed=True, gguf="gpt2"),
        # llama.cpp lists "gptj" among its names but has no code for such models; of OPT it has neither.
        Architecture("gptj", "transformer.h", "mlp.fc_out", "mlp", "attn", attends="_attn", returns_tuple=True),
        Architecture("gpt_neox", "gpt_neox.layers", "mlp.dense_4h_to_h", "mlp", "attention", gguf="gptneox"),
        Architecture(
            "opt", "model.decoder.layers", "fc2", "fc2", "self_attn",
            between=Between("a norm", "do_layer_norm_before", False),
        ),
        _like_llama("llama", "llama"),
        _like_llama("mistral", "llama"),
        _like_llama("qwen2", "qwen2"),
        _like_llama("qwen3", "qwen3"),
        _like_llama("phi3", "phi3"),
        # The same modules as Llama.
        _like_llama("apertus", "apertus"),
        _like_llama("arcee", "arcee"),
        _like_llama("bitnet"),
        _like_llama("cwm"),
        _like_llama("ernie4_5", "ernie4_5"),
        _like_llama("gemma", "gemma"),
        _like_llama("glm", "chatglm"),
        _like_llama("helium"),
        _like_llama("hunyuan_v1_dense", "hunyuan-dense"),
        _like_llama("internlm3", "llama"),
        _like_llama("iquestcoder"),
        _like_llama("jais2", "jais2"),
        _like_llama("ministral"),
        _like_llama("ministral3", "mistral3"),
        _like_llama("nemotron", "nemotron"),
        _like_llama("olmo", "olmo"),
        _like_llama("seed_oss", "seed_oss"),
        _like_llama("smollm3", "smollm3"),
        _like_llama("stablelm", "stablelm"),
        _like_llama("vaultgemma", logits=_CAPPED),
        _like_llama("youtu"),
        _like_llama("cohere", "command-r", logits=Logits(times="logit_scale")),
        _like_llama("cohere2", "cohere2", logits=Logits(times="logit_scale")),
        # What the MLP puts out is normalized, or multiplied, before it is added.
        _like_llama("exaone4", "exaone4", between=_NORM),
        _like_llama("gemma2", "gemma2", between=_NORM, logits=_CAPPED),
        _like_llama("gemma3_text", "gemma3", between=_NORM, logits=_CAPPED),
        _like_llama("gemma4_text", "gemma4", between=_NORM, logits=_CAPPED, refuses=(_BY_TOKEN, _SHARED_KEYS)),
        _like_llama("glm4", "glm4", between=_NORM),
        _like_llama("granite", "granite", between=_FACTOR, logits=Logits(over="logits_scaling")),
        _like_llama("granite_swa", between=_FACTOR, logits=Logits(over="logits_scaling")),
        _like_llama("hyperclovax", between=Between("a factor and a norm"), logits=Logits(times="logits_scaling")),
        _like_llama("olmo2", "olmo2", between=_NORM),
        _like_llama("olmo3", "olmo2", between=_NORM),
        # Only inside models of images and text.
        _like_llama("qwen2_vl_text", "qwen2vl"),
        _like_llama("qwen2_5_vl_text", "qwen2vl"),
        _like_llama("qwen3_vl_text", "qwen3vl"),
        # Other names.
        Architecture("biogpt", "biogpt.layers", "fc2", "fc2", "self_attn"),
        Architecture("codegen", "transformer.h", "mlp.fc_out", "mlp", "attn", attends="_attn", returns_tuple=True),
        Architecture("gpt_bigcode", "transformer.h", "mlp.c_proj", "mlp", "attn", gguf="starcoder"),
        Architecture("nanochat", "model.layers", "mlp.fc2", "mlp", "self_attn", logits=_CAPPED),
        Architecture("persimmon", "model.layers", "mlp.dense_4h_to_h", "mlp", "self_attn"),
        Architecture("phi", "model.layers", "mlp.fc2", "mlp", "self_attn", gguf="phi2"),
        Architecture("starcoder2", "model.layers", "mlp.c_proj", "mlp", "self_attn", gguf="starcoder2"),
        # Attention that knows places in its own way, or something else in its place.
        Architecture(
            "bloom", "transformer.h", "mlp.dense_4h_to_h", "mlp.dense_4h_to_h", "self_attention.dense",
            whole="self_attention", returns_tuple=True, gguf="bloom",
        ),
        Architecture(
            "falcon", "transformer.h", "mlp.dense_4h_to_h", "mlp", "self_attention",
            whole="self_attention", returns_tuple=True, gguf="falcon",
        ),
        Architecture("gpt_neo", "transformer.h", "mlp.c_proj", "mlp", "attn", whole="attn", returns_tuple=True),
        Architecture(
            "gpt_neox_japanese", "gpt_neox_japanese.layers", "mlp.dense_4h_to_h", "mlp", "attention",
            whole="attention", returns_tuple=True,
        ),
        Architecture(
            "mpt", "transformer.blocks", "ffn.down_proj", "ffn.down_proj", "attn",
            whole="attn", returns_tuple=True, gguf="mpt",
        ),
        _like_llama("diffllama", whole="self_attn"),
        _like_llama("doge", whole="self_attn"),
        _mixed("lfm2", "feed_forward.w2", "feed_forward", "self_attn|conv", gguf="lfm2"),
        _mixed("olmo_hybrid", "mlp.down_proj", "mlp", "self_attn|linear_attn", between=_NORM),
        _mixed("qwen3_5_text", "mlp.down_proj", "mlp", "self_attn|linear_attn", gguf="qwen35"),
        # Mixtures of experts.
        _of_experts("afmoe", "afmoe", _shared_at("mlp.shared_experts", _NORM), between=_NORM),
        _of_experts("deepseek_v2", "deepseek2", _SHARED),
        _of_experts("deepseek_v3", "deepseek2", _SHARED),
        _of_experts("dots1", "dots1", _SHARED),
        _of_experts("ernie4_5_moe", "ernie4_5-moe", _SHARED),
        _of_experts("exaone_moe", "exaone-moe", _SHARED),
        _of_experts("flex_olmo", between=_NORM),
        _of_experts("flint", shared=_shared_at("mlp.shared_expert")),
        _of_experts("glm4_moe", "glm4moe", _SHARED),
        _of_experts("glm4_moe_lite", "deepseek2", _SHARED),
        _of_experts("gpt_oss", "gpt-oss"),
        _of_experts("hunyuan_v1_moe", "hunyuan-moe", _shared_at("mlp.shared_mlp")),
        _of_experts("hy_v3", shared=_SHARED),  # llama.cpp runs it, and the gguf package has no name for it yet
        _of_experts("mellum"),
        _of_experts("mimo_v2_flash", "mimo2"),
        _of_experts("minimax_m2", "minimax-m2"),
        _of_experts("mixtral", "llama"),
        _of_experts("olmoe", "olmoe"),
        _of_experts("phimoe", "phimoe"),
        _of_experts("qwen2_moe", "qwen2moe", _GATED),
        _of_experts("qwen3_moe", "qwen3moe"),
        _of_experts("solar_open", "glm4moe", _SHARED),
        _mixed("jamba", "feed_forward.experts|feed_forward.down_proj", "feed_forward", "self_attn|mamba", gguf="jamba"),
        _mixed("lfm2_moe", "feed_forward.experts|feed_forward.w2", "feed_forward", "self_attn|conv", gguf="lfm2moe"),
        _mixed("minimax", "mlp.experts", "mlp", "self_attn", between=_FACTOR),
        _granite_of_experts("granitemoe", "granitemoe"),
        _granite_of_experts("granitemoe_swa", shared=_BESIDE),
        _granite_of_experts("granitemoeshared", "granitemoe", _BESIDE),
        _with_states_and_experts("qwen3_next", "qwen3next"),
        _with_states_and_experts("qwen3_5_moe_text", "qwen35moe"),
    )
}  # fmt: skip


# The first that fits is named: a vision-language model may have experts, too.
OTHER_KINDS = (
    OtherKind(
        ("vision_config", "vit_config"),
        "it is a vision-language model, and nothing is known here of the text model inside it. Edit the text model on "
        "its own, loaded as a causal language model",
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
        "it is a mixture of experts, and nothing is known here of where this family keeps them. Choose a dense model, "
        "or a mixture of a family that is known",
    ),
    OtherKind(
        ("is_encoder_decoder",), "it has an encoder and a decoder. Choose a causal language model (decoder only)"
    ),
    OtherKind(
        ("state_size", "mamba_d_state", "ssm_state_size", "ssm_cfg", "attention_hidden_size", "rescale_every"),
        "its blocks have a state in place of attention and MLP. Choose a transformer",
    ),
)  # fmt: skip


def experts_of(model_config: Mapping[str, Any]) -> dict[int, int]:
    """How many experts each layer of a mixture has, given the config that a patch records; empty for other models."""
    return {int(layer): count for layer, count in model_config.get(EXPERTS_OF, {}).items()}


def alike(model_config: Mapping[str, Any], layers: int) -> bool:
    """Whether all layers have the same module to edit, given the config that a patch records: some mixtures do not."""
    modules = {*model_config.get(EDITED_AT, {}).values()}
    return len(modules) <= 1 and len(experts_of(model_config)) in (0, layers)


def register_architecture(row: Architecture) -> None:
    """Add a family to the table, or replace its row."""
    ARCHITECTURES[row.model_type] = row


def same_layout(one: str, other: str) -> bool:
    """Whether llama.cpp has one name for two model types, and their edited weights are in the same places."""
    first, second = ARCHITECTURES.get(one), ARCHITECTURES.get(other)
    if first is None or second is None or first.gguf is None:
        return one == other
    layouts = [
        (row.gguf, row.blocks, row.down_projection, row.transposed, row.shared is None) for row in (first, second)
    ]
    return layouts[0] == layouts[1]


def architecture_of(config: Config) -> Architecture:
    """Return the row for a model's config, or for the config of a patch.

    Raises:
        ValueError: The family is not in the table, its row refuses this config, or it is of a kind without a row.
    """
    path, text = getattr(config, TEXT_MODEL_AT, None), config
    if path is None and hasattr(config, "get_text_config"):
        path = TEXT_MODELS.get(str(config.model_type))
        text = config if path is None else config.get_text_config()
    row = _row_of(text)
    if getattr(config, SHARED_EXPERT, None) is True:
        row = row.of_shared_expert()
    if path is None:
        return row
    # A text model has no head, so that its blocks are one step nearer.
    return replace(row, blocks=f"{path}.{row.blocks.partition('.')[2]}", text_model=path)


def _row_of(config: Config) -> Architecture:
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
    for refusal in row.refuses:
        if refusal.applies(config):
            value = getattr(config, refusal.setting)
            raise ValueError(
                f"model_type={model_type!r} cannot be edited with {refusal.setting}={value!r}: {refusal.reason}. "
                "Choose a model of the family without it."
            )
    if row.between is not None and not row.between.applies(config):
        row = replace(row, between=None)
    return row
