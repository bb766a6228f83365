"""The commands that measure what an edit does beside its facts: capability and drift."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import FACTS, Run
from tests.models import SENTENCES

from factpatch.evaluation.tasks import TASKS


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "glue"
    folder.mkdir()
    for name in ("sst2", "cola"):
        items = [{"sentence": f"{SENTENCES[i % 8]} {i}", "label": i % 2} for i in range(16)]
        (folder / f"glue_{name}.json").write_text(json.dumps(items))
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.json"
    records = [
        {
            "prompt": fact["prompt"].replace("{}", fact["subject"]),
            "template": fact["prompt"],
            "subject": fact["subject"],
            "attribute": fact["target_true"],
        }
        for fact in FACTS[:2]
    ]
    path.write_text(json.dumps(records * 10))
    return path


def test_capability_shows_before_and_after_and_writes_every_answer(
    run: Run, model_directory: Path, patch: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn", reason="needs factpatch[evaluate]")
    out = tmp_path / "capability.json"
    options = ("--data", data, "--tasks", "sst2, cola", "--limit", 4, "--shots", 1, "--out", out)
    result = run.ok("capability", model_directory, "--patch", patch, *options)
    assert "->" in result.output
    assert "likelihood" in result.output
    record = json.loads(out.read_text())
    for when in ("before", "after"):
        assert [task["task"] for task in record[when]["tasks"]] == ["sst2", "cola"]
        assert [row["item"] for row in record[when]["tasks"][0]["rows"]] == [10, 11, 12, 13]
    nlls = [record[when]["tasks"][0]["rows"][0]["nll"] for when in ("before", "after")]
    assert nlls[0] != nlls[1]

    alone = run.ok("capability", model_directory, "--data", data, "--tasks", "cola", "--no-generate")
    assert "->" not in alone.output
    assert "generated" not in alone.output


def test_capability_refuses_what_it_cannot_use(run: Run, model_directory: Path, data: Path) -> None:
    for options, message in (
        ((), "--data: give the folder"),
        (("--tasks", "sst2"), "--data: give the folder"),
        (("--data", data, "--tasks", "sst"), "Did you mean 'sst2'"),
        (("--data", data), "glue_mrpc.json: no such file"),
        (("--data", data, "--tasks", "sst2", "--shots", 11), "--shots 11: give at most 10"),
    ):
        run.refused(message, "capability", model_directory, *options)


def test_capability_refuses_a_file_of_too_few_items_before_the_model_is_loaded(
    run: Run, data: Path, tmp_path: Path
) -> None:
    items = json.loads((data / "glue_cola.json").read_text())
    (data / "glue_cola.json").write_text(json.dumps(items[:10]))
    result = run("capability", tmp_path / "no model", "--data", data, "--tasks", "cola")
    assert result.exit_code == 2, result.output
    said = " ".join(result.output.split())
    assert "--data: " in said
    assert "glue_cola.json has 10 items; the first 10 are examples" in said


def test_capability_refuses_a_task_of_the_harness_that_is_not_there(run: Run, model_directory: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs factpatch[harness]")
    run.refused(
        "--harness: tasks: absent.yaml: no such file", "capability", model_directory, "--harness", "absent.yaml"
    )


@pytest.mark.parametrize("at", ["subject", "prompt"])
def test_drift_measures_the_shift_at_the_patchs_last_layer(
    run: Run, model_directory: Path, patch: Path, prompts: Path, tmp_path: Path, at: str
) -> None:
    out = tmp_path / "drift.json"
    run.ok("drift", model_directory, "--patch", patch, "--prompts", prompts, "--at", at, "--out", out)
    record = json.loads(out.read_text())
    assert (record["layer"], record["at"], record["prompts"]) == (2, at, 20)
    assert record["relative_shift"] > 0
    assert 0 < record["cka"] <= 1 + 1e-9
    assert "map" not in record
    run.ok("drift", model_directory, "--patch", patch, "--prompts", prompts, "--layer", 0, "--out", out)
    assert json.loads(out.read_text())["relative_shift"] == 0


def test_drift_draws_a_map(run: Run, model_directory: Path, patch: Path, prompts: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs factpatch[evaluate]")
    pytest.importorskip("matplotlib", reason="needs factpatch[plots]")
    out, plot = tmp_path / "drift.json", tmp_path / "map.png"
    options = ("--patch", patch, "--prompts", prompts, "--out", out, "--plot", plot)
    run.ok("drift", model_directory, *options)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert [len(json.loads(out.read_text())["map"][when]) for when in ("before", "after")] == [20, 20]
    run.ok("drift", model_directory, *options, "--limit", 3)
    assert [len(json.loads(out.read_text())["map"][when]) for when in ("before", "after")] == [3, 3]


def test_drift_refuses_what_it_cannot_use(
    run: Run, model_directory: Path, patch: Path, prompts: Path, tmp_path: Path
) -> None:
    given = ("drift", model_directory, "--patch", patch, "--prompts")
    for options, message in (
        ((tmp_path / "absent.json",), "--prompts: "),
        ((prompts, "--plot", tmp_path / "map.doc"), "unknown extension '.doc'"),
        ((prompts, "--layer", 9), "--layer: layer=[9]: layer 9 does not exist"),
    ):
        run.refused(message, *given, *options)


def test_every_task_is_named_in_the_help(run: Run) -> None:
    text = " ".join(run("capability", "--help").output.split())
    assert all(name in text for name in TASKS)
