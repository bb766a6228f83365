"""Reference texts, with which generated texts are compared: about other subjects that share a fact's new object."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factpatch.data.reading import DataFileError
from factpatch.data.records import convert_records, read_text, read_texts
from factpatch.data.sources import fetched, resolve_data, source_named
from factpatch.facts import Fact
from factpatch.support.words import quoted

DEMO = "demo"
"""The name of the texts that come with the package."""
_FILES = ("attribute_snippets", "tfidf_vocab", "tfidf_idf")


@dataclass(frozen=True)
class ReferenceTexts:
    """Texts by relation and object.

    Attributes:
        texts: Under a relation and an object, as ids of Wikidata, texts about subjects of which the relation says that
            object: under P103 (native language) and Q1860 (English), about people whose native language is English.
    """

    texts: Mapping[tuple[str, str], tuple[str, ...]]

    @classmethod
    def load(cls, path: str | Path = "attribute_snippets", facts: Collection[Fact] | None = None) -> ReferenceTexts:
        """Return the texts of a file in the format of ROME's `attribute_snippets.json`, or of one fetched under a name.

        That is a list of objects with `relation_id`, `target_id` and `samples`, each with a `text`. The published file
        has 926 MB and needs several times that memory while it is read. Only texts for `facts` are kept, if given.

        Raises:
            DataFileError: The file cannot be read or has another format.
        """
        wanted = None if facts is None else {(fact.relation_id, fact.target_new_id) for fact in facts}
        texts: dict[tuple[str, str], tuple[str, ...]] = {}
        for key, found in convert_records(resolve_data(path), _texts):
            if wanted is None or key in wanted:
                texts[key] = texts.get(key, ()) + found
        return cls(texts)

    def for_fact(self, fact: Fact) -> tuple[str, ...] | None:
        """Return the texts about subjects that share a fact's new object, or None where there are none.

        None also where the fact has no `relation_id` or no `target_new_id`. A metric that needs the texts is then
        missing; it is not 0.
        """
        if fact.relation_id is None or fact.target_new_id is None:
            return None
        return self.texts.get((fact.relation_id, fact.target_new_id)) or None


def _texts(record: Mapping[str, Any], index: int) -> tuple[tuple[str, str], tuple[str, ...]]:
    samples = record.get("samples")
    if not isinstance(samples, list):
        raise TypeError(f"samples={quoted(samples)}: must be a list of objects with a text.")
    texts = [sample.get("text") if isinstance(sample, Mapping) else sample for sample in samples]
    key = (read_text(record, "relation_id"), read_text(record, "target_id"))
    return key, tuple(read_texts({"samples": texts}, "samples"))


@dataclass(frozen=True)
class Tfidf:
    """Words weighted by how rare they are (TF-IDF): what consistency compares texts with.

    A text's vector has one column per word: how often it occurs, times its weight, over the length of the whole. It is
    that of scikit-learn's TfidfVectorizer in its default settings, as ROME (arXiv:2202.05262) uses it: words of two
    characters or more, in lower case; idf of a word = ln((1 + texts) / (1 + texts with the word)) + 1.

    Attributes:
        vectorizer: A TfidfVectorizer that knows its words and weights.
    """

    vectorizer: Any

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Tfidf:
        """Take words and weights from texts; ImportError without scikit-learn, ValueError without a word."""
        return cls(_vectorizer().fit(texts))

    @classmethod
    def load(cls, words: str | Path = "tfidf_vocab", weights: str | Path = "tfidf_idf") -> Tfidf:
        """Read words and weights in the layout in which ROME publishes them, or as they were fetched under a name.

        Args:
            words: A JSON file: an object with the column of every word.
            weights: A NumPy file: the idf of every column.

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


def demo_references() -> ReferenceTexts:
    """Return the texts that come with the package, three for each of the demo facts."""
    return ReferenceTexts.load(Path(__file__).with_name("demo_references.json"))


def find_references(source: str | Path | None, facts: Collection[Fact]) -> tuple[ReferenceTexts | None, Tfidf | None]:
    """Return reference texts for facts, and what compares texts with them.

    Args:
        source: A folder with the published files, or `DEMO` for the texts that come with the package. By default the
            published files, if they were fetched, else None and None are returned.
        facts: Only texts for these are kept.

    Raises:
        DataFileError: A file cannot be read.
        ImportError: scikit-learn is not installed.
    """
    if source == DEMO:
        own = demo_references()
        return own, Tfidf.fit([text for some in own.texts.values() for text in some])
    files = reference_files(source)
    if not files:
        return None, None
    texts, words, weights = (files[name] for name in _FILES)
    return ReferenceTexts.load(texts, facts), Tfidf.load(words, weights)


def reference_files(source: str | Path | None) -> dict[str, str | Path]:
    """Return the published files that `find_references` reads, by name: in a folder or as fetched; else none."""
    if source == DEMO:
        return {}
    if source is not None:
        return {name: Path(source) / source_named(name).file for name in _FILES}
    return {} if _absent() else {name: name for name in _FILES}


def why_no_references() -> str:
    """Say why there are none by default: nothing was fetched, or a file is missing that the others need."""
    absent = _absent()
    if len(absent) == len(_FILES):
        return "no reference texts were fetched"
    present = [name for name in _FILES if name not in absent]
    return (
        f"of the files with reference texts, {' and '.join(present)} {'was' if len(present) == 1 else 'were'} fetched, "
        f"but not {' and '.join(absent)} (factpatch data fetch {absent[0]})"
    )


def _absent() -> list[str]:
    return [name for name in _FILES if not fetched(name)]
