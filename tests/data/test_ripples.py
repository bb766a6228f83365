"""Ripples of an edit, as published files have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from factpatch.data import load_facts
from factpatch.data.formats import save_facts
from factpatch.data.reading import DataFileError
from factpatch.facts import Fact, Ripple


def query(prompt: str, *answers: str, subject: str = "Q1", **more: Any) -> dict[str, Any]:
    value, *aliases = answers or ("",)
    given = [{"value": value, "aliases": aliases}] if answers else []
    return {"prompt": prompt, "answers": given, "query_type": "regular", "subject_id": subject, **more}


def test_case(*queries: dict[str, Any]) -> dict[str, Any]:
    return {"test_queries": list(queries), "test_condition": "OR", "condition_queries": []}


test_case.__test__ = False  # type: ignore[attr-defined] # a case of RippleEdits, not one of these tests

RECORD: dict[str, Any] = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the country of citizenship of Ada Lovelace is Peru.",
        "subject_id": "Q1",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q419",
        "original_fact": {"prompt": "The name of the country of citizenship of Ada Lovelace is United Kingdom."},
    },
    "Relation_Specifity": [
        test_case(query("The name of the mother of Ada Lovelace is", "Lady Byron", "Anne Milbanke"))
    ],
    "Logical_Generalization": [],
    "Subject_Aliasing": [test_case(query("The name of the country of citizenship of Ada King is", "Peru"))],
    "Compositionality_I": [
        test_case(
            query("The currency of the country of Ada Lovelace is", "sol", query_type="two_hop"),
            query("The name of the child of Ada Lovelace is"),
        )
    ],
    "Compositionality_II": [test_case(query("The country of Byron's mother is", "Peru", subject="Q2"))],
    "Forgetfulness": [],
}


def load(tmp_path: Path, *records: dict[str, Any]) -> list[Fact]:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records))
    return load_facts(path)


def test_a_record_of_rippleedits_is_a_fact_with_its_test_queries(tmp_path: Path) -> None:
    (found,) = load(tmp_path, RECORD)
    assert found == Fact(
        "The name of the country of citizenship of {} is",
        "Ada Lovelace",
        "Peru",
        "United Kingdom",
        "0",
        target_new_id="Q419",
        ripples=(
            Ripple("compositionality_i", "The currency of the country of Ada Lovelace is", ("sol",)),
            Ripple("compositionality_ii", "The country of Byron's mother is", ("Peru",)),
            Ripple("subject_aliasing", "The name of the country of citizenship of Ada King is", ("Peru",)),
            Ripple(
                "relation_specificity",
                "The name of the mother of Ada Lovelace is",
                ("Lady Byron", "Anne Milbanke"),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("stated", "others", "subject", "target"),
    [
        ("The name of the head of state of the United States of America is Ada.",
         ["The name of the head of government of the United States of America is"],
         "United States of America", "Ada"),
        ("The gender of The Beatles is male.", ["The name of the country which The Beatles is associated with is"],
         "The Beatles", "male"),
        ("The name of the sports team which Ada King is a member of is FC St. Pauli.", [], "Ada King", "FC St. Pauli"),
        ("Windows 8 is followed by Windows 95.", ["Windows 8 follows"], "Windows 8", "Windows 95"),
        ("The capital of Italy is Washington, D.C..", [], "Italy", "Washington, D.C."),
    ],
)  # fmt: skip
def test_the_subject_of_an_edit_is_what_its_prompt_shares_with_others_about_it(
    tmp_path: Path, stated: str, others: list[str], subject: str, target: str
) -> None:
    edit = {"prompt": stated, "subject_id": "Q1"}
    cases = [test_case(query(prompt, "x")) for prompt in others]
    (found,) = load(tmp_path, {"example_type": "recent", "edit": edit, "Relation_Specificity": cases})
    assert (found.subject, found.target_new, found.target_true) == (subject, target, None)
    assert f"{found.text} {target}." == stated


def test_a_record_that_cannot_be_taken_apart_says_what_it_lacks(tmp_path: Path) -> None:
    for stated, message in (
        ("Ada lives here", "has no 'is', 'are' or 'follows'"),
        ("the color of ivy is red.", r"add the subject to the record as edit\.subject"),
    ):
        edit = {"prompt": stated, "subject_id": "Q1"}
        with pytest.raises(DataFileError, match=message):
            load(tmp_path, {"example_type": "recent", "edit": edit})
    named = {"prompt": "the color of ivy is red.", "subject": "ivy"}
    (found,) = load(tmp_path, {"example_type": "recent", "edit": named})
    assert (found.prompt, found.subject) == ("the color of {} is", "ivy")


def test_the_questions_of_a_case_of_mquake_are_ripples_of_its_last_edit(tmp_path: Path) -> None:
    def edit(subject: str) -> dict[str, Any]:
        answers = {"target_new": {"str": "Oslo"}, "target_true": {"str": "Lima"}}
        return {"prompt": "The capital of {} is", "subject": subject, "question": "Which?", **answers}

    case = {
        "case_id": 7,
        "requested_rewrite": [edit("Peru"), edit("Chile")],
        "questions": ["Where is Chile's capital?", "In which country?"],
        "answer": "Chile",
        "new_answer": "Norway",
        "new_answer_alias": ["Kingdom of Norway"],
    }
    first, last = load(tmp_path, case)
    assert first.ripples == ()
    assert [(one.criterion, one.prompt, one.answers) for one in last.ripples] == [
        ("multi_hop", asked, ("Norway", "Kingdom of Norway"))
        for asked in ("Where is Chile's capital?", "In which country?")
    ]
    assert load(tmp_path, {**case, "new_answer": None})[1].ripples == ()


def test_ripples_are_written_and_read_back(tmp_path: Path) -> None:
    facts = load(tmp_path, RECORD)
    save_facts(facts, tmp_path / "saved.json")
    assert load_facts(tmp_path / "saved.json") == facts
    assert Fact.from_dict(json.loads(json.dumps(facts[0].to_dict()))) == facts[0]


@pytest.mark.parametrize(
    ("ripple", "message"),
    [
        (
            {"criterion": "luck", "prompt": "p", "answers": ["a"]},
            r"ripples\[0\]\.criterion='luck': must be one of logical_",
        ),
        ({"criterion": "reasoning", "prompt": "p", "answers": []}, r"answers=\[\]: must hold at least one answer"),
        ({"criterion": "reasoning", "answers": ["a"]}, "missing field 'prompt'"),
    ],
)
def test_a_ripple_that_cannot_be_asked_is_refused(tmp_path: Path, ripple: dict[str, Any], message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        load(tmp_path, {"prompt": "{} is", "subject": "Ada", "target_new": "x", "ripples": [ripple]})
