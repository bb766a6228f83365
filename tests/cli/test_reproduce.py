"""The paper's tables and figures, each by one command, from a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.models import SENTENCES

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("sklearn", reason="needs the extra `runs`")
pytest.importorskip("matplotlib", reason="needs the extra `runs`")

from factpatch.evaluation.tasks import TASKS
from factpatch.lab.runs.figures import capability_tasks, mapped
from factpatch.lab.runs.results import read_results

Run = Callable[..., Any]


@pytest.fixture
def reproduce(run: Run, model_directory: Path, facts_file: Path, corpus: Path, tmp_path: Path) -> Callable[..., Any]:
    """Draw something of the paper up for two methods and two facts of a tiny model."""

    def invoke(name: str, *options: object) -> Any:
        return run(
            "reproduce", name, "--model", model_directory, "--dataset", facts_file, "--facts", "2", "--batch-size", "1",
            "--method", "memit", "--method", "memit-blue", "--out", tmp_path / name, "--corpus", corpus,
            "--layers", "1,2", *options,
        )  # fmt: skip

    return invoke


def test_a_table_of_the_paper_is_one_command(reproduce: Any, tmp_path: Path) -> None:
    result = reproduce("table3", "--text-facts", "1")
    assert result.exit_code == 0, result.output
    assert "With BLUE" in result.output
    assert "memit-blue: " in result.output
    for name in ("table3", "table3.improvement"):
        for suffix in (".md", ".tex", ".csv"):
            assert (tmp_path / "table3" / f"{name}{suffix}").is_file()
    assert (tmp_path / "table3" / "table3.differences.csv").is_file()
    remembered = {
        method["name"]: method["remember_keys"]
        for method in json.loads((tmp_path / "table3" / "run.json").read_text("utf-8"))["config"]["methods"]
    }
    assert remembered == {"memit": False, "memit-blue": False}


def test_the_figure_of_capability_is_drawn_from_a_run(reproduce: Any, tmp_path: Path) -> None:
    items = [{"sentence": f"{SENTENCES[place % 8]} {place}", "label": place % 2} for place in range(14)]
    for name in ("sst2", "cola"):
        (tmp_path / f"glue_{name}.json").write_text(json.dumps(items), "utf-8")
    for name in ("mrpc", "rte"):
        pairs = [{"sentence1": item["sentence"], "sentence2": "x", "label": item["label"]} for item in items]
        (tmp_path / f"glue_{name}.json").write_text(json.dumps(pairs), "utf-8")
    nli = [
        {"sentence1": "x", "sentence2": "y", "label": ["entailment", "not_entailment"][item["label"]]} for item in items
    ]
    (tmp_path / "glue_nli.json").write_text(json.dumps(nli), "utf-8")
    choices = [{"question": "x", "choices": list("abcd"), "answer": place % 4} for place in range(14)]
    (tmp_path / "glue_mmlu.json").write_text(json.dumps(choices), "utf-8")
    result = reproduce("figure6", "--capability-data", tmp_path, "--capability-items", "2")
    assert result.exit_code == 0, result.output
    results = read_results(tmp_path / "figure6")
    assert results.failed == {}
    assert capability_tasks(results) == list(TASKS)
    assert (tmp_path / "figure6" / "figure6.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "figure6" / "figure6.svg").read_text("utf-8")


def test_the_figure_of_hidden_states_is_drawn_from_a_run(reproduce: Any, tmp_path: Path) -> None:
    known = [
        {"prompt": f"The {subject} is in", "template": "The {} is in", "subject": subject, "attribute": "x"}
        for subject in ("Eiffel Tower", "city of Rome", "capital of France", "coast of Japan")
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(known), "utf-8")
    result = reproduce("figure7", "--prompts", tmp_path / "prompts.json")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "figure7" / "figure7.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "figure7" / "figure7.svg").read_text("utf-8")
    results = read_results(tmp_path / "figure7")
    assert results.failed == {}
    assert len(mapped(results)) == 2
    header, *lines = (tmp_path / "figure7" / "figure7.csv").read_text("utf-8").splitlines()
    place = header.split(",").index("facts.drift.cka")
    assert all(0 <= float(line.split(",")[place]) <= 1 + 1e-9 for line in lines if line.startswith("memit"))
    line = next((tmp_path / "figure7").rglob("row.json"))
    line.write_text(json.dumps({**json.loads(line.read_text("utf-8")), "failed": "it collapsed"}), "utf-8")
    again = reproduce("figure7", "--prompts", tmp_path / "prompts.json")
    assert again.exit_code == 0, again.output
    assert "seed 0: it collapsed" in again.output


def test_a_variant_that_the_preset_does_not_have_is_refused_before_anything_is_measured(
    reproduce: Any, tmp_path: Path
) -> None:
    result = reproduce("table2", "--text-facts", "1", "--variant", "equal-setting")
    assert result.exit_code == 1
    assert "has no such variant. Did you mean 'equal-settings'?" in " ".join(result.output.split())
    assert not list((tmp_path / "table2").rglob("*.parquet"))


def test_an_unknown_table_gets_a_suggestion(run: Run) -> None:
    result = run("reproduce", "table22")
    assert result.exit_code == 2
    assert "table2" in result.output
