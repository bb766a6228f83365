"""The analyses by command on a tiny model: all of them, one of them, and resumed after an interruption."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import FACTS, interrupt, invoke
from tests.cli.page import Page, assert_needs_nothing

pytest.importorskip("matplotlib", reason="needs the extra `runs`")
pytest.importorskip("jinja2", reason="needs the extra `runs`")

from factpatch.data import demo_facts
from factpatch.facts import identity
from factpatch.lab.analysis import execute, residuals
from factpatch.lab.analysis.table import ANALYSES
from factpatch.lab.drawing.charts import figure_files

Run = Callable[..., Any]
Analyze = Callable[..., Any]


@pytest.fixture(scope="module")
def options(model_directory: Path, corpus: Path) -> list[object]:
    """A quick analysis of the tiny model, all but facts and directory."""
    return [
        "--model", model_directory, "--layers", "1,2", "--set", "target.steps=3", "--corpus", corpus,
        "--batch-size", "1", "--text-facts", "0",
    ]  # fmt: skip


@pytest.fixture
def analyze(run: Run, options: list[object], facts_file: Path, tmp_path: Path) -> Analyze:
    """Analyze the tiny model, in the directory `out` unless another one is named."""

    def invoke(*arguments: object, out: str = "out", facts: object = facts_file) -> Any:
        return run("analyze", "--facts", facts, "--out", tmp_path / out, *options, *arguments)

    return invoke


@pytest.fixture(scope="module")
def whole(options: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """All analyses: the output of the command, and their directory."""
    folder = tmp_path_factory.mktemp("whole")
    facts = folder / "facts.json"
    facts.write_text(json.dumps(FACTS), "utf-8")
    return invoke(
        folder / "cache", "analyze", "all", "--facts", facts, "--out", folder / "out", *options
    ), folder / "out"


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in directory.iterdir() if path.suffix in (".json", ".csv")}


def test_all_analyses_give_figures_data_and_one_page(whole: tuple[Any, Path]) -> None:
    result, out = whole
    assert result.exit_code == 0, result.output
    # The third fact asks what the first one asks: a batch holds one of them.
    assert "left out: darrieux-again" in result.output
    assert "2 facts, critical layers 1, 2" in result.output
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
    described = [attributes for tag, attributes in page.elements if tag == "svg" and attributes.get("role") == "img"]
    # One for contribution, three for similarity and for distance, a radar for each of two layers, two for the steps.
    assert len(described) >= 1 + 3 + 3 + 2 + 2 + 4
    assert all(attributes["aria-label"] for attributes in described)
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
    monkeypatch.setattr(residuals, "simulated_probabilities", None)
    result = analyze("distance", "contribution", "--spread", "sqrt")
    assert result.exit_code == 0, result.output
    assert contents(tmp_path / "out").items() >= first.items()
    headings = Page((tmp_path / "out" / "report.html").read_text("utf-8")).headings
    assert headings == ["Contribution of the residual", "Distance of the residuals", "Settings"]
    spreads = {one["spread"] for one in json.loads(first["contribution.json"])["summary"]}
    assert spreads == {None, "sqrt"}


def test_an_interruption_costs_at_most_the_part_in_progress(
    analyze: Analyze, whole: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def draw(figure: Any, folder: Path, name: str) -> list[Path]:
        """Nothing, which is quick."""
        drawn.append(name)
        files = figure_files(folder, name)
        for file in files:
            file.touch()
        return list(files)

    monkeypatch.setattr(execute, "save_figure", draw)
    with monkeypatch.context() as patched:
        # During the fifth of the seven measurements of edits of a single layer.
        interrupt(patched, "factpatch.lab.analysis.study.Study.readings", calls=4)
        assert analyze("all").exit_code == 130
    out = tmp_path / "out"
    assert (out / "distance.json").is_file()
    assert not (out / "single-layer.json").exists()
    assert len(list((out / "parts").iterdir())) == 4
    assert Page((out / "report.html").read_text("utf-8")).headings[2] == "Distance of the residuals"
    assert drawn == ["contribution", "similarity", "distance"]
    drawn.clear()
    with monkeypatch.context() as patched:
        interrupt(patched, "factpatch.lab.analysis.study.Study.readings", calls=3)
        result = analyze("all")
    assert result.exit_code == 0, result.output
    assert drawn == ["single-layer", "steps", "bound"]
    assert contents(out) == contents(whole[1])
    assert (out / "report.html").read_text("utf-8") == (whole[1] / "report.html").read_text("utf-8")


def test_a_directory_of_something_else_is_refused(analyze: Analyze, tmp_path: Path) -> None:
    assert analyze("distance").exit_code == 0
    result = analyze("distance", "--limit", "1")
    assert result.exit_code == 2
    assert "--out: " in result.output
    assert "holds an analysis with other settings: facts is" in result.output
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("Dear", "utf-8")
    result = analyze("distance", out="other")
    assert result.exit_code == 2
    assert "is not empty and not the directory of an analysis" in result.output


def test_one_fact_gives_numbers_without_intervals_and_says_so(analyze: Analyze, tmp_path: Path) -> None:
    result = analyze("contribution", "--limit", "1")
    assert result.exit_code == 0, result.output
    assert "One fact: means have no standard error" in result.output
    summary = json.loads((tmp_path / "out" / "contribution.json").read_text("utf-8"))["summary"]
    assert {one["error"] for one in summary} == {None}
    assert {one["count"] for one in summary} == {1}


@pytest.mark.parametrize("kind", [FloatingPointError, torch.cuda.OutOfMemoryError, torch.linalg.LinAlgError])
def test_an_analysis_that_fails_leaves_the_others(
    analyze: Analyze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def broken(*given: Any) -> Any:
        raise kind("the loss is not finite")

    monkeypatch.setattr(residuals, "simulated_probabilities", broken)
    result = analyze("contribution", "distance")
    assert result.exit_code == 1
    assert "contribution: failed; the results of the others are in" in result.output
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
def test_unusable_arguments_are_named_before_anything_is_written(
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


def test_a_number_asks_for_that_many_facts(
    run: Run, options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("analyze", "distance", "--facts", 2, *options)
    assert result.exit_code == 0, result.output
    assert (
        "--facts 2: 2 of the facts that come with the package, since CounterFact has not been fetched" in result.output
    )
    record = json.loads((tmp_path / "analysis-tiny" / "analysis.json").read_text("utf-8"))
    assert record["about"]["facts"] == identity(demo_facts()[:2])
    # A file of that name is meant where there is one; a name stands for a data set.
    (tmp_path / "2").write_text("[]", "utf-8")
    for given in ("2", "counterfact"):
        result = run("analyze", "distance", "--facts", given, *options)
        assert result.exit_code == 2, result.output
        assert f"--facts: {given}: " in result.output


def test_a_corpus_is_identified_by_its_content(
    run: Run, options: list[object], facts_file: Path, corpus: Path, tmp_path: Path
) -> None:
    given = ["analyze", "distance", "--facts", facts_file, "--out", tmp_path / "out", *options]
    place = given.index(corpus)
    text = tmp_path / "text.txt"
    text.write_bytes(corpus.read_bytes())
    assert run(*given).exit_code == 0
    given[place] = text
    assert run(*given).exit_code == 0
    text.write_text(corpus.read_text("utf-8") + "\n\nAda Lovelace works in London.", "utf-8")
    result = run(*given)
    assert result.exit_code == 2
    assert "holds an analysis with other settings: corpus is 'file:" in result.output


def test_an_unusable_directory_is_named_before_a_text_is_read(
    analyze: Analyze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Ada Lovelace works in London.", "utf-8")
    result = analyze("distance", "--corpus", short)
    assert result.exit_code == 2
    assert "--corpus: it holds" in result.output
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("Dear", "utf-8")
    result = analyze("distance", "--model", "no-such-model", out="other")
    assert "--out: " in result.output
