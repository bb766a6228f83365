"""Corpora: where one document ends, and what their identity tells apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.models import SENTENCES

from factpatch.statistics.corpus import Corpus, check_corpus, corpus_from, documents_in


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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b" \n\n ", "the file is empty"),
        ("München".encode("cp1252") * 100, "is no text in UTF-8 (.*0xfc); save it as UTF-8"),
        ("Rome is a city.".encode("utf-16"), "in UTF-16"),
        ("Rome is a city.".encode("utf-16-le"), "in UTF-16"),
        (b"\0" * 100, "no text at all"),
        (b"\xff\xfe\xfd", "is no text in UTF-8"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "is a pointer of git-lfs.*git lfs pull",
        ),
        (b"<!DOCTYPE html><html>", "is a web page"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_its_name_and_option(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    said = said.replace("(", r"\(").replace(")", r"\)")
    for check in (check_corpus, corpus_from):
        with pytest.raises(ValueError, match=f"corpus='{path}': .*{said}"):
            check(str(path))


def test_a_folder_is_refused_as_one(tmp_path: Path) -> None:
    for check in (check_corpus, corpus_from):
        with pytest.raises(ValueError, match=f"corpus='{tmp_path}': is a folder; give a text file"):
            check(str(tmp_path))


def test_bytes_that_are_no_text_far_in_a_file_are_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(("Zürich. " * 20_000).encode() + b"\xff")
    corpus = corpus_from(path)
    with pytest.raises(ValueError, match=rf"corpus='{path}': is no text in UTF-8 \(.*0xff\)"):
        list(corpus.documents())


def test_a_character_across_the_end_of_what_is_checked_first_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    for shift in range(4):
        text = "x" * shift + "\U0001f600" * 20_000
        path.write_text(text, "utf-8")
        assert list(corpus_from(path).documents()) == [text]


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("Rome is a city.", "utf-8-sig")
    assert list(corpus_from(path).documents()) == ["Rome is a city."]


def test_the_shipped_corpus_is_the_default_and_has_an_identity() -> None:
    corpus = corpus_from(None)
    assert isinstance(corpus, Corpus)
    assert corpus.identity == corpus_from(None).identity
    assert sum(1 for _ in corpus.documents()) > 100
