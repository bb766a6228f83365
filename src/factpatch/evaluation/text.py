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
from factpatch.evaluation.metrics import FactMetric, fact_names, mean_or_none, percent
from factpatch.facts import Fact

# A number or a word with what joins its parts ("3.14", "don't", "well-known", "U.S"); any other mark by itself.
_WORD = re.compile(r"\w+(?:[.,'’-]\w+)*|[^\w\s]")
TEXT_METRICS = ("fluency", "consistency", "empty_texts")
GREEDY = "greedy_"
"""What the names of these begin with where the most probable token was always taken."""


class Similarity(Protocol):
    """Compares texts by the words in them."""

    def similarity(self, one: str, other: str) -> float:
        """Return the cosine of the texts' TF-IDF vectors, in [0, 1]; 0 where a text has no known word."""


def text_metrics(
    facts: Sequence[Fact],
    generations: Sequence[Sequence[Generation]],
    references: Sequence[Sequence[str] | None] | None = None,
    tfidf: Similarity | None = None,
    prefix: str = "",
) -> list[FactMetric]:
    """Return fluency, consistency and the share of empty texts of every fact.

    Args:
        facts: The facts.
        generations: For each fact the texts that a model wrote about its subject.
        references: For each fact its reference texts, or None where there are none: consistency is None there.
        tfidf: Compares texts; without it, consistency is None.
        prefix: What the metrics' names begin with, such as `GREEDY` for texts that were not sampled.
    """
    references = [None] * len(facts) if references is None else references
    found = []
    for name, texts, given in zip(fact_names(facts), generations, references, strict=True):
        compared = None if tfidf is None else consistency(texts, given, tfidf)
        values = (fluency(texts), compared, empty_texts(texts))
        found += [FactMetric(name, prefix + metric, value) for metric, value in zip(TEXT_METRICS, values, strict=True)]
    return found


def words(text: str) -> list[str]:
    """Return the words and marks of a text, in their own case."""
    return _WORD.findall(text)


def ngram_entropy(text: str, n: int) -> float:
    """Return −Σ p log₂ p over the relative frequencies p of the text's n-grams of `words`, in bits; 0 without any."""
    found = words(text)
    counts = Counter(zip(*(found[start:] for start in range(n)), strict=False))
    return math.fsum(-count / counts.total() * math.log2(count / counts.total()) for count in counts.values())


def weighted_entropy(text: str) -> float:
    """Return (2/3 · H₂ + 4/3 · H₃) / 2, in bits: H₂ and H₃ are the entropies of the text's 2- and 3-grams."""
    return (2 / 3 * ngram_entropy(text, 2) + 4 / 3 * ngram_entropy(text, 3)) / 2


def fluency(generations: Sequence[Generation]) -> float | None:
    """Return the mean `weighted_entropy` of a fact's texts, prompts included, in bits × 100, as in published tables.

    Repetition lowers it. An empty generation has no entropy of its own and does not count; see `empty_texts`. None if
    all generations are empty or there are none.
    """
    return percent(mean_or_none(weighted_entropy(one.text) for one in generations if not one.empty))


def consistency(generations: Sequence[Generation], references: Sequence[str] | None, tfidf: Similarity) -> float | None:
    """Return the cosine, in percent, of the TF-IDF vectors of a fact's texts and its reference texts, each joined.

    The references are texts about subjects for which the new object is true, in the same relation. Without them, or
    where nothing was generated, it is None. That is not 0, which says that the texts have no word in common.
    """
    texts = [one.text for one in generations if not one.empty]
    if not references or not texts:
        return None
    return percent(tfidf.similarity(" ".join(texts), " ".join(references)))


def empty_texts(generations: Sequence[Generation]) -> float | None:
    """Return the percentage of a fact's generations that are empty: the model ended the text at once."""
    return percent(mean_or_none(one.empty for one in generations))
