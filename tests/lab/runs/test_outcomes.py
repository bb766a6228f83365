"""What became of facts, and how sure a difference is, from made-up numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("pandas", reason="needs the extra `runs`")

from tests.lab.runs.forged import forged_run

from factpatch.lab.runs.outcomes import Outcome, State, in_a_sentence, outcomes, worst
from factpatch.lab.runs.results import read_results
from factpatch.lab.runs.rows import ResultRow
from factpatch.lab.runs.tables import Column, contrasts, scored

YES, NO = {"efficacy": 100.0}, {"efficacy": 0.0}
PARTS = ("efficacy", "generalization", "specificity")
COLUMNS = [
    *(Column("forged", part, part.capitalize()) for part in PARTS),
    Column("forged", "score", "Score", parts=PARTS, error=False),
]


def facts(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": "The mother tongue of {} is",
            "subject": f"Person {place}",
            "target_new": "Finnish",
            "target_true": "French",
            "paraphrases": [f"Person {place} speaks"],
            "neighbors": [{"prompt": f"Neighbor {n} speaks", "target_true": "French"} for n in range(4)],
        }
        for place in range(count)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return forged_run(tmp_path / "forged", facts(30), quality={"memit": 0.5, "memit-blue": 1.1})


@pytest.fixture
def one(run: Path) -> Outcome:
    return outcomes(read_results(run))["memit", "forged"][0]


@pytest.mark.parametrize(
    ("written", "end", "state"),
    [
        (YES, YES, State.SAID),
        (NO, YES, State.SAID),
        (YES, NO, State.FORGOTTEN),
        (NO, NO, State.FAILED),
        ({}, NO, State.LOST),
        # Where no answers were measured, the strict reading decides; an answer counts before it.
        ({**YES, "prompt_contained": 100.0}, {**YES, "prompt_contained": 0.0}, State.FORGOTTEN),
        ({"strict_efficacy": 100.0}, {"strict_efficacy": 0.0}, State.FORGOTTEN),
    ],
)
def test_a_fact_is_forgotten_only_if_it_was_said(one: Outcome, written: Any, end: Any, state: State) -> None:
    assert replace(one, written=written, end=end).state is state


def test_prompts_are_counted_from_the_percentage_of_a_fact(one: Outcome) -> None:
    some = replace(one, before={"specificity": 75.0}, end={"specificity": 25.0, "generalization": 100.0})
    assert (some.neighbors_before, some.neighbors, some.paraphrases) == (3, 1, 1)


def test_a_fact_that_is_not_said_is_worse_than_any_side_effect(one: Outcome) -> None:
    good = replace(one, before={"specificity": 50.0}, end={**YES, "specificity": 50.0, "generalization": 100.0})
    harmful = replace(good, end={**good.end, "specificity": 0.0})
    failed = replace(good, end={**good.end, "strict_efficacy": 0.0})
    assert worst([good, harmful, failed], 5) == [failed, harmful]
    assert worst([good, harmful, failed], 1) == [failed]


def test_paraphrases_of_a_fact_without_a_true_object_agree_if_they_say_the_new_one(one: Outcome) -> None:
    learned = {"strict_efficacy": 100.0, "token_generalization": 50.0}
    good = replace(one, before={}, end={**learned, "strict_generalization": 100.0})
    bad = replace(good, end={**learned, "strict_generalization": 0.0})
    assert (good.paraphrases, bad.paraphrases) == (1, 0)
    assert worst([good, bad], 5) == [bad]
    # With a true object, what is likelier decides, as of the fact itself.
    preferred = replace(good, end={**YES, "generalization": 100.0, "strict_generalization": 0.0})
    assert preferred.flawless
    assert preferred.paraphrases == 1


def test_of_a_long_answer_the_neighbors_that_are_exact_count(one: Outcome) -> None:
    long = replace(one.fact, target_new="it was told again " * 8)
    some = replace(one, plan=replace(one.plan, facts=(long,)), place=0, before={"strict_specificity": 75.0})
    good = replace(some, end={"prompt_contained": 100.0, "strict_generalization": 100.0, "strict_specificity": 75.0})
    harmful = replace(good, end={**good.end, "strict_specificity": 25.0})
    assert (harmful.neighbors_before, harmful.neighbors) == (3, 1)
    assert worst([good, harmful], 5) == [harmful]


def test_a_method_that_learns_more_is_clearly_better(run: Path) -> None:
    rows = read_results(run).rows
    found = {one.column.header: one for one in contrasts(rows, {"memit-blue": "memit"}, COLUMNS)}
    assert found["Efficacy"].verdict == found["Score"].verdict == "better"
    back = {one.column.header: one for one in contrasts(rows, {"memit": "memit-blue"}, COLUMNS)}
    assert back["Efficacy"].verdict == "worse"
    assert back["Efficacy"].interval.value == pytest.approx(-found["Efficacy"].interval.value)
    assert {one.verdict for one in contrasts(rows, {"memit": "memit"}, COLUMNS)} == {"no clear difference"}


def test_only_facts_of_both_methods_are_compared(run: Path) -> None:
    rows = read_results(run).rows
    some = rows[
        ((rows["label"] != "memit") | (rows["place"] >= 10)) & ((rows["label"] == "memit") | (rows["place"] < 20))
    ]
    assert {one.interval.facts for one in contrasts(some, {"memit-blue": "memit"}, COLUMNS)} == {10}
    none = rows[rows["label"] != "memit"]
    assert contrasts(none, {"memit-blue": "memit"}, COLUMNS) == []


def test_a_fact_with_two_seeds_counts_once_with_its_mean() -> None:
    import pandas as pd

    values = {"efficacy": (0.0, 100.0), "generalization": (100.0, 100.0), "specificity": (100.0, 100.0)}
    rows = pd.DataFrame(
        ResultRow("memit", "forged", seed, "end", 1, 1, 0, "a", metric, value)
        for metric, some in values.items()
        for seed, value in enumerate(some)
    )
    interval = scored(rows, "memit", COLUMNS)
    assert interval is not None
    assert interval.facts == 1
    assert interval.value == pytest.approx(3 / (1 / 50 + 1 / 100 + 1 / 100))


def test_the_summary_counts_outcomes(run: Path) -> None:
    results = read_results(run)
    some = outcomes(results)["memit", "forged"]
    said = in_a_sentence(results, "memit", "forged", some)
    states = [one.state for one in some]
    assert said.startswith(f"{states.count(State.SAID)} of 30 facts said; {states.count(State.FORGOTTEN)} more")
    assert f"{sum(one.neighbors or 0 for one in some)} of 120 neighbors are right" in said
    agreeing = sum(one.paraphrases or 0 for one in some)
    assert f"{agreeing} of 30 paraphrases agree" in said
    assert "perplexity 20.00 → 21.00 (+5.0 %)" in said
