"""Corpora: where one document ends, and what their identity tells apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.models import SENTENCES

from factpatch.statistics.corpus import Corpus, corpus_from, documents_in


def test_documents_are_separated_by_blank_lines() -> None:
    text = "one\ntwo\n\n  \nthree\n"
    assert list(documents_in(text.splitlines(keepends=True))) == ["one\ntwo", "three"]


def test_a_local_dataset_is_streamed(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"text": sentence}) for sentence in SENTENCES))
    corpus = corpus_from(f"hf:{folder}")
    assert list(corpus.documents()) == list(SENTENCES)
    assert list(corpus.documents()) == list(SENTENCES)
    identity = corpus.identity
    (folder / "train.jsonl").write_text(json.dumps({"text": "Something else."}))
    assert corpus_from(f"hf:{folder}").identity != identity
    with pytest.raises(ValueError, match="no column 'words'"):
        corpus_from(f"hf:{folder}:::words")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"corpus='.*absent.txt': no such text file"):
        corpus_from(str(tmp_path / "absent.txt"))


def test_the_shipped_corpus_is_the_default_and_has_an_identity() -> None:
    corpus = corpus_from(None)
    assert isinstance(corpus, Corpus)
    assert corpus.identity == corpus_from(None).identity
    assert sum(1 for _ in corpus.documents()) > 100
