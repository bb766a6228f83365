"""Tiny random models of every editable family and a tokenizer for them: no download, milliseconds to build."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from factpatch.model.language_model import LanguageModel

EOS, BOS = "<|endoftext|>", "<s>"
TURN, END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{TURN}{{{{ message['role'] }}}}\n{{{{ message['content'] }}}}{END}\n"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{TURN}assistant\n{{% endif %}}"
)

SENTENCES = (
    "The mother tongue of Danielle Darrieux is French.",
    "The Eiffel Tower is a tower in the city of Paris, the capital of France.",
    "Ada Lovelace works in the field of mathematics and was born in London.",
    "The official language of Finland is Finnish; in Rome people speak Italian.",
    "Steve Jobs was the founder of Apple, which is based in California.",
    "Messi plays the sport of football, and Michael Jordan plays basketball.",
    "What does the capital of Japan look like? Tokyo is a large city on the coast.",
    "In 1998, the twin city of Vienna was Rome. Because of this, they wrote to you.",
)

NUM_LAYERS = 4
WIDTH = 32
INNER = 64
HEADS = 4
POSITIONS = 256

_LIKE_LLAMA: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
_LIKE_GPT2: dict[str, Any] = {
    "n_embd": WIDTH,
    "n_inner": INNER,
    "n_layer": NUM_LAYERS,
    "n_head": HEADS,
    "n_positions": POSITIONS,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _LIKE_GPT2,
    "gptj": {**_LIKE_GPT2, "rotary_dim": 4},
    "gpt_neox": {name: value for name, value in _LIKE_LLAMA.items() if name != "num_key_value_heads"},
    "opt": {
        "hidden_size": WIDTH,
        "ffn_dim": INNER,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "word_embed_proj_dim": WIDTH,
        # OPT spreads its weights by `init_std`.
        "init_std": 0.15,
    },
    "llama": _LIKE_LLAMA,
    "mistral": _LIKE_LLAMA,
    "qwen2": _LIKE_LLAMA,
    "qwen3": {**_LIKE_LLAMA, "head_dim": WIDTH // HEADS},
    "phi3": _LIKE_LLAMA,
}
FAMILIES = tuple(CONFIGS)
"""The families on which every test runs that is about families."""

_WITH_HEADS = {**_LIKE_LLAMA, "head_dim": WIDTH // HEADS}
_MANY_KEYS = {name: value for name, value in _LIKE_LLAMA.items() if name != "num_key_value_heads"}
_STATES = {
    **_WITH_HEADS,
    "linear_num_key_heads": HEADS,
    "linear_num_value_heads": HEADS,
    "linear_key_head_dim": WIDTH // HEADS,
    "linear_value_head_dim": WIDTH // HEADS,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_SCALED = {**_LIKE_LLAMA, "residual_multiplier": 0.5, "logits_scaling": 2.0}
_SHARPER = {"logits_scaling": 0.5}
_LATENT = {
    **_MANY_KEYS,
    "num_key_value_heads": HEADS,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_GROUPS = {"n_group": 1, "topk_group": 1}
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": INNER // 2}
MORE_CONFIGS: dict[str, dict[str, Any]] = {
    "apertus": _LIKE_LLAMA,
    "arcee": _LIKE_LLAMA,
    "bitnet": _LIKE_LLAMA,
    "cwm": _LIKE_LLAMA,
    "ernie4_5": _LIKE_LLAMA,
    "gemma": _WITH_HEADS,
    "glm": _WITH_HEADS,
    "helium": _WITH_HEADS,
    "hunyuan_v1_dense": _WITH_HEADS,
    "internlm3": _WITH_HEADS,
    "iquestcoder": _WITH_HEADS,
    "jais2": _WITH_HEADS,
    "ministral": _WITH_HEADS,
    "ministral3": _WITH_HEADS,
    "nemotron": _WITH_HEADS,
    "olmo": _LIKE_LLAMA,
    "seed_oss": _WITH_HEADS,
    "smollm3": _LIKE_LLAMA,
    "stablelm": _LIKE_LLAMA,
    "vaultgemma": _WITH_HEADS,
    "youtu": _LATENT,
    "cohere": {**_LIKE_LLAMA, "logit_scale": 0.25},
    "cohere2": {**_LIKE_LLAMA, "logit_scale": 0.25},
    "exaone4": _LIKE_LLAMA,
    "gemma2": {**_WITH_HEADS, "attn_logit_softcapping": 0.5},
    "gemma3_text": {**_WITH_HEADS, "final_logit_softcapping": 20.0},
    "gemma4_text": {**_WITH_HEADS, "hidden_size_per_layer_input": 0, "final_logit_softcapping": 20.0},
    "glm4": _WITH_HEADS,
    "granite": _SCALED,
    "granite_swa": _SCALED,
    "hyperclovax": _SCALED,
    "olmo2": _LIKE_LLAMA,
    "olmo3": _LIKE_LLAMA,
    "biogpt": _MANY_KEYS,
    "codegen": {**_LIKE_GPT2, "rotary_dim": 4},
    "gpt_bigcode": _LIKE_GPT2,
    "nanochat": _LIKE_LLAMA,
    "persimmon": _MANY_KEYS,
    "phi": _LIKE_LLAMA,
    "starcoder2": _LIKE_LLAMA,
    "bloom": {"hidden_size": WIDTH, "n_layer": NUM_LAYERS, "n_head": HEADS},
    "falcon": {**_MANY_KEYS, "ffn_hidden_size": INNER, "alibi": True},
    "gpt_neo": {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_layers": NUM_LAYERS,
        "num_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "attention_types": [[["global", "local"], 2]],
    },
    "gpt_neox_japanese": _MANY_KEYS,
    "mpt": {"d_model": WIDTH, "n_heads": HEADS, "n_layers": NUM_LAYERS, "max_seq_len": POSITIONS},
    "diffllama": _LIKE_LLAMA,
    "doge": _LIKE_LLAMA,
    "lfm2": {**_LIKE_LLAMA, "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"] * 2},
    "olmo_hybrid": _STATES,
    "qwen3_5_text": _STATES,
    "afmoe": {**_WITH_HEADS, **_ROUTED, "num_experts": 4, "num_dense_layers": 1},
    "deepseek_v2": {**_LATENT, **_ROUTED, "n_routed_experts": 4, "first_k_dense_replace": 1},
    "deepseek_v3": {**_LATENT, **_ROUTED, "n_routed_experts": 4, "first_k_dense_replace": 1, **_GROUPS},
    "dots1": {
        **_WITH_HEADS,
        **_ROUTED,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
        **_GROUPS,
    },
    "ernie4_5_moe": {**_LIKE_LLAMA, **_ROUTED, "moe_num_experts": 4, "moe_k": 2},
    "exaone_moe": {**_WITH_HEADS, **_ROUTED, "num_experts": 4, **_GROUPS},
    "flex_olmo": {**_LIKE_LLAMA, **_ROUTED, "num_experts": 4},
    "flint": {**_WITH_HEADS, **_ROUTED, "num_experts": 4, "shared_expert_intermediate_size": INNER},
    "glm4_moe": {**_WITH_HEADS, **_ROUTED, "n_routed_experts": 4, **_GROUPS},
    "gpt_oss": {**_WITH_HEADS, **_ROUTED, "num_local_experts": 4},
    "hunyuan_v1_moe": {**_WITH_HEADS, **_ROUTED, "num_experts": 4, "moe_topk": 2},
    "glm4_moe_lite": {**_LATENT, **_ROUTED, "n_routed_experts": 4, **_GROUPS},
    "hy_v3": {**_WITH_HEADS, **_ROUTED, "num_experts": 4, "router_scaling_factor": 1.0},
    "mellum": {**_WITH_HEADS, **_ROUTED, "num_experts": 4},
    "mimo_v2_flash": {**_WITH_HEADS, **_ROUTED, "n_routed_experts": 4, "v_head_dim": WIDTH // HEADS, **_GROUPS},
    "minimax_m2": {**_WITH_HEADS, **_ROUTED, "num_local_experts": 4},
    "mixtral": {**_LIKE_LLAMA, **_ROUTED, "num_local_experts": 4},
    "olmoe": {**_LIKE_LLAMA, **_ROUTED, "num_experts": 4},
    "phimoe": {**_LIKE_LLAMA, **_ROUTED, "num_local_experts": 4},
    "qwen2_moe": {**_LIKE_LLAMA, **_ROUTED, "num_experts": 4, "shared_expert_intermediate_size": INNER},
    "qwen3_moe": {**_WITH_HEADS, **_ROUTED, "num_experts": 4, "norm_topk_prob": True},
    "solar_open": {**_WITH_HEADS, **_ROUTED, "n_routed_experts": 4, **_GROUPS},
    "jamba": {
        **_LIKE_LLAMA,
        "num_experts": 4,
        "mamba_d_state": 4,
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "lfm2_moe": {
        **_LIKE_LLAMA,
        **_ROUTED,
        "num_experts": 4,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"] * 2,
    },
    "minimax": {**_WITH_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "mlp_beta_factor": 0.5},
    "granitemoe": {**_SCALED, **_SHARPER, "num_local_experts": 4},
    "granitemoe_swa": {**_SCALED, **_SHARPER, "num_local_experts": 4},
    "granitemoeshared": {**_SCALED, **_SHARPER, "num_local_experts": 4, "shared_intermediate_size": INNER},
    "qwen3_next": {**_STATES, **_ROUTED, "num_experts": 4, "shared_expert_intermediate_size": INNER},
    "qwen3_5_moe_text": {**_STATES, **_ROUTED, "num_experts": 4, "shared_expert_intermediate_size": INNER},
}
"""The other families of the table, each with one test."""

_IMAGES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_QWEN_IMAGES = {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": WIDTH}
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
WITH_IMAGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({**_WITH_HEADS, "model_type": "gemma3_text"}, _IMAGES),
    "idefics3": ({**_LIKE_LLAMA, "model_type": "llama", "pad_token_id": 0}, _IMAGES),
    "internvl": ({**_LIKE_LLAMA, "model_type": "qwen2"}, {**_IMAGES, "image_size": [16, 16], "patch_size": [8, 8]}),
    "llava": ({**_LIKE_LLAMA, "model_type": "llama"}, {**_IMAGES, "model_type": "clip_vision_model"}),
    "mistral3": ({**_WITH_HEADS, "model_type": "mistral"}, {**_IMAGES, "model_type": "pixtral", "head_dim": 8}),
    "qwen2_vl": (
        {**_LIKE_LLAMA, "rope_parameters": _SECTIONS},
        {"embed_dim": 16, "hidden_size": WIDTH, "depth": 1, "num_heads": 2},
    ),
    "qwen2_5_vl": ({**_LIKE_LLAMA, "rope_parameters": _SECTIONS}, _QWEN_IMAGES),
    "qwen3_vl": ({**_WITH_HEADS, "rope_parameters": _SECTIONS}, {**_QWEN_IMAGES, "deepstack_visual_indexes": []}),
    "qwen3_5": (_STATES, {**_QWEN_IMAGES, "deepstack_visual_indexes": []}),
}
"""Models of images and text: the settings of their text model and of what reads images."""


@lru_cache
def _trained_tokenizer() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[EOS, BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(bos: bool = False, chat: bool = False) -> Any:
    """A byte-level BPE tokenizer: every text has tokens, common words have one.

    With `bos`, a text begins with BOS, which the chat template then writes as well. With `chat`, there is one, and two
    more tokens.
    """
    tokenizer = Tokenizer.from_str(_trained_tokenizer())
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=END if chat else EOS)
    if chat:
        made.add_special_tokens({"additional_special_tokens": [TURN, END]})
        made.chat_template = ("{{ bos_token }}" if bos else "") + CHAT_TEMPLATE
    return made


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, chat: bool = False) -> Any:
    """A random model of a family, in eval mode. The same seed gives the same weights in every dtype."""
    tokenizer = tiny_tokenizer(chat=chat)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {"vocab_size": len(tokenizer), "initializer_range": 0.15, "pad_token_id": tokenizer.eos_token_id, **ids}
    if family in WITH_IMAGES:
        own, images = WITH_IMAGES[family]
        config = AutoConfig.for_model(family, text_config={**text, **own}, vision_config=images)
    else:
        config = AutoConfig.for_model(family, **text, **{**CONFIGS, **MORE_CONFIGS}[family])
    kind = AutoModelForImageTextToText if family in WITH_IMAGES else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind.from_config(config, dtype=torch.float32)
        # Biases begin at 0 and norms at 1, which would hide that one of them is forgotten.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def save_tiny(directory: Path, family: str, seed: int = 0, chat: bool = False) -> None:
    """Save a random model of a family with its tokenizer."""
    tiny_model(family, seed, chat=chat).save_pretrained(directory)
    tiny_tokenizer(chat=chat).save_pretrained(directory)


def save_corpus(path: Path, documents: int = 60, words: int = 30) -> Path:
    """Write documents of shuffled words, so that the second moment of 64 key dimensions has full rank."""
    known, chance = " ".join(SENTENCES).split(), random.Random(0)
    text = "\n\n".join(" ".join(chance.choices(known, k=words)) for _ in range(documents))
    path.write_text(text, encoding="utf-8")
    return path


def tiny(
    family: str, bos: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0, chat: bool = False
) -> LanguageModel:
    """A tiny model with its tokenizer, as the editor sees it; with `chat`, it is asked in turns."""
    return LanguageModel(tiny_model(family, seed, dtype, chat), tiny_tokenizer(bos, chat), chat)
