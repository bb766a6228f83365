"""Fluency and consistency: what generated texts are worth, as pure functions of the texts.

Source: ROME (arXiv:2202.05262), section 3.3, and MEMIT (arXiv:2210.07229), appendix C.2, which call them GE and RS;
docs/metrics.md lists the differences from the published code.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from factpatch.evaluation.generation import Generation
from factpatch.evaluation.metrics import mean_or_none, percent

# A number or a word with what joins its parts ("3.14", "don't", "well-known", "U.S"); any other mark by itself.
_WORD = re.compile(r"\w+(?:[.,'’-]\w+)*|[^\w\s]")


class Similarity(Protocol):
    """Compares texts by the words in them."""

    def similarity(self, one: str, other: str) -> float:
        """The cosine of the texts' TF-IDF vectors, in [0, 1]; 0 where a text has no known word."""


def words(text: str) -> list[str]:
    """The words and marks of a text, in their own case."""
    return _WORD.findall(text)


def ngram_entropy(text: str, n: int) -> float:
    """−Σ p log₂ p over the relative frequencies p of the text's n-grams of `words`, in bits; 0 if there are none."""
    found = words(text)
    counts = Counter(zip(*(found[start:] for start in range(n)), strict=False))
    return math.fsum(-count / counts.total() * math.log2(count / counts.total()) for count in counts.values())


def weighted_entropy(text: str) -> float:
    """(2/3 · H₂ + 4/3 · H₃) / 2, in bits: H₂ and H₃ are the entropies of the text's 2- and 3-grams."""
    return (2 / 3 * ngram_entropy(text, 2) + 4 / 3 * ngram_entropy(text, 3)) / 2


def fluency(generations: Sequence[Generation]) -> float | None:
    """The mean `weighted_entropy` of a fact's texts, prompts included, in bits × 100, as in the published tables.

    Repetition lowers it. An empty generation has no entropy of its own and does not count; see `empty_texts`.

    Returns:
        None if all generations are empty or there are none.
    """
    return percent(mean_or_none(weighted_entropy(one.text) for one in generations if not one.empty))


def consistency(generations: Sequence[Generation], references: Sequence[str] | None, tfidf: Similarity) -> float | None:
    """Cosine, in percent, of the TF-IDF vectors of a fact's generated texts and its reference texts, each joined.

    Args:
        generations: What the model says of the subject. Empty generations do not count.
        references: Texts about subjects for which the new object is true, in the same relation.
        tfidf: Compares two texts.

    Returns:
        None if there are no reference texts, or nothing was generated. That is not 0, which says that the texts have no
        word in common.
    """
    texts = [one.text for one in generations if not one.empty]
    if not references or not texts:
        return None
    return percent(tfidf.similarity(" ".join(texts), " ".join(references)))


def empty_texts(generations: Sequence[Generation]) -> float | None:
    """Percentage of a fact's generations that are empty: the model ended the text at once, or said white space."""
    return percent(mean_or_none(one.empty for one in generations))
