"""Prompts and traces that several tests share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from factpatch.lab.tracing.prompts import Prompt, TokenizedPrompt, known_prompts, tokenize_prompts
from factpatch.lab.tracing.trace import Trace
from factpatch.model.language_model import LanguageModel

PROMPTS = (
    Prompt("Danielle Darrieux was", "Danielle Darrieux"),
    Prompt("In Finland, they", "Finland"),
    Prompt("the city of Rome", "Rome"),
)
"""With their subjects at the beginning, before the last tokens, and at the end."""


def known(lm: LanguageModel, prompts: Sequence[Prompt] = PROMPTS) -> list[TokenizedPrompt]:
    """What the model says counts as known."""
    return known_prompts(lm, tokenize_prompts(lm, prompts))


def made_trace(effects: dict[str, list[list[float]]], subject: range, corrupted: float = 0.1, index: int = 0) -> Trace:
    """A trace with given indirect effects, by kind (tokens, layers)."""
    tables = {kind: torch.tensor(table, dtype=torch.float64) + corrupted for kind, table in effects.items()}
    tokens = len(next(iter(effects.values())))
    words = tuple(f" t{token}" for token in range(tokens))
    prompt = Prompt("".join(words).strip(), words[subject.start].strip())
    return Trace(prompt, index, words, subject, " there", 0.5, corrupted, tables)
