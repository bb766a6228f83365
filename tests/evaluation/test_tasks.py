"""The table of capability tasks, the answers read out of texts, and files of items."""

from __future__ import annotations

import json

import pytest
from tests.helpers import shared

from factpatch.data.records import DataFileError
from factpatch.evaluation.tasks import TASKS, Task, task_named

ITEMS = {
    "sst2": {"sentence": "a joy {to} watch ", "label": 1, "idx": 427},
    "mrpc": {"sentence1": "He sings.", "sentence2": "He is singing.", "label": 1},
    "mmlu": {"question": "What is 4 x 9?", "subject": "arithmetic", "choices": ["13", "36", "49", "94"], "answer": 1},
    "rte": {"sentence1": "Rome is in Italy.", "sentence2": "Italy holds Rome.", "label": 0},
    "cola": {"sentence": "Him goes home.", "label": 0},
    "nli": {"sentence1": "Rome is in Italy.", "sentence2": "Rome is in France.", "label": "not_entailment"},
}
RIGHT = {"sst2": "positive", "mrpc": "Yes", "mmlu": "B", "rte": "True", "cola": "No", "nli": "False"}


@pytest.mark.parametrize("name", TASKS)
def test_a_question_holds_every_text_of_its_item_and_ends_where_the_answer_begins(name):
    item = ITEMS[name]
    question = TASKS[name].question(item)
    texts = [item[field] for field in ("sentence", "sentence1", "sentence2", "question") if field in item]
    assert all(text in question for text in [*texts, *item.get("choices", [])])
    assert question.endswith(":")
    assert not any(question.endswith(answer) for answer in TASKS[name].answers.values())


@pytest.mark.parametrize("name", TASKS)
def test_the_label_names_the_right_answer(name):
    assert TASKS[name].answer(ITEMS[name]) == RIGHT[name]


@pytest.mark.parametrize("name", TASKS)
def test_an_item_without_one_of_its_fields_is_named(name):
    task, item = TASKS[name], ITEMS[name]
    for field in item.keys() - {"idx", "subject"}:
        read = task.answer if field == task.label else task.question
        with pytest.raises(ValueError, match=field):
            read({**item, field: None})
        with pytest.raises(ValueError, match=field):
            read({key: value for key, value in item.items() if key != field})


@pytest.mark.parametrize("label", [2, -1, "1", True, [1], 1.5, None])
def test_a_label_that_the_task_does_not_have_is_refused(label):
    with pytest.raises(ValueError, match=r"'label' is .*; it must be one of 1, 0"):
        TASKS["sst2"].answer({"label": label})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("sst2", "Positive, I think", "positive"),
        ("sst2", "it is NEGATIVE and not positive", "negative"),
        ("sst2", "positively", None),
        ("sst2", "", None),
        ("mrpc", "No.", "No"),
        ("mrpc", "Nobody knows", None),
        ("mmlu", "(C)", "C"),
        ("mmlu", "B. 36", "B"),
        ("mmlu", "a book", None),
        ("rte", "true\n", "True"),
    ],
)
def test_the_first_answer_that_stands_as_a_whole_word_is_what_was_said(name, text, said):
    assert TASKS[name].said(text) == said


def test_words_of_an_answer_are_no_pattern():
    task = Task("sum", "{q}", {0: "$1 (one)", 1: "A+B"}, "")
    assert [task.said(text) for text in ("it is a+b", "for $1 (one).", "AAB")] == ["A+B", "$1 (one)", None]


@pytest.mark.parametrize("name", TASKS)
def test_published_files_are_read(name):
    items = TASKS[name].load(shared("data", f"glue_{name}.json"))
    assert len(items) > 200
    right = [TASKS[name].answer(item) for item in items]
    assert set(right) == set(TASKS[name].answers.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        ("{}", "must be a list"),
        ("[]", "at least one"),
        ('["a"]', "record 1: 'a' is a string"),
        ('[{"sentence": "a", "label": 1}, {"sentence": "b", "label": 7}]', "record 2: is no item of sst2: .*7"),
        ('[{"sentence": "a", "label": 1}, {"text": "b", "label": 1}]', r"record 2: .*'sentence' is missing.*\['text'"),
    ],
)
def test_a_file_that_is_none_of_the_task_is_named_with_its_first_bad_record(content, message, tmp_path):
    path = tmp_path / "glue_sst2.json"
    path.write_text(content)
    with pytest.raises(DataFileError, match=message) as error:
        TASKS["sst2"].load(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataFileError, match=r"glue_sst2.json: no such file"):
        TASKS["sst2"].load(tmp_path / "glue_sst2.json")


def test_items_are_read_in_order(tmp_path):
    path = tmp_path / "items.json"
    items = [{"sentence": text, "label": 1} for text in "abc"]
    path.write_text(json.dumps(items))
    assert TASKS["cola"].load(path) == items


def test_an_unknown_task_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"unknown task 'sst'. Did you mean 'sst2'\? Known: sst2, mrpc"):
        task_named("sst")
