"""Perplexity on ordinary text: whether a model still writes as it did."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import chain, islice
from typing import Any

import torch

from factpatch.model.batching import batches, log_probability_chunks, padded, parts
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces
from factpatch.model.products import asking
from factpatch.model.tokens import tokenize


def held_out_text() -> str:
    """Return the text that the package ships for measuring perplexity; no statistics are collected from it."""
    return resources.files("factpatch").joinpath("corpora", "held_out.txt").read_text(encoding="utf-8")


WINDOW = 512
"""Longest piece of a document that is read at once, in tokens."""
BLOCK = 32
"""Neighboring tokens that count as one observation for a standard error, since their losses go together."""


@dataclass(frozen=True)
class TextLoss:
    """How well a model predicts a text."""

    nll: tuple[float, ...]
    """Of each predicted token, in nats, in the order of the text."""

    @property
    def perplexity(self) -> float:
        """exp of the mean NLL per predicted token."""
        try:
            return math.exp(math.fsum(self.nll) / len(self.nll))
        except OverflowError:
            return math.inf

    def error(self, before: TextLoss) -> float | None:
        """The standard error of the change of perplexity, in percent of what it was before.

        The same tokens are compared, so what counts is how differently they have changed, and not how hard they are. It
        says how far the change on a longer text of the same kind may be from this one. None for a text of fewer than
        two blocks, or if the loss is not finite.
        """
        changes = [now - then for now, then in zip(self.nll, before.nll, strict=True)]
        blocks = [math.fsum(some) / len(some) for some in parts(changes, BLOCK)]
        if len(blocks) < 2 or not all(map(math.isfinite, blocks)):
            return None
        mean = math.fsum(blocks) / len(blocks)
        variance = math.fsum((block - mean) ** 2 for block in blocks) / (len(blocks) - 1)
        return 100 * math.sqrt(variance / len(blocks)) * self.perplexity / before.perplexity


def windows(tokenizer: Any, text: str, window: int = WINDOW, tokens: int | None = None) -> list[list[int]]:
    """Return the tokens of each piece that `perplexity` reads at once; ValueError as there."""
    if window < 2:
        raise ValueError(f"window={window}: the first token of a window is not predicted; give at least 2.")
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens={tokens}: give at least 1, or None for all.")
    documents = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    rows = []
    for document in tokenize(tokenizer, documents) if documents else []:
        rows += [document[first : first + window] for first in range(0, len(document), window)]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise ValueError(f"text={text[:40]!r}: no document has two tokens; give a longer text.")
    predicted = sum(len(row) - 1 for row in rows)
    if tokens is None or predicted <= tokens:
        return rows
    if len(rows) > tokens:
        rows = [rows[place * len(rows) // tokens] for place in range(tokens)]
        predicted = sum(len(row) - 1 for row in rows)
    # The beginning of every window, so that all documents count.
    return [row[: 1 + max(1, (len(row) - 1) * tokens // predicted)] for row in rows]


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
    return text_loss(lm, text, window).perplexity


def text_loss(
    lm: LanguageModel, text: str | None = None, window: int | None = None, tokens: int | None = None
) -> TextLoss:
    """Return the NLL of every predicted token, read as `perplexity` reads them.

    Args:
        tokens: About how many tokens to predict at most: of a longer text, the beginning of each window. By default
            all.
    """
    window = lm.window(WINDOW) if window is None else window
    rows = windows(lm.tokenizer, held_out_text() if text is None else text, window, tokens)
    longest = max(len(row) for row in rows)
    if longest > (positions := lm.window(longest)):
        raise ValueError(
            f"window={window}: {lm.name} reads at most {positions} tokens; give window={positions} or less."
        )

    def read(batch: Sequence[int]) -> list[list[float]]:
        ids, mask = padded([rows[row] for row in batch])
        predicted = mask[:, 1:].bool()
        labels = ids[:, 1:][predicted]
        hidden = lm.body(input_ids=ids[:, :-1].to(lm.device), use_cache=False)
        hidden = hidden[predicted.to(hidden.device)]
        nll: list[float] = []
        for chunk, table in log_probability_chunks(lm, hidden):
            nll += (-table.gather(-1, labels[chunk, None].to(table.device))[:, 0]).double().tolist()
        remaining = iter(nll)
        return [list(islice(remaining, len(rows[row]) - 1)) for row in batch]

    found: dict[int, list[float]] = {}
    with torch.inference_mode(), lm.quiet(), asking(lm):
        for batch in batches([len(row) - 1 for row in rows]):
            for some, losses in in_pieces(read, batch):
                found |= dict(zip(some, losses, strict=True))
    return TextLoss(tuple(chain.from_iterable(found[row] for row in range(len(rows)))))
