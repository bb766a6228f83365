"""Greedy answers: what a model says next, in batches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from factpatch.model.batching import batches, padded
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import tokenize

MAX_NEW_TOKENS = 16

# A period behind an initial or one of these titles and places ends no sentence: "J. R. Smith", "U.S.", "St. Louis".
_NO_END = r"(?<!\b[A-Z])(?<!\b(?:St|Mt|Ft|Dr|Mr|Ms|Jr|Sr))(?<!\bMrs)"
_CLOSING = r"[.!?]+[\"')\]”’]*"
_END_BEFORE_MORE = re.compile(rf"{_NO_END}{_CLOSING}(?=\s)|\n")
_END = re.compile(rf"{_NO_END}{_CLOSING}(?=\s|$)|\n")


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence or of its first line with text, without white space around it."""
    text = text.strip()
    end = _END.search(text)
    return text[: end.end()].rstrip() if end else text


def greedy_answers(lm: LanguageModel, prompts: Sequence[str], max_new_tokens: int = MAX_NEW_TOKENS) -> list[str]:
    """Continue each prompt greedily and return the first sentence or line of what the model says.

    The settings of the model's own `generation_config` (sampling, penalties) play no part; only its end tokens do.

    Args:
        lm: The model; it is left as it was.
        prompts: Texts that end right before their answer, or, for a model that is asked in a chat, what the user says.
        max_new_tokens: Where an answer is cut if no sentence or line ends before.

    Returns:
        One answer for each prompt, without white space around it; it may be empty.

    Raises:
        ValueError: `max_new_tokens` is below 1, or a prompt has no tokens.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: an answer needs at least 1.")
    unique = list(dict.fromkeys(prompts))
    rows = tokenize(lm.tokenizer, [lm.frame.wrap(prompt) for prompt in unique], lm.frame) if unique else []
    for prompt, row in zip(unique, rows, strict=True):
        if not row:
            raise ValueError(f"prompt={prompt!r} has no tokens under this tokenizer; give a text.")
    config = _greedy_config(lm, max_new_tokens)
    answers = {}
    with torch.inference_mode(), lm.quiet(), _only_config(lm.model, config):
        for batch in batches([len(row) + max_new_tokens for row in rows]):
            ids, mask = padded([rows[row] for row in batch], left=True, padding=config.pad_token_id)
            criteria = _SentenceEnds(lm.tokenizer, ids.shape[1])
            output = lm.model.generate(
                input_ids=ids.to(lm.device),
                attention_mask=mask.to(lm.device),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([criteria]),
            )
            for index, said in zip(batch, _decode(lm.tokenizer, output[:, ids.shape[1] :]), strict=True):
                answers[unique[index]] = first_sentence(said)
    return [answers[prompt] for prompt in prompts]


def _greedy_config(lm: LanguageModel, max_new_tokens: int) -> GenerationConfig:
    own = getattr(lm.model.generation_config, "eos_token_id", None)
    ends = own if isinstance(own, list) else [own]
    ends = list(dict.fromkeys(end for end in (*ends, lm.tokenizer.eos_token_id) if end is not None))
    padding = lm.tokenizer.pad_token_id
    if padding is None:
        padding = ends[0] if ends else 0
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=padding,
    )


@contextmanager
def _only_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Hide the model's own generation settings: `generate` fills whatever a given config leaves open from them."""
    own = model.generation_config
    try:
        model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
        yield
    finally:
        model.generation_config = own


def _decode(tokenizer: Any, ids: Tensor) -> list[str]:
    texts: list[str] = tokenizer.batch_decode(
        ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return texts


class _SentenceEnds(StoppingCriteria):  # type: ignore[misc]
    """Ends a row once more text cannot change its first sentence."""

    def __init__(self, tokenizer: Any, prompt_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        said = _decode(self.tokenizer, input_ids[:, self.prompt_tokens :])
        ended = [_END_BEFORE_MORE.search(text.lstrip()) is not None for text in said]
        return torch.tensor(ended, device=input_ids.device)
