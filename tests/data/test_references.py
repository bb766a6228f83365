"""Reference texts and the weights of their words, in the layouts of ROME's files."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factpatch.data import DataFileError, demo_facts
from factpatch.data.references import (
    ReferenceTexts,
    Tfidf,
    demo_references,
    find_references,
    reference_files,
    why_no_references,
)
from factpatch.facts import Fact

SNIPPETS = [
    {"relation_id": "P36", "target_id": "Q585", "samples": [{"name": "Norway", "text": "Oslo it is."}]},
    {"relation_id": "P36", "target_id": "Q597", "samples": [{"text": "Lisbon it is."}, {"text": "Lisbon again."}]},
    {"relation_id": "P103", "target_id": "Q585", "samples": []},
]
TEXTS = ["the cat sat on the mat", "the dog sat", "cats and dogs, dogs and cats"]


def fact(relation: str | None, target: str | None) -> Fact:
    return Fact("The capital of {} is", "Peru", "Oslo", relation_id=relation, target_new_id=target)


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def saved(folder: Path, tfidf: Tfidf) -> tuple[Path, Path]:
    """The two files that ROME publishes, of other words."""
    columns = {word: int(column) for word, column in tfidf.vectorizer.vocabulary_.items()}
    np.save(folder / "idf.npy", tfidf.vectorizer.idf_)
    return write(folder / "tfidf_vocab.json", columns), folder / "idf.npy"


def test_texts_are_found_by_relation_and_new_object(tmp_path: Path) -> None:
    references = ReferenceTexts.load(write(tmp_path / "snippets.json", SNIPPETS))
    assert references.for_fact(fact("P36", "Q585")) == ("Oslo it is.",)
    assert references.for_fact(fact("P36", "Q597")) == ("Lisbon it is.", "Lisbon again.")


@pytest.mark.parametrize(("relation", "target"), [("P36", "Q1"), ("P36", None), (None, "Q585"), ("P103", "Q585")])
def test_missing_texts_are_none(tmp_path: Path, relation: str | None, target: str | None) -> None:
    references = ReferenceTexts.load(write(tmp_path / "snippets.json", SNIPPETS))
    assert references.for_fact(fact(relation, target)) is None


def test_files_that_were_not_fetched_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path))
    assert why_no_references() == "no reference texts were fetched"
    (tmp_path / "data").mkdir()
    for file in ("attribute_snippets.json", "idf.npy"):
        assert find_references(None, ()) == (None, None)
        (tmp_path / "data" / file).touch()
    assert find_references(None, ()) == (None, None)
    assert "attribute_snippets and tfidf_idf were fetched, but not tfidf_vocab" in why_no_references()
    assert "factpatch data fetch tfidf_vocab" in why_no_references()
    (tmp_path / "data" / "tfidf_vocab.json").touch()
    assert list(reference_files(None)) == ["attribute_snippets", "tfidf_vocab", "tfidf_idf"]


def test_only_the_texts_of_the_given_facts_are_kept(tmp_path: Path) -> None:
    wanted = [fact("P36", "Q597"), fact(None, None)]
    references = ReferenceTexts.load(write(tmp_path / "snippets.json", SNIPPETS), wanted)
    assert list(references.texts) == [("P36", "Q597")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        ([{**SNIPPETS[0], "samples": "x"}], "record 1: samples='x': must be a list"),
        ([{**SNIPPETS[0], "samples": [{"name": "x"}]}], r"record 1: samples\[0\]=None: must be"),
        ([{"samples": []}], "record 1: missing field 'relation_id'"),
    ],
)
def test_a_malformed_file_of_texts_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        ReferenceTexts.load(write(tmp_path / "snippets.json", content))


def test_every_demo_fact_has_three_texts_about_others_that_name_its_new_object() -> None:
    references, facts = demo_references(), demo_facts()
    assert len(references.texts) == len(facts)
    for one in facts:
        texts = references.for_fact(one)
        assert texts is not None
        assert len(set(texts)) == 3
        assert all(one.target_new in text and one.subject not in text for text in texts)


def test_every_demo_fact_has_generation_prompts_about_its_subject() -> None:
    for one in demo_facts():
        assert len(set(one.generation_prompts)) == 3
        assert all(one.subject in prompt and one.target_new not in prompt for prompt in one.generation_prompts)


def test_weights_are_those_of_the_definition() -> None:
    pytest.importorskip("sklearn")
    vector = Tfidf.fit(TEXTS).vectors(["the cat"]).toarray()[0]
    # "the" is in two texts of three, "cat" in one.
    the, cat = math.log(4 / 3) + 1, math.log(4 / 2) + 1
    assert sorted(vector[vector > 0]) == pytest.approx([the / math.hypot(the, cat), cat / math.hypot(the, cat)])


def test_similarity_is_the_cosine_and_0_without_a_known_word() -> None:
    pytest.importorskip("sklearn")
    tfidf = Tfidf.fit(TEXTS)
    assert tfidf.similarity("the cat sat", "sat the cat") == pytest.approx(1)
    assert tfidf.similarity("the mat", "dogs and cats") == 0
    assert tfidf.similarity("the mat", "unheard of") == 0
    assert 0 < tfidf.similarity("the cat sat", "the dog sat") < 1


def test_published_words_and_weights_give_the_vectors_of_the_vectorizer_they_come_from(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    tfidf = Tfidf.fit(TEXTS)
    loaded = Tfidf.load(*saved(tmp_path, tfidf))
    texts = ["The cat and the dog", "nothing known", *TEXTS]
    assert np.array_equal(loaded.vectors(texts).toarray(), tfidf.vectors(texts).toarray())


@pytest.mark.parametrize(
    ("words", "weights", "message"),
    [
        ("{", None, "tfidf_vocab.json: cannot be read as JSON"),
        ("[1]", None, "must be an object with one column for each of the weights"),
        ('{"a": 0}', None, "must be an object with one column for each of the weights"),
        (None, b"no array", "idf.npy: cannot be read as an array of numbers"),
    ],
)
def test_words_and_weights_that_cannot_be_read_are_refused(
    tmp_path: Path, words: str | None, weights: bytes | None, message: str
) -> None:
    pytest.importorskip("sklearn")
    vocabulary, idf = saved(tmp_path, Tfidf.fit(TEXTS))
    if words is not None:
        vocabulary.write_text(words)
    if weights is not None:
        idf.write_bytes(weights)
    with pytest.raises(DataFileError, match=message):
        Tfidf.load(vocabulary, idf)


def test_weights_with_python_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "idf.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    words = write(tmp_path / "words.json", {"a": 0, "b": 1})
    with pytest.raises(DataFileError, match=r"cannot be read .*allow_pickle"):
        Tfidf.load(words, tmp_path / "idf.npy")


def test_without_scikit_learn_the_extra_is_named(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ImportError, match=r"pip install 'factpatch\[evaluate\]'"):
        Tfidf.fit(TEXTS)
