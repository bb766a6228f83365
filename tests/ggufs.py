"""Tiny models as GGUF files, written as llama.cpp's converter writes them: no download, milliseconds to make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from tests.models import tiny_model, tiny_tokenizer

from factpatch.model.architectures import ARCHITECTURES

NAMES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2",
    "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe",
}  # fmt: skip
"""What llama.cpp calls a family, said here a second time so that a test can compare."""


def write_gguf(
    path: Path, model: Any = None, kind: str = "F16", tokenizer: Any = None, alignment: int | None = None
) -> Path:
    """Write a tiny model as a GGUF file, and return its path.

    Args:
        model: A model of `tests.models`, of a family in `NAMES`; by default the tiny Llama.
        kind: The type of its matrices, such as F32, F16, BF16, Q8_0, Q4_0 or Q4_1; vectors are F32.
        tokenizer: Its tokenizer; by default the tiny one. Its chat template is written too.
        alignment: That of the tensors, if not the usual 32 bytes.
    """
    model = tiny_model("llama") if model is None else model
    config = model.config
    writer = GGUFWriter(path, NAMES[config.model_type])
    _describe(writer, config, alignment)
    _add_tokenizer(writer, tiny_tokenizer() if tokenizer is None else tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(_architecture(NAMES[config.model_type]), config.num_hidden_layers)
    for name, tensor in _apart(model):
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert written is not None, name
        data = _as_converted(name, tensor.detach().float(), config).contiguous().numpy()
        to = GGMLQuantizationType[kind] if data.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(written, gguf.quants.quantize(np.ascontiguousarray(data), to), raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _apart(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a model; those of experts as checkpoints have them, gate and up projection apart."""
    for name, tensor in model.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
                yield name.replace("gate_up_proj", f"{part}_proj.weight"), half
        elif name.endswith("experts.down_proj"):
            yield f"{name}.weight", tensor
        elif name.endswith("shared_expert_gate.weight"):
            yield name, tensor[0]
        else:
            yield name, tensor


def _architecture(name: str) -> Any:
    return next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)


def _describe(writer: GGUFWriter, config: Any, alignment: int | None) -> None:
    writer.add_type("model")
    writer.add_name("Tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or config.n_inner)
    if hasattr(config, "num_experts"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if hasattr(config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(0)
    if config.model_type == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        width = config.hidden_size // config.num_attention_heads
        writer.add_key_length(width)
        writer.add_value_length(width)
        writer.add_rope_dimension_count(width)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if alignment is not None:
        writer.add_custom_alignment(alignment)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Any, size: int) -> None:
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([vocabulary.get(index, f"[PAD{index}]") for index in range(size)])
    types = [
        gguf.TokenType.CONTROL if index in special else gguf.TokenType.NORMAL if index in vocabulary else
        gguf.TokenType.UNUSED
        for index in range(size)
    ]  # fmt: skip
    writer.add_token_types(types)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _as_converted(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """A weight as the converter of llama.cpp turns it: see `permute` and `Conv1D` there."""
    if config.model_type in ("llama", "mistral") and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = tensor.view(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    family = ARCHITECTURES[config.model_type]
    conv1d = family.transposed and name.endswith(
        ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    )
    return tensor.T if conv1d else tensor
