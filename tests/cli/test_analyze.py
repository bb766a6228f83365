"""The analyses by command on a tiny model: all of them, one of them, again after an interruption."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import FACTS, interrupt
from tests.cli.page import Page, assert_needs_nothing

pytest.importorskip("matplotlib", reason="needs the extra `runs`")
pytest.importorskip("jinja2", reason="needs the extra `runs`")

from factpatch.analysis import contribution
from factpatch.analysis.table import ANALYSES

Run = Callable[..., Any]
Analyze = Callable[..., Any]


@pytest.fixture
def analyze(run: Run, model_directory: Path, facts_file: Path, corpus: Path, tmp_path: Path) -> Analyze:
    """Analyze the tiny model, in the directory `out` unless another one is named."""

    def invoke(*arguments: object, out: str = "out", facts: Path = facts_file) -> Any:
        return run(
            "analyze", "--model", model_directory, "--facts", facts, "--layers", "1,2,3",
            "--set", "target.steps=3", "--corpus", corpus, "--batch-size", "1", "--text-facts", "0",
            "--out", tmp_path / out, *arguments,
        )  # fmt: skip

    return invoke


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in directory.iterdir() if path.suffix in (".json", ".csv")}


def test_all_analyses_give_figures_data_and_one_page(analyze: Analyze, tmp_path: Path) -> None:
    result = analyze("all")
    assert result.exit_code == 0, result.output
    # The third fact asks what the first one asks: a batch holds one of them.
    assert "left out: darrieux-again" in result.output
    assert "2 facts, critical layers 1, 2, 3" in result.output
    out = tmp_path / "out"
    for name, analysis in ANALYSES.items():
        record = json.loads((out / f"{name}.json").read_text("utf-8"))
        lines = list(csv.DictReader((out / f"{name}.csv").open(encoding="utf-8")))
        assert len(lines) == len(record["summary"]) > 0
        assert [line["measure"] for line in lines] == [one["measure"] for one in record["summary"]]
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / f"{name}.svg").read_text("utf-8")
        assert analysis.title in result.output
        assert f"{name}.svg" in result.output
    text = (out / "report.html").read_text("utf-8")
    assert_needs_nothing(text)
    page = Page(text)
    assert page.headings == [*(analysis.title for analysis in ANALYSES.values()), "Settings"]
    told = [attributes for tag, attributes in page.elements if tag == "svg" and attributes.get("role") == "img"]
    # One for contribution, three for similarity and for distance, a radar for each of three layers, two for the steps.
    assert len(told) >= 1 + 3 + 3 + 3 + 2 + 4
    assert all(attributes["aria-label"] for attributes in told)
    assert "left out: darrieux-again" in page.text
    assert "The bound holds in" in page.text


def test_the_help_names_every_analysis(run: Run) -> None:
    shown = " ".join(run("analyze", "--help").output.split())
    assert all(name in shown for name in ANALYSES)


def test_one_analysis_is_found_again_and_the_page_grows(
    analyze: Analyze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert analyze("contribution", "--spread", "sqrt").exit_code == 0
    first = contents(tmp_path / "out")
    assert {"contribution.json", "contribution.csv", "analysis.json"} == set(first)
    monkeypatch.setattr(contribution, "simulated_probabilities", None)
    result = analyze("distance", "contribution", "--spread", "sqrt")
    assert result.exit_code == 0, result.output
    assert contents(tmp_path / "out").items() >= first.items()
    headings = Page((tmp_path / "out" / "report.html").read_text("utf-8")).headings
    assert headings == ["Contribution of the residual", "Distance of the residuals", "Settings"]
    spreads = {one["spread"] for one in json.loads(first["contribution.json"])["summary"]}
    assert spreads == {None, "sqrt"}


def test_an_interruption_costs_no_more_than_what_was_going_on(
    analyze: Analyze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert analyze("all", out="whole").exit_code == 0
    with monkeypatch.context() as patched:
        # During the fifth of the ten measurements of edits of a single layer.
        interrupt(patched, "factpatch.analysis.single_layer.read_facts", calls=4)
        assert analyze("all").exit_code == 130
    out = tmp_path / "out"
    assert (out / "distance.json").is_file()
    assert not (out / "single-layer.json").exists()
    assert len(list((out / "parts").iterdir())) == 4
    assert Page((out / "report.html").read_text("utf-8")).headings[2] == "Distance of the residuals"
    with monkeypatch.context() as patched:
        interrupt(patched, "factpatch.analysis.single_layer.read_facts", calls=6)
        result = analyze("all")
    assert result.exit_code == 0, result.output
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "report.html").read_text("utf-8") == (tmp_path / "whole" / "report.html").read_text("utf-8")


def test_a_directory_of_something_else_is_refused(analyze: Analyze, tmp_path: Path) -> None:
    assert analyze("distance").exit_code == 0
    result = analyze("distance", "--limit", "1")
    assert result.exit_code == 2
    assert "--out: " in result.output
    assert "holds analyses of something else: facts; facts is" in result.output
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("Dear", "utf-8")
    result = analyze("distance", out="other")
    assert result.exit_code == 2
    assert "is not empty and holds no analysis" in result.output


def test_one_fact_gives_numbers_without_intervals_and_says_so(analyze: Analyze, tmp_path: Path) -> None:
    result = analyze("contribution", "--limit", "1")
    assert result.exit_code == 0, result.output
    assert "One fact: means have no standard error" in result.output
    summary = json.loads((tmp_path / "out" / "contribution.json").read_text("utf-8"))["summary"]
    assert {one["error"] for one in summary} == {None}
    assert {one["count"] for one in summary} == {1}


def test_an_analysis_that_fails_leaves_the_others(
    analyze: Analyze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> Any:
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr(contribution, "simulated_probabilities", broken)
    result = analyze("contribution", "distance")
    assert result.exit_code == 1
    assert "contribution: failed; what the others found is in" in result.output
    assert (tmp_path / "out" / "distance.csv").is_file()
    assert not (tmp_path / "out" / "contribution.csv").exists()
    assert "the loss is not finite" in Page((tmp_path / "out" / "report.html").read_text("utf-8")).text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["contributions"], "WHAT: unknown analysis 'contributions'. Did you mean 'contribution'?"),
        (["all", "--method", "prune"], "method='prune': its regularizer changes the shifts that are compared"),
        (["all", "--layers", "1,9"], "layer 9 does not exist"),
        (["all", "--set", "target.step=3"], "has no field 'step'"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_written(
    analyze: Analyze, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = analyze(*arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_facts_that_cannot_be_edited_at_all_are_an_error(analyze: Analyze, tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{**FACTS[1], "subject": "Eiffel Tower " * 200}]), "utf-8")
    result = analyze("all", facts=path)
    assert result.exit_code == 2
    assert "none of the 1 facts can be edited" in result.output
