"""Runs that compare a method with its rivals: resumed after interruptions, and measured along the session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import FACTS, interrupt, numbers

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("sklearn", reason="needs the extra `runs`")
pytest.importorskip("peft", reason="needs the extra `lora`")

from factpatch.lab.runs.results import read_results

RIVALS = [
    {"name": "locft-bf", "settings": {"epochs": 2}},
    {"name": "lora", "settings": {"epochs": 2}},
    {"name": "in-prompt", "label": "told"},
]


@pytest.fixture
def rivals(config: dict[str, Any], corpus: Path) -> dict[str, Any]:
    """A run of a method and all rivals in two batches, with a point of the curve after each."""
    evaluate = {"written": False, "perplexity": str(corpus), "generation": False, "curve": {"at": 1, "facts": 1}}
    return {**config, "methods": [config["methods"][0], *RIVALS], "evaluate": evaluate}


def test_rivals_run_like_methods_and_end_with_the_same_numbers_after_interruptions(
    begin: Any, run: Any, rivals: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = begin(rivals, "whole")
    assert result.exit_code == 0, result.output
    table = (tmp_path / "whole" / "table.md").read_text("utf-8")
    assert all(f"| {name} |" in table for name in ("memit", "locft-bf", "lora", "told"))
    results = read_results(tmp_path / "whole")
    assert results.failed == {}
    settings = {record["label"]: record["settings"] for record in results.records}
    assert settings["locft-bf"]["layer"] == 2  # the last of the run's critical layers
    assert all(record["seconds"]["learn"] > 0 for record in results.records[1:])
    # A point of the curve after each batch; at the end, one fact is left of the first batch's two.
    rows = results.rows[results.rows["label"] == "lora"]
    assert set(rows[rows["metric"] == "curve.first.strict_efficacy"]["edits"]) == {2, 3}
    assert set(rows[rows["metric"] == "perplexity"]["edits"]) == {2, 3}
    curves = (tmp_path / "whole" / "table.curves.csv").read_text("utf-8")
    assert {line.split(",")[0] for line in curves.splitlines()[1:]} == {"unedited", "memit", "locft-bf", "lora", "told"}
    page = tmp_path / "page.html"
    assert run("report", tmp_path / "whole", "--out", page).exit_code == 0
    assert "first facts, said over edits" in page.read_text("utf-8")

    for place in ("factpatch.lab.rivals.descent._gradients", "factpatch.lab.runs.lines.file_digest"):
        with monkeypatch.context() as patched:
            interrupt(patched, place, calls=3)
            assert begin(rivals).exit_code == 130
    assert begin(rivals).exit_code == 0
    assert numbers(tmp_path / "out") == numbers(tmp_path / "whole")


def test_an_altered_file_of_a_rival_is_noticed(begin: Any, rivals: dict[str, Any], tmp_path: Path) -> None:
    rivals.update(methods=RIVALS[2:], evaluate={"perplexity": False, "generation": False})
    assert begin(rivals).exit_code == 0
    line = tmp_path / "out" / "rows" / "three" / "0" / "told"
    (line / "row.json").unlink()
    (line / "learned" / "0001.json").write_text("[]", "utf-8")
    result = begin(rivals)
    assert result.exit_code == 1
    assert "was altered" in " ".join(result.output.split())


def test_a_rival_whose_package_is_missing_is_refused_before_the_model_is_loaded(
    begin: Any, rivals: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factpatch.lab.rivals.rival.find_spec", lambda name: None)
    monkeypatch.setattr("factpatch.lab.runs.runner.load_language_model", None)
    result = begin(rivals)
    assert result.exit_code != 0
    assert "factpatch[lora]" in " ".join(result.output.split())


def test_a_table_of_the_paper_takes_rivals(run: Any, facts_file: Path, model_directory: Path, tmp_path: Path) -> None:
    facts_file.write_text(json.dumps(FACTS[1:]), "utf-8")
    out = tmp_path / "table2"
    result = run(
        "reproduce", "table2", "--model", model_directory, "--dataset", facts_file, "--facts", "2", "--batch-size", "1",
        "--method", "in-prompt", "--layers", "1,2", "--text-facts", "1", "--variant", "equal-settings", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "in-prompt" in (out / "table2.md").read_text("utf-8")


def test_methods_lists_the_rivals_apart(run: Any) -> None:
    said = run.ok("methods", "--settings").output
    assert "rival, for runs only" in said
    assert all(name in said for name in ("locft-bf", "lora", "in-prompt", "end_token"))
