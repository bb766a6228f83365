from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import shared

from factpatch.data import DataFileError
from factpatch.data.known import KnownFact, load_known_facts

RECORD: dict[str, Any] = {
    "known_id": 0,
    "subject": "Cusco",
    "attribute": "Peru",
    "template": "{} is a town in",
    "prediction": " the south of Peru",
    "prompt": "Cusco is a town in the south of",
    "relation_id": "P17",
}


def write(path: Path, records: object) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_a_record_becomes_a_known_fact_whose_prompt_may_continue_after_the_template(tmp_path: Path) -> None:
    (found,) = load_known_facts(write(tmp_path / "known.json", [RECORD]))
    assert found == KnownFact("Cusco is a town in the south of", "Cusco", "Peru", "{} is a town in", "P17")
    assert found.prompt[: found.subject_end + 1] == "Cusco"


def test_all_published_known_facts_load_and_end_their_subject_where_they_say() -> None:
    path = shared("data", "known_1000.json")
    found = load_known_facts(path)
    assert [fact.attribute for fact in found] == [record["attribute"] for record in json.loads(path.read_text("utf-8"))]
    for fact in found:
        end = fact.subject_end + 1
        assert fact.prompt[end - len(fact.subject) : end] == fact.subject
    assert load_known_facts(path, limit=3) == found[:3]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**RECORD, "attribute": None}, "record 1: attribute=None: must be"),
        ({"prompt": "x"}, "record 1: missing field 'subject'"),
        ({**RECORD, "subject": "Lima"}, "does not begin with the template '{} is a town in' filled with .*'Lima'"),
        ({**RECORD, "template": "Cusco is"}, "does not begin with the template 'Cusco is'"),
        (3, "record 1: 3 is a number"),
    ],
)
def test_a_record_that_is_no_known_fact_is_named(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        load_known_facts(write(tmp_path / "known.json", [record]))


def test_without_a_path_the_fetched_file_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path))
    with pytest.raises(DataFileError, match="factpatch data fetch known_1000"):
        load_known_facts()
