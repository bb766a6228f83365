"""Tables as files, from runs made by hand: what is in them, and that they agree with the outcomes of single facts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("pandas", reason="needs the extra `runs`")

from tests.lab.runs.forged import forged_run
from tests.lab.runs.test_outcomes import facts

from factpatch.evaluation.intervals import mean
from factpatch.lab.runs.outcomes import outcomes
from factpatch.lab.runs.outputs import draw_up
from factpatch.lab.runs.reproductions import blue_pairs
from factpatch.lab.runs.results import Results, read_results
from factpatch.lab.runs.tables import contrasts, scored


@pytest.fixture
def results(tmp_path: Path) -> Results:
    quality = {"memit": 0.5, "memit-blue": 1.1, "prune": 0.5}
    return read_results(forged_run(tmp_path / "forged", facts(30), ["memit", "memit-blue", "prune"], quality=quality))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_score_follows_its_parts_in_every_form(results: Results, tmp_path: Path) -> None:
    drawn = draw_up("comparison", results, tmp_path, "table2")
    heads = [column.header for column in drawn.table.columns]
    assert heads == ["Efficacy", "Generalization", "Specificity", "Score"]
    expected = scored(results.rows, "memit-blue", drawn.table.columns)
    line = next(line for line in read_csv(tmp_path / "table2.csv") if line["method"] == "memit-blue")
    assert float(line["forged.score"]) == pytest.approx(expected.value)
    for suffix in (".md", ".tex"):
        lines = (tmp_path / f"table2{suffix}").read_text("utf-8").splitlines()
        line = next(line for line in lines if line.removeprefix("| ").startswith("memit-blue "))
        assert f"{expected.value:.2f}" in line
    # What is counted as improved are the paper's three.
    assert drawn.sentences[0] == "n = 30 facts."
    assert "of 3 numbers are better" in drawn.sentences[1]


def test_differences_and_their_intervals_are_those_of_the_report(results: Results, tmp_path: Path) -> None:
    drawn = draw_up("comparison", results, tmp_path, "table2")
    expected = contrasts(results.rows, results.pairs(blue_pairs()), results.columns("forged"))
    lines = read_csv(tmp_path / "table2.differences.csv")
    assert [(line["method"], line["base"], line["metric"]) for line in lines] == [
        ("memit-blue", "memit", metric) for metric in ("efficacy", "generalization", "specificity", "score")
    ]
    for line, one in zip(lines, expected, strict=True):
        found = [float(line[name]) for name in ("low", "difference", "high", "facts")]
        assert found == pytest.approx([one.interval.low, one.interval.value, one.interval.high, 30])
        assert found[0] <= found[1] <= found[2]
        assert line["verdict"] == one.verdict
    text = (tmp_path / "table2.md").read_text("utf-8")
    efficacy = expected[0].interval
    assert f"| memit-blue − memit | **+{efficacy.value:.2f} [{efficacy.low:.2f}, {efficacy.high:.2f}]** |" in text
    assert "−" not in (tmp_path / "table2.tex").read_text("utf-8")
    assert {path.name for path in drawn.files} == {
        f"table2{end}" for end in (".md", ".tex", ".csv", ".differences.csv")
    }


def test_without_a_pair_there_are_no_differences(tmp_path: Path) -> None:
    results = read_results(forged_run(tmp_path / "forged", facts(4), ["memit"]))
    drawn = draw_up("comparison", results, tmp_path, "table2")
    assert not (tmp_path / "table2.differences.csv").exists()
    assert "difference" not in (tmp_path / "table2.md").read_text("utf-8")
    assert len(drawn.files) == 3
    assert draw_up("improvements", results, tmp_path, "table3").files == ()


def some_texts(place: int) -> dict[str, float | None]:
    """Of three facts, for one of which there are reference texts."""
    return {"fluency": 600.0, "consistency": 30.0 if place == 0 else None} if place < 3 else {}


def test_a_table_says_over_how_many_facts_each_mean_is(tmp_path: Path) -> None:
    results = read_results(forged_run(tmp_path / "forged", facts(8), further=some_texts))
    said = "n = 8 facts; n = 3 for Fluency; n = 1 for Consistency."
    assert draw_up("comparison", results, tmp_path, "table2").sentences[0] == said
    assert said in (tmp_path / "table2.md").read_text("utf-8").splitlines()
    assert f"% {said}" in (tmp_path / "table2.tex").read_text("utf-8").splitlines()
    several = read_results(forged_run(tmp_path / "two", facts(8), names=("one", "two"), further=some_texts))
    assert draw_up("comparison", several, tmp_path, "table2").sentences[:2] == (f"one: {said}", f"two: {said}")


def test_a_table_says_why_consistency_is_missing(tmp_path: Path) -> None:
    results = read_results(
        forged_run(tmp_path / "forged", facts(4), further=lambda place: {"fluency": 600.0, "consistency": None})
    )
    drawn = draw_up("comparison", results, tmp_path, "table2")
    assert "Consistency is missing: there were no reference texts for these facts." in drawn.sentences
    assert "Consistency is missing" in (tmp_path / "table2.md").read_text("utf-8")
    # Where no text was written, nobody asked for it.
    zsre = read_results(
        forged_run(tmp_path / "zsre", facts(4), further=lambda place: {"fluency": None, "consistency": None})
    )
    assert zsre.notes("forged") == ["n = 4 facts."]


def without_true_objects(place: int) -> dict[str, float | None]:
    token = {f"token_{name}": 50.0 for name in ("efficacy", "generalization", "specificity")}
    return {"efficacy": None, "generalization": None, **token}


def test_texts_have_columns_with_and_without_true_objects(tmp_path: Path) -> None:
    texts: dict[str, float | None] = {
        f"{prefix}{name}": 1.0 for prefix in ("", "greedy_") for name in ("fluency", "consistency")
    }
    results = read_results(
        forged_run(tmp_path / "forged", facts(4), further=lambda place: {**without_true_objects(place), **texts})
    )
    assert [column.metric for column in results.columns("forged")] == [
        "token_efficacy", "token_generalization", "token_specificity", "score",
        "fluency", "consistency", "greedy_fluency", "greedy_consistency",
    ]  # fmt: skip


def test_greedy_texts_of_an_older_factpatch_are_called_greedy(tmp_path: Path) -> None:
    path = forged_run(tmp_path / "forged", facts(4), evaluate={"text": {"sampling": "greedy"}}, further=some_texts)
    assert {"greedy_fluency", "greedy_consistency"} < set(read_results(path).rows["metric"])
    assert not {"fluency", "consistency"} & set(read_results(path).rows["metric"])
    sampled = forged_run(tmp_path / "sampled", facts(4), evaluate={"text": {}}, further=some_texts)
    assert {"fluency", "consistency"} < set(read_results(sampled).rows["metric"])


def test_the_average_improvement_is_written_in_the_papers_layout(results: Results, tmp_path: Path) -> None:
    drawn = draw_up("improvements", results, tmp_path, "table3")
    (line,) = read_csv(tmp_path / "table3.improvement.csv")
    assert line["model"] == "tiny"
    assert f"memit-blue: {float(line['memit-blue']):+.2f} % on average" in drawn.sentences
    assert "| model | memit-blue, % ↑ |" in (tmp_path / "table3.improvement.md").read_text("utf-8")
    assert r"Model & memit-blue, \%" in (tmp_path / "table3.improvement.tex").read_text("utf-8")


@pytest.mark.parametrize("sample", [False, True])
def test_a_fact_is_the_same_with_every_seed_wherever_it_stands(tmp_path: Path, sample: bool) -> None:
    """Facts without an id are called by their place, where a sample of another seed has another fact."""
    path = forged_run(tmp_path / "forged", facts(12), seeds=(0, 1), names=("one", "two"), sample=sample, limit=8)
    results = read_results(path)
    found = outcomes(results)
    table = results.table("t", blue_pairs())
    cells: dict[str, Any] = dict(table.lines)
    for place, column in enumerate(table.columns):
        some = found["memit", column.dataset]
        assert len(some) == 16
        facts_edited = {one.fact for one in some}
        assert len(facts_edited) == 8 if not sample else 8 < len(facts_edited) <= 12
        if column.parts:
            assert cells["memit"][place].mean == pytest.approx(scored(results.rows, "memit", [column]).value)
            continue
        by_fact: dict[Any, list[float]] = {}
        for one in some:
            by_fact.setdefault(one.fact, []).append(one.end[column.metric])
        expected = mean([sum(values) / len(values) for values in by_fact.values()])
        assert (cells["memit"][place].mean, cells["memit"][place].error) == pytest.approx(
            (expected.value, expected.error)
        )
