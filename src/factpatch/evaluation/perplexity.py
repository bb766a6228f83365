"""Perplexity on ordinary text: whether a model still writes as it did."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import torch

from factpatch.model.batching import batches, log_probability_chunks, padded
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces
from factpatch.model.tokens import tokenize


def held_out_text() -> str:
    """Return the text that the package ships for measuring perplexity; no statistics are collected from it."""
    return resources.files("factpatch").joinpath("corpora", "held_out.txt").read_text(encoding="utf-8")


WINDOW = 512
"""Longest piece of a document that is read at once, in tokens."""


def windows(tokenizer: Any, text: str, window: int = WINDOW) -> list[list[int]]:
    """Return the tokens of each piece that `perplexity` reads at once; ValueError as there."""
    if window < 2:
        raise ValueError(f"window={window}: the first token of a window is not predicted; give at least 2.")
    documents = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    rows = []
    for document in tokenize(tokenizer, documents) if documents else []:
        rows += [document[first : first + window] for first in range(0, len(document), window)]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise ValueError(f"text={text[:40]!r}: no document has two tokens; give a longer text.")
    return rows


def perplexity(lm: LanguageModel, text: str | None = None, window: int | None = None) -> float:
    """Return exp of the mean NLL per predicted token.

    Blank lines separate documents. Each document is tokenized with the tokenizer's default special tokens and cut into
    windows; the first token of a window is not predicted.

    Args:
        lm: The model; it is left as it was.
        text: One or more documents; by default `held_out_text()`.
        window: Tokens that are read together; by default 512, or fewer if the model has fewer positions.

    Raises:
        ValueError: `window` is below 2 or more than the model has positions for, or no document has two tokens.
    """
    window = lm.window(WINDOW) if window is None else window
    rows = windows(lm.tokenizer, held_out_text() if text is None else text, window)
    longest = max(len(row) for row in rows)
    if longest > (positions := lm.window(longest)):
        raise ValueError(
            f"window={window}: {lm.name} reads at most {positions} tokens; give window={positions} or less."
        )

    def summed(batch: Sequence[int]) -> tuple[float, int]:
        ids, mask = padded([rows[row] for row in batch])
        predicted = mask[:, 1:].bool()
        labels = ids[:, 1:][predicted]
        hidden = lm.body(input_ids=ids[:, :-1].to(lm.device), use_cache=False)
        hidden = hidden[predicted.to(hidden.device)]
        nll = 0.0
        for chunk, table in log_probability_chunks(lm, hidden):
            nll -= float(table.gather(-1, labels[chunk, None].to(table.device)).sum(dtype=torch.float64))
        return nll, len(labels)

    total, count = 0.0, 0
    with torch.inference_mode(), lm.quiet():
        for batch in batches([len(row) - 1 for row in rows]):
            for _, (nll, tokens) in in_pieces(summed, batch):
                total, count = total + nll, count + tokens
    try:
        return math.exp(total / count)
    except OverflowError:
        return math.inf
