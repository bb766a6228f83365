"""What the published zsRE evaluation makes of a tokenizer that begins every text with BOS, and what this one does.

The published code (MEMIT, and AlphaEdit for Llama-3) reads the target's tokens from `tokenizer(" " + target)`, decodes
the first i of them, appends the text to the prompt, and compares the most probable next token with token i. Where the
tokenizer adds BOS, the first token of a neighbor's target is BOS, and later prompts hold it in their middle. For the
edited prompts, the code for Llama drops BOS, but puts a space in front of a text that begins with one.
"""

from __future__ import annotations

from typing import Any

import torch
from tests.models import BOS, tiny

from factpatch.evaluation.probabilities import score
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import target_ids

PROMPT, TARGET = "nq question: what is the capital of France?", "Paris"


def published_texts(tokenizer: Any, prompt: str, target: str) -> list[str]:
    """The prompts after which the published evaluation asks for one token each: a neighbor's."""
    ids = tokenizer(" " + target)["input_ids"]
    return [prompt + tokenizer.decode(ids[:i]) for i in range(len(ids))]


def says(lm: LanguageModel, text: str) -> int:
    """The most probable token after a text."""
    with torch.no_grad():
        return int(lm.model(input_ids=torch.tensor([lm.tokenizer(text)["input_ids"]])).logits[0, -1].argmax())


def model_that_answers() -> LanguageModel:
    """A model whose greedy answer to the prompt is the target, token by token."""
    lm = tiny("llama", bos=True, dtype=torch.float64)
    ids = lm.tokenizer(f"{PROMPT} {TARGET}")["input_ids"]
    count = len(target_ids(lm.tokenizer, TARGET))
    with torch.no_grad():
        head = lm.model.get_output_embeddings().weight.zero_()
        hidden = lm.body(input_ids=torch.tensor([ids]))[0, -count - 1 : -1]
        head[ids[-count:]] = 10 * hidden / hidden.norm(dim=-1, keepdim=True)
    return lm


def test_the_published_targets_begin_with_bos_and_ours_do_not() -> None:
    tokenizer = tiny("llama", bos=True).tokenizer
    published, ours = tokenizer(" " + TARGET)["input_ids"], target_ids(tokenizer, TARGET)
    assert published == [tokenizer.bos_token_id, *ours]
    assert all(BOS in text[len(PROMPT) :] for text in published_texts(tokenizer, PROMPT, TARGET)[1:])


def test_a_model_that_answers_rightly_has_every_token_here_and_loses_one_in_the_published_evaluation() -> None:
    lm = model_that_answers()
    (found,) = score(lm, [(PROMPT, TARGET)])
    assert len(found.matched) == len(target_ids(lm.tokenizer, TARGET))
    assert all(found.matched)
    published = lm.tokenizer(" " + TARGET)["input_ids"]
    texts = published_texts(lm.tokenizer, PROMPT, TARGET)
    matched = [says(lm, text) == token for text, token in zip(texts, published, strict=True)]
    # It says the target where BOS is wanted. Whatever it says after BOS, the accuracy stays below 1.
    assert not matched[0]
    assert says(lm, texts[0]) == published[1]
    assert sum(matched) / len(matched) <= len(found.matched) / (len(found.matched) + 1)


def test_doubled_spaces_ask_about_other_tokens_than_the_answer_has() -> None:
    tokenizer = tiny("llama", bos=True).tokenizer
    ours = tokenizer(f"{PROMPT} {TARGET}")["input_ids"]
    ids = tokenizer(" " + TARGET)["input_ids"][1:]
    for i in range(1, len(ids)):
        doubled = PROMPT + " " + tokenizer.decode(ids[:i])
        assert doubled.startswith(f"{PROMPT}  ")
        read = tokenizer(doubled)["input_ids"]
        assert read != ours[: len(read)]
        single = tokenizer(PROMPT + tokenizer.decode(ids[:i]))["input_ids"]
        assert single == ours[: len(single)]


def test_the_targets_of_the_editor_are_the_tokens_that_the_evaluation_reads() -> None:
    for bos in (False, True):
        tokenizer = tiny("llama", bos=bos).tokenizer
        ids, alone = tokenizer(f"{PROMPT} {TARGET}")["input_ids"], target_ids(tokenizer, TARGET)
        assert ids[-len(alone) :] == alone
        assert ids[: -len(alone)] == tokenizer(PROMPT)["input_ids"]
