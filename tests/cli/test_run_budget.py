"""Runs with a budget: a row stops before the batch that would cost more, is as it was before it, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import QUICK, interrupt, numbers

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("sklearn", reason="needs the extra `runs`")

from factpatch.lab.runs.results import read_results
from factpatch.model.language_model import LanguageModel
from factpatch.model.weights import model_hash

FINE_TUNING = {"name": "locft-bf", "settings": {"epochs": 2}}


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What perplexity is with the budget's text: of the unedited model, and of each other one in turn as it is met."""
    found, met = [10.0], dict[str, float]()

    def measured(lm: LanguageModel, text: str) -> float:
        weights = model_hash(lm.model)
        if weights not in met:
            met[weights] = found[min(len(met), len(found) - 1)]
        return met[weights]

    monkeypatch.setattr("factpatch.evaluation.budget.perplexity", measured)
    return found


@pytest.fixture
def limited(config: dict[str, Any]) -> dict[str, Any]:
    """A run of a method and a rival in two batches, within a budget."""
    methods = [{"name": "memit", "settings": QUICK}, FINE_TUNING]
    return {**config, "methods": methods, "max_perplexity": 5, "evaluate": {"perplexity": False, "generation": False}}


def record(directory: Path, label: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "rows" / "three" / "0" / label / "row.json").read_text("utf-8"))
    return found


def test_a_row_stops_before_the_batch_that_costs_more_and_is_as_that_had_never_been(
    begin: Any, run: Any, limited: dict[str, Any], tmp_path: Path, costs: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs[:] = [10.0, 10.1, 20.0, 10.3, 20.0]
    result = begin(limited, "whole")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    reason = "perplexity +100.00 % (at most +5 %)"
    why = f"stopped after 2 of 3 facts, which its numbers are about; with the next batch, {reason}."
    directory = tmp_path / "whole"
    page = tmp_path / "page.html"
    run.ok("report", directory, "--out", page)
    for label, spent in (("memit", 1.0), ("locft-bf", 3.0)):
        found = record(directory, label)
        assert found["stopped"] == {"edited": 2, "reason": reason}
        assert found["spent"] == {"perplexity": pytest.approx(spent)}
        for text in (said, page.read_text("utf-8"), (directory / "table.md").read_text("utf-8")):
            assert f"{label} on three, seed 0: {why}" in " ".join(text.split())
    rows = read_results(directory).rows
    for label in ("memit", "locft-bf"):
        ours = rows[(rows["label"] == label) & rows["place"].notna()]
        end, written = (
            ours[ours["when"] == when].set_index(["place", "metric"])["value"] for when in ("end", "written")
        )
        assert set(end.index.get_level_values("place")) == {0, 1}
        assert end.dropna().equals(
            written.reindex(end.index).dropna()
        )  # of the weights after the first batch, to the bit

    # Killed after it had stopped, a row is not edited again.
    for calls in (0, 1):
        with monkeypatch.context() as patched:
            interrupt(patched, "factpatch.lab.runs.runner.write_json", calls)
            assert begin(limited).exit_code == 130
    assert begin(limited).exit_code == 0
    journal = (tmp_path / "out" / "rows" / "three" / "0" / "memit" / "journal.jsonl").read_text("utf-8")
    assert [json.loads(line)["event"] for line in journal.splitlines()] == ["plan", "batch", "stop"]
    assert numbers(tmp_path / "out") == numbers(directory)


def test_a_row_that_exceeds_its_budget_while_it_mends_keeps_all_of_its_facts(
    begin: Any, limited: dict[str, Any], tmp_path: Path, costs: list[float]
) -> None:
    costs[:] = [10.0, 10.1, 10.2, 20.0]
    again = {"name": "memit", "settings": {**QUICK, "solver.weight": 1e5}, "mend": 2}  # too little to hold
    limited["evaluate"]["perplexity"] = True
    result = begin({**limited, "methods": [again]}, "whole")
    assert result.exit_code == 0, result.output
    found = record(tmp_path / "whole", "memit")
    assert found["stopped"] == {"edited": 3, "mending": True, "reason": "perplexity +100.00 % (at most +5 %)"}
    assert found["spent"] == {"perplexity": pytest.approx(2.0)}
    assert "stopped while lost facts were edited again" in " ".join(result.output.split())
    rows = read_results(tmp_path / "whole").rows
    ours = rows[(rows["label"] == "memit") & (rows["when"] == "end")]
    assert set(ours["edits"]) == {3}
    assert begin({**limited, "methods": [again]}, "whole").exit_code == 0
    assert record(tmp_path / "whole", "memit") == found


def test_a_row_whose_first_batch_costs_too_much_has_no_numbers(
    begin: Any, limited: dict[str, Any], tmp_path: Path, costs: list[float]
) -> None:
    costs[:] = [10.0, 20.0]
    result = begin(limited)
    assert result.exit_code == 0, result.output
    assert "stopped after 0 of 3 facts" in " ".join(result.output.split())
    for label in ("memit", "locft-bf"):
        found = record(tmp_path / "out", label)
        assert (found["stopped"]["edited"], found["bytes"], "spent" in found) == (0, 0, False)
    assert set(read_results(tmp_path / "out").rows["label"]) == {""}


def test_capability_is_measured_on_the_tasks_that_the_run_evaluates(
    begin: Any, limited: dict[str, Any], tmp_path: Path, costs: list[float]
) -> None:
    items = [{"sentence": f"text {place}", "label": place % 2} for place in range(12)]
    (tmp_path / "glue_cola.json").write_text(json.dumps(items), "utf-8")
    evaluate = {**limited["evaluate"], "capability": {"data": str(tmp_path), "tasks": ["cola"]}}
    result = begin({**limited, "methods": limited["methods"][:1], "min_capability": 0, "evaluate": evaluate})
    assert result.exit_code == 0, result.output
    found = record(tmp_path / "out", "memit")
    assert found["spent"].keys() == {"perplexity", "capability"}
    assert "stopped" not in found


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_perplexity": -1}, "max_perplexity is -1: max_perplexity=-1.0: give percent, 0 or more"),
        ({"min_capability": 2}, "min_capability is 2: min_capability=2.0: give a share from 0 to 1"),
        ({"min_capability": 0.9}, "min_capability is 0.9: it is measured on the tasks of evaluate.capability"),
    ],
)
def test_a_limit_that_cannot_be_used_is_refused(begin: Any, limited: dict[str, Any], fields: Any, said: str) -> None:
    result = begin({**limited, **fields})
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())
