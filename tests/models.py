"""Tiny random models of every editable family and a tokenizer for them: no download, milliseconds to build."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

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
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        initializer_range=0.15,
        pad_token_id=tokenizer.eos_token_id,
        **ids,
        **CONFIGS[family],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
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
