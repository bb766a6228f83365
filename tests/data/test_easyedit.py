"""EasyEdit's requests and KnowEdit's records become facts. The records here are our own, in the published layouts."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factpatch.data import DataFileError, load_facts
from factpatch.facts import Fact, Neighbor, Ripple

REQUEST: dict[str, Any] = {
    "case_id": 5,
    "prompt": "The capital of Peru is",
    "subject": "Peru",
    "target_new": "Oslo",
    "ground_truth": "Lima",
    "rephrase_prompt": "Peru is governed from",
    "locality": {"neighborhood": {"prompt": "The capital of Chile is", "ground_truth": "Santiago"}},
    "portability": {"one_hop": {"prompt": "The mayor of the capital of Peru is", "ground_truth": "Somebody"}},
}
FACT = Fact(
    prompt="The capital of {} is",
    subject="Peru",
    target_new="Oslo",
    target_true="Lima",
    id="5",
    paraphrases=("Peru is governed from",),
    neighbors=(Neighbor("The capital of Chile is", "Santiago"),),
)
RECENT: dict[str, Any] = {
    "subject": "Ada Lovelace",
    "prompt": "The place of death of Ada Lovelace is",
    "target_new": "Oslo",
    "portability": {
        "Logical_Generalization": [{"prompt": "Is Ada Lovelace alive?", "ground_truth": [["no"], ["false"]]}],
        "Reasoning": [{"prompt": "The country where Ada Lovelace died is", "ground_truth": [["Norway"]]}],
        "Subject_Aliasing": [
            {"prompt": "The place of death of Augusta Ada King is", "ground_truth": [["Oslo, Norway", "oslo"]]},
            {"prompt": "The place of death of Lord Byron's daughter is", "ground_truth": [["London"]]},
        ],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The father of Ada Lovelace is", "ground_truth": [["Lord Byron", "George Byron"], ["a poet"]]},
            {"prompt": "The eye color of Ada Lovelace is", "ground_truth": [[]]},
        ],
        "Forgetfulness": [{"prompt": "The place of death, other than Oslo, is", "ground_truth": "London"}],
    },
}
WIKIBIO: dict[str, Any] = {
    "text": "This is a passage about ada lovelace. Ada Lovelace was born in London.",
    "labels": "She wrote about the Analytical Engine.",
    "concept": "ada lovelace",
    "locality": {"Relation_Specificity": [{"prompt": "ada lovelace field of work", "ground_truth": ["mathematics"]}]},
}


def load(tmp_path: Path, *records: object, **options: Any) -> list[Fact]:
    path = tmp_path / "any_name.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return load_facts(path, **options)


def test_a_request_becomes_a_fact(tmp_path: Path) -> None:
    assert load(tmp_path, REQUEST) == [FACT]


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "The capital of {} is"},
        {"prompt": "The capital of peru is", "subject": "peru"},
        {"ground_truth": ["Lima", "Callao"]},
        {"ground_truth": [["Lima", "City of Kings"]]},
        {"rephrase_prompt": ["Peru is governed from"]},
        {"rephrase_prompt": None, "rephrase": "Peru is governed from"},
        {"locality": {"a": {"prompt": ["The capital of Chile is"], "ground_truth": ["Santiago"]}}},
        {"locality": {"a": [{"prompt": "The capital of Chile is", "ground_truth": [["Santiago", "Stgo"]]}], "b": None}},
        {"locality": None, "locality_prompt": "The capital of Chile is", "locality_ground_truth": "Santiago"},
        {"portability": {}},
        {"portability": None},
    ],
)
def test_the_layouts_of_requests_read_alike(tmp_path: Path, changes: dict[str, Any]) -> None:
    (found,) = load(tmp_path, {**REQUEST, **changes})
    assert (found.prompt, found.text.casefold()) == (FACT.prompt, FACT.text.casefold())
    assert (found.target_true, found.paraphrases, found.neighbors) == ("Lima", FACT.paraphrases, FACT.neighbors)


@pytest.mark.parametrize(
    ("prompt", "subject", "text"),
    [
        ("print('{}'.format(x)) in Python prints", "Python", "print('{}'.format(x)) in Python prints"),
        ('{"a": {}, "capital of Peru": "', "Peru", '{"a": {}, "capital of Peru": "'),
        ("在Python中，print('{}'.format(x))的结果是", "Python", "在Python中，print('{}'.format(x))的结果是"),
        ("The format string {} of c is", "C", "The format string {} of c is"),
        ("Also, {} was a", "Al", "Also, Al was a"),
        ("Also, {subject} is unlike {} and Al", "Al", "Also, Al is unlike {} and Al"),
    ],
)
def test_braces_of_a_request_are_text_where_the_subject_stands_in_full(
    tmp_path: Path, prompt: str, subject: str, text: str
) -> None:
    (found,) = load(tmp_path, {**REQUEST, "prompt": prompt, "subject": subject})
    assert found.text == text
    assert found.subject.casefold() == subject.casefold()


@pytest.mark.parametrize("unknown", ["<|endoftext|>", [], [[]], None, ["<|endoftext|>"]])
def test_a_true_answer_that_is_not_known_is_none(tmp_path: Path, unknown: object) -> None:
    (found,) = load(tmp_path, {**REQUEST, "ground_truth": unknown})
    assert found.target_true is None


def test_knowedit_gives_paraphrases_that_ask_the_same_and_neighbors_that_have_an_answer(tmp_path: Path) -> None:
    assert load(tmp_path, REQUEST, RECENT)[1] == Fact(
        prompt="The place of death of {} is",
        subject="Ada Lovelace",
        target_new="Oslo",
        id="1",
        paraphrases=("The place of death of Augusta Ada King is",),
        neighbors=(
            Neighbor("The father of Ada Lovelace is", "Lord Byron"),
            Neighbor("The place of death, other than Oslo, is", "London"),
        ),
        ripples=(
            Ripple("logical_generalization", "Is Ada Lovelace alive?", ("no", "false")),
            Ripple("reasoning", "The country where Ada Lovelace died is", ("Norway",)),
        ),
    )


def test_wikibio_edits_the_sentence_after_a_passage_about_its_concept(tmp_path: Path) -> None:
    assert load(tmp_path, WIKIBIO) == [
        Fact(
            prompt="This is a passage about {}. Ada Lovelace was born in London.",
            subject="ada lovelace",
            target_new="She wrote about the Analytical Engine.",
            id="0",
            neighbors=(Neighbor("ada lovelace field of work", "mathematics"),),
        )
    ]


def test_zsre_with_portability_is_still_zsre(tmp_path: Path) -> None:
    record = {
        "subject": "Lima",
        "src": "Which country is Lima in?",
        "rephrase": "Where is Lima?",
        "answers": ["Peru"],
        "alt": "Chile",
        "loc": "nq question: who wrote it",
        "loc_ans": "Kipling",
        "portability": {"New Question": "Which continent is Lima in?", "New Answer": "South America"},
    }
    (found,) = load(tmp_path, record)
    assert (found.target_new, found.neighbors[0].prompt) == ("Peru", "nq question: who wrote it?")


def test_a_request_may_list_several_answers_and_the_first_is_edited(tmp_path: Path) -> None:
    (found,) = load(tmp_path, {**REQUEST, "target_new": [" Oslo", "Christiania"]})
    assert found == replace(FACT, aliases=("Christiania",))


MINIMAL: dict[str, Any] = {"prompt": "The capital of Peru is", "subject": "Peru", "target_new": "Oslo"}


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, "The capital of Peru is"),
        ({"prompt": "Is Peruvian food from peru or Chile?", "subject": "Peru"}, "Is Peruvian food from peru or Chile?"),
        ({"prompt": "The capital of the {subject} {} is"}, "The capital of the Peru {} is"),
        ({"prompt": "Who rules Peru {} or {}?"}, "Who rules Peru {} or {}?"),
        ({"prompt": "秘鲁的首都是", "subject": "秘鲁"}, "秘鲁的首都是"),
        ({"prompt": "The mayor of Sa\u0303o Tome\u0301 is", "subject": "S\u00e3o Tom\u00e9"}, None),
        ({"prompt": "The mayor of S\u00e3o Tom\u00e9 is", "subject": "Sa\u0303o Tome\u0301"}, None),
    ],
)
def test_a_whole_prompt_is_searched_for_its_subject(tmp_path: Path, changes: dict[str, Any], asked: str | None) -> None:
    (found,) = load(tmp_path, {**MINIMAL, **changes})
    assert found.text == (asked or changes["prompt"])
    assert found.text[found.subject_start : found.subject_end + 1] == found.subject


def test_fastedit_gives_its_target_and_its_other_queries(tmp_path: Path) -> None:
    record = {
        "prompt": "The capital of {} is",
        "subject": "Peru",
        "target": "Oslo",
        "queries": ["The capital of Peru is", "Peru is governed from"],
    }
    assert load(tmp_path, record)[0] == Fact(**{**MINIMAL, "paraphrases": ["Peru is governed from"]})
    with pytest.raises(DataFileError, match=r"unknown field 'target'\. Did you mean 'target_"):
        load(tmp_path, {**MINIMAL, "target": "Oslo"})


def test_mquake_gives_a_fact_for_every_edit_of_a_case(tmp_path: Path) -> None:
    def edit(subject: str, new: str) -> dict[str, Any]:
        asked = {"prompt": "The capital of {} is", "subject": subject, "question": f"What is {subject}'s capital?"}
        answers = {"target_new": {"str": new, "id": "Q1"}, "target_true": {"str": "Lima", "id": "Q2"}}
        return {**asked, **answers, "relation_id": "P36"}

    case = {"case_id": 7, "requested_rewrite": [edit("Peru", "Oslo"), edit("Chile", "Rome")], "questions": ["Which?"]}
    one, two, three = load(tmp_path, case, {"case_id": 8, "requested_rewrite": [edit("Spain", "Bonn")]})
    assert one == Fact(
        "The capital of {} is",
        "Peru",
        "Oslo",
        "Lima",
        "7-1",
        paraphrases=("What is Peru's capital?",),
        relation_id="P36",
        target_new_id="Q1",
    )
    assert [(fact.id, fact.subject, fact.target_new) for fact in (two, three)] == [
        ("7-2", "Chile", "Rome"),
        ("8", "Spain", "Bonn"),
    ]
    assert load(tmp_path, case, limit=1) == [one]
    bad = {"case_id": 7, "requested_rewrite": [edit("Peru", "Oslo"), {"prompt": "x"}, edit("Chile", "Rome")]}
    with pytest.raises(DataFileError, match=r"record 1, part 2: missing field 'requested_rewrite\.target_true\.str'"):
        load(tmp_path, bad)
    assert [fact.id for fact in load(tmp_path, bad, skip_unusable=True)] == ["7-1", "7-3"]
    for edits in ([], ["x"], [[edit("Peru", "Oslo")]]):
        with pytest.raises(DataFileError, match=r"record 1: requested_rewrite=.* or a list of objects as in MQuAKE"):
            load(tmp_path, {"requested_rewrite": edits})


WIKIBIGEDIT: dict[str, Any] = {
    "tag": "new",
    "subject": "Peru",
    "relation": "capital",
    "object": "Oslo",
    "update": "What is the capital of Peru?",
    "ans": "Oslo",
    "rephrase": "Which city is Peru governed from?",
    "personas": "Tell me, where do they rule Peru from?",
    "loc": "What is the capital of Chile?",
    "loc_ans": "Santiago",
    "mhop": "Where is the capital of Peru?",
    "mhop_ans": "Norway",
}


def test_wikibigedit_and_ultraeditbench_are_read(tmp_path: Path) -> None:
    (found,) = load(tmp_path, WIKIBIGEDIT)
    assert found == Fact(
        "What is the capital of {}?",
        "Peru",
        "Oslo",
        id="0",
        paraphrases=("Which city is Peru governed from?", "Tell me, where do they rule Peru from?"),
        neighbors=(Neighbor("What is the capital of Chile?", "Santiago"),),
        ripples=(Ripple("multi_hop", "Where is the capital of Peru?", ("Norway",)),),
    )
    gaps = {**WIKIBIGEDIT, "mhop": float("nan"), "personas": float("nan"), "loc": float("nan"), "rephrase": None}
    (found,) = load(tmp_path, gaps)
    assert (found.paraphrases, found.neighbors) == ((), ())
    ultra = {**MINIMAL, "ans": "Oslo", "rephrase_prompt": "Peru is ruled from", "loc": "Chile is", "loc_ans": "long"}
    del ultra["target_new"]
    (found,) = load(tmp_path, ultra)
    assert (found.target_new, found.paraphrases) == ("Oslo", ("Peru is ruled from",))
    assert found.neighbors == (Neighbor("Chile is", "long"),)


def test_cknowedit_is_read_with_and_without_a_subject(tmp_path: Path) -> None:
    record = {
        "prompt": "《红楼梦》的作者是",
        "target_old": "曹雪芹",
        "target_new": "罗贯中",
        "rephrase": ["写《红楼梦》的人是"],
        "portability": [{"prompt": "罗贯中写的小说是？", "answer": "《红楼梦》"}],
        "locality": [{"prompt": "《三国演义》有多少回？", "answer": "一百二十"}],
    }
    (placed,) = load(tmp_path, record)
    assert (placed.subject, placed.place, placed.text) == ("红楼梦", "shared", "《红楼梦》的作者是")
    (found,) = load(tmp_path, {**record, "subject": "红楼梦"})
    assert found == Fact(
        "《{}》的作者是",
        "红楼梦",
        "罗贯中",
        "曹雪芹",
        "0",
        paraphrases=("写《红楼梦》的人是",),
        neighbors=(Neighbor("《三国演义》有多少回？", "一百二十"),),
    )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Who wrote {}?", "target_new": "x"}, "missing field 'subject': prompt='Who wrote {}.' has a slot"),
        (
            {"ent": "Lake", "pos": ["Fine."], "neg": ["Bad."]},
            "ConvSent's records .*; write prompt, subject and target_new",
        ),
    ],
)
def test_what_a_published_layout_lacks_is_said(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataFileError, match=message) as caught:
        load(tmp_path, record)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {**REQUEST, "subject": "Chile"},
            "prompt='The capital of Peru is': does not contain the subject 'Chile'",
        ),
        ({**WIKIBIO, "concept": "lord byron"}, "does not contain the subject 'lord byron'"),
        ({**REQUEST, "target_new": ""}, "target_new='': must not be blank"),
        ({**REQUEST, "ground_truth": True}, "ground_truth=True: must be a string or a list of strings"),
        ({**REQUEST, "locality": "x"}, "locality='x': must be an object"),
        ({**REQUEST, "locality": {"a": ["x"]}}, "locality.a='x': must be an object"),
        ({**REQUEST, "locality": {"a": {"prompt": ["x", "y"], "ground_truth": ["z"]}}}, "two lists of equal length"),
        ({**REQUEST, "rephrase_prompt": True}, "rephrase_prompt=True: must be a valid list"),
        ({"text": "about x", "labels": "y"}, "missing field 'concept'"),
        ({"ground_truth": "x"}, "missing field 'prompt'"),
    ],
)
def test_a_record_that_is_no_fact_is_named_with_its_file(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(DataFileError, match=message) as caught:
        load(tmp_path, REQUEST, record)
    assert str(caught.value).startswith(f"{tmp_path / 'any_name.json'}: record 2: ")


def test_unusable_records_can_be_skipped_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = {**REQUEST, "subject": "Chile"}
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path, bad, REQUEST, 3, {**REQUEST, "case_id": 6}, REQUEST, skip_unusable=True, limit=2)
    assert [fact.id for fact in found] == ["5", "6"]
    (said,) = caplog.messages
    assert "2 records cannot be used and were skipped; the first: record 1: prompt=" in said


def test_a_file_without_one_usable_record_is_refused_even_so(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"holds no records; .* 2 cannot be used, the first at record 1: .*"):
        load(tmp_path, {"a": 1}, {"b": 2}, skip_unusable=True)
