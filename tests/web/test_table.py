"""Rows of the table are facts, or say in the library's words why they are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factpatch import Fact
from factpatch.data import demo_facts
from factpatch.web.table import EXAMPLES, cells_of, example, read_file, read_pasted, read_rows

FRANCE = ["The capital of {} is", "France", "Rome", "Paris"]


def test_a_row_is_a_fact_and_blank_rows_are_left_out() -> None:
    rows = read_rows([FRANCE, ["", "", "", ""], ["  ", None, "", ""], ["The capital of Spain is", "Spain", "Oslo", ""]])
    assert [row.number for row in rows] == [1, 4]
    assert [row.fact for row in rows] == [
        Fact("The capital of {} is", "France", "Rome", target_true="Paris"),
        Fact("The capital of Spain is", "Spain", "Oslo"),
    ]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["The capital is", "France", "Rome", ""], "does not contain the subject 'France'"),
        (["The capital of {} is", "France", "", ""], "target_new"),
        (["", "France", "Rome", ""], "prompt"),
    ],
)
def test_a_mistake_is_at_its_row_in_the_words_of_the_library(cells: list[str], said: str) -> None:
    right, wrong = read_rows([FRANCE, cells])
    assert right.fact is not None
    assert wrong.fact is None
    assert said in wrong.mistake


def test_a_repeated_question_is_a_mistake_of_the_later_row() -> None:
    rows = read_rows([FRANCE, ["The capital of {} is", "France", "Oslo", ""]])
    assert rows[0].fact is not None
    assert rows[1].mistake.startswith("row 1 and row 2 conflict: they answer 'The capital of France is'")


def test_a_row_keeps_what_the_file_said_besides_as_long_as_it_asks_the_same() -> None:
    fact = demo_facts()[0]
    other = [fact.prompt, fact.subject, "Oslo", ""]
    (same,), (changed,), (moved,) = (
        read_rows([cells], [fact]) for cells in (cells_of(fact), other, ["The {} is in", fact.subject, "Oslo", ""])
    )
    assert same.fact is not None
    assert same.fact.neighbors == fact.neighbors
    assert changed.fact is not None
    assert (changed.fact.target_new, changed.fact.paraphrases) == ("Oslo", fact.paraphrases)
    assert moved.fact is not None
    assert not moved.fact.paraphrases


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}]),
        "prompt,subject,target_new\nThe capital of {} is,France,Rome\n",
        "prompt\tsubject\ttarget_new\nThe capital of {} is\tFrance\tRome\n",
    ],
)
def test_pasted_text_is_read_as_files_are(text: str, tmp_path: Path) -> None:
    assert read_pasted(text, tmp_path, 5) == [Fact("The capital of {} is", "France", "Rome")]
    assert not list(tmp_path.iterdir())


def test_messages_about_files_show_no_path_of_the_server(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('[{"prompt": "The capital is", "subject": "France", "target_new": "Rome"}]')
    with pytest.raises(ValueError, match=r"^mine\.json: record 1: .*does not contain the subject") as caught:
        read_file(file, "mine.json", 5)
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(ValueError, match=r"^pasted text: "):
        read_pasted("{", tmp_path, 5)
    with pytest.raises(ValueError, match="it is empty"):
        read_pasted(" \n", tmp_path, 5)


def test_a_file_with_more_facts_than_allowed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps([fact.to_dict() for fact in demo_facts()]))
    with pytest.raises(ValueError, match=r"more than the 3 facts"):
        read_file(file, "x.json", 3)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_facts(name: str) -> None:
    assert str(len(example(name))) in name
