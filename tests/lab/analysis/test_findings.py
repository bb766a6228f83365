"""Findings: means over facts, and the forms in which they are written."""

from __future__ import annotations

import csv
import io
import json

import pytest

from factpatch.evaluation.intervals import Mean
from factpatch.lab.analysis.findings import DIRECT, DISTRIBUTED, Findings, Place, findings_of, gap, number

NAMES = ["a", "b", "c"]
FINDINGS = Findings(
    (
        *findings_of(Place(4, DIRECT), "score", NAMES, [1.0, 0.5, float("nan")]),
        *findings_of(Place(4, DISTRIBUTED, "even"), "score", NAMES, [0.5, 0.25, 0.0]),
        *findings_of(Place(5, DIRECT), "score", NAMES, [None, None, None]),
    ),
    ("a note",),
)


def test_a_mean_is_over_the_facts_that_have_a_value() -> None:
    means = FINDINGS.means
    found = means[Place(4, DIRECT), "score"]
    assert (found.value, found.facts, found.missing) == (0.75, 2, 1)
    assert found.error == pytest.approx(0.25)
    assert means[Place(5, DIRECT), "score"].value is None
    assert FINDINGS.curve("score", "layer", residual=DIRECT) == [(4, found)]


def test_findings_survive_json() -> None:
    record = json.loads(json.dumps(FINDINGS.to_dict(), allow_nan=False))
    assert Findings.from_dict(record) == FINDINGS
    assert record["summary"][0] == {
        "layer": 4, "residual": "direct", "spread": None, "measure": "score", "mean": 0.75, "error": 0.25, "count": 2,
    }  # fmt: skip
    with pytest.raises(TypeError):
        Findings.from_dict({"values": [{"measure": "m", "of": "a", "value": 1.0, "leyer": 3}], "notes": []})


def test_the_table_has_a_column_for_each_field_that_applies() -> None:
    lines = list(csv.DictReader(io.StringIO(FINDINGS.csv())))
    assert list(lines[0]) == ["layer", "residual", "spread", "measure", "mean", "error", "count"]
    assert [(line["layer"], line["residual"], line["spread"], line["count"]) for line in lines] == [
        ("4", "direct", "", "2"), ("4", "distributed", "even", "3"), ("5", "direct", "", "0"),
    ]  # fmt: skip
    assert (lines[0]["mean"], lines[2]["mean"]) == ("0.75", "")


def test_a_gap_is_of_the_same_facts() -> None:
    found = gap(FINDINGS, "score", 4, "even")
    # The third fact has no direct value.
    assert (found.value, found.facts) == (pytest.approx((0.5 + 0.25) / 2), 2)
    assert found.text(".3g", sign=True) == f"+0.375 [{found.low:.3g}, {found.high:.3g}]"


def test_one_fact_gives_a_difference_without_an_interval() -> None:
    one = Findings(
        (
            *findings_of(Place(4, DIRECT), "score", ["a"], [1.0]),
            *findings_of(Place(4, DISTRIBUTED, "even"), "score", ["a"], [0.25]),
        )
    )
    assert gap(one, "score", 4, "even").text(sign=True) == "+0.75"


def test_numbers_in_words() -> None:
    assert number(Mean(0.95412, 0.01234, 9)) == "0.954 ± 0.012"
    assert number(Mean(0.95412, None, 1)) == "0.954"
    assert number(Mean(1.0, 1e-16, 9)) == "1 ± 0"
    assert number(Mean(None, None, 0)) == number(None) == "–"


def test_labels_of_places() -> None:
    assert Place(4, DIRECT).label == "direct"
    assert Place(4, DISTRIBUTED, "even").label == "distributed, even"
    assert Place(4, spread="sqrt").label == "sqrt"
    assert Place(4).label == ""
