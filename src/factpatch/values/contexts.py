"""Contexts: templates with one `{}` for the whole prompt; the first is the bare prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import tokenize

BARE = "{}"
OPENINGS = ("The", "Therefore", "Because", "I", "You")


def generate_contexts(lm: LanguageModel, seed: int, tokens: int = 10, top_k: int = 5) -> tuple[str, ...]:
    """Return the bare template and, for each opening, one after a text that the model itself continues from it.

    Each opening is continued to `tokens` tokens in all, sampled once from the `top_k` most probable ones; braces become
    spaces and ". " is appended. Source: MEMIT (arXiv:2210.07229), section 4.2 of its appendix.
    """
    generator = torch.Generator().manual_seed(seed)
    templates = [BARE]
    for opening in OPENINGS:
        (start,) = tokenize(lm.tokenizer, [opening])
        added = len(start) - len(lm.tokenizer(opening, add_special_tokens=False)["input_ids"])
        ids = list(start)
        while len(ids) - added < tokens:
            hidden = lm.body(input_ids=torch.tensor([ids], device=lm.device))[0, -1:]
            scores = lm.log_probabilities(hidden)[0].to("cpu", torch.float64)
            # A special token, an end token above all, would break the text; some tokenizers hold more than the head.
            scores[[token for token in lm.tokenizer.all_special_ids if token < len(scores)]] = -torch.inf
            best, candidates = scores.topk(top_k)
            choice = torch.multinomial(best.exp(), 1, generator=generator)
            ids.append(int(candidates[choice]))
        text = lm.tokenizer.decode(ids, skip_special_tokens=True)
        templates.append(text.replace("{", " ").replace("}", " ") + ". " + BARE)
    return tuple(templates)


def check_contexts(contexts: Sequence[str]) -> tuple[str, ...]:
    """Raise ValueError unless the first context is the bare prompt and every one holds exactly one `{}`."""
    if not contexts or contexts[0] != BARE:
        raise ValueError(f"contexts={list(contexts)!r}: the first must be the bare prompt, {BARE!r}.")
    for context in contexts:
        if context.count(BARE) != 1:
            raise ValueError(f"contexts: {context!r} must hold exactly one {BARE!r}, where the prompt goes.")
    return tuple(contexts)


def fill(context: str, text: str) -> str:
    """Put a text into a context."""
    return context.replace(BARE, text, 1)
