"""Words weighted by how rare they are (TF-IDF): what consistency compares texts with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factpatch.data.reading import DataFileError
from factpatch.data.sources import resolve_data


@dataclass(frozen=True)
class Tfidf:
    """Vectors of texts, one column per word: how often it occurs, times its weight, over the length of the whole.

    The vectors are those of scikit-learn's TfidfVectorizer in its default settings, as ROME (arXiv:2202.05262) uses it:
    words of two characters or more, in lower case; idf of a word = ln((1 + texts) / (1 + texts with the word)) + 1.

    Attributes:
        vectorizer: A TfidfVectorizer that knows its words and weights.
    """

    vectorizer: Any

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Tfidf:
        """Take words and weights from texts.

        Raises:
            ImportError: scikit-learn is not installed.
            ValueError: There are no words in the texts.
        """
        return cls(_vectorizer().fit(texts))

    @classmethod
    def load(cls, words: str | Path = "tfidf_vocab", weights: str | Path = "tfidf_idf") -> Tfidf:
        """Read words and weights in the layout in which ROME publishes them.

        Args:
            words: A JSON file: an object with the column of every word; or the name under which one was fetched.
            weights: A NumPy file: the idf of every column; or the name under which one was fetched.

        Raises:
            ImportError: scikit-learn is not installed.
            DataFileError: A file cannot be read, or the two do not belong together.
        """
        words, weights = resolve_data(words), resolve_data(weights)
        try:
            vocabulary = json.loads(words.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataFileError(f"{words}: cannot be read as JSON: {error}.") from error
        try:
            idf = np.load(weights, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataFileError(f"{weights}: cannot be read as an array of numbers: {error}.") from error
        if not isinstance(vocabulary, dict) or not isinstance(idf, np.ndarray) or idf.shape != (len(vocabulary),):
            shape = getattr(idf, "shape", None)
            raise DataFileError(f"{words}: must be an object with one column for each of the weights; {shape} of them.")
        vectorizer = _vectorizer(vocabulary)
        try:
            vectorizer.idf_ = idf.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise DataFileError(f"{words} and {weights}: are no words with their weights: {error}.") from error
        return cls(vectorizer)

    def vectors(self, texts: Sequence[str]) -> Any:
        """Return a sparse matrix, (texts, words), whose rows have length 1, or 0 where a text has no known word."""
        return self.vectorizer.transform(texts)

    def similarity(self, one: str, other: str) -> float:
        """Return the cosine of two texts' vectors, in [0, 1]; 0 where one of them has no known word."""
        first, second = self.vectors([one, other])
        return float((first @ second.T).sum())


def _vectorizer(vocabulary: dict[str, int] | None = None) -> Any:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ImportError(
            "comparing texts needs scikit-learn, which is not installed: run `pip install 'factpatch[evaluate]'`."
        ) from error
    return TfidfVectorizer(vocabulary=vocabulary)
