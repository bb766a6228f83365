"""`factpatch tune` and `--preset` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Run

from factpatch.presets.written import load_preset


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probes") / "probes.json"
    records = [
        {
            "prompt": "The mother tongue of {} is",
            "subject": f"Ada {chr(65 + number)}",
            "target_new": ("French", "Finnish", "Italian")[number % 3],
            "target_true": "Rome",
            "paraphrases": [f"Ada {chr(65 + number)} speaks"],
            "neighbors": [{"prompt": "The capital of Japan is", "target_true": "Tokyo"}],
        }
        for number in range(13)
    ]
    path.write_text(json.dumps(records), "utf-8")
    return path


def test_a_preset_is_found_and_an_edit_takes_it(
    run: Run, model_directory: Path, probes: Path, corpus: Path, tmp_path: Path
) -> None:
    excluded = tmp_path / "mine.json"
    excluded.write_text(json.dumps(json.loads(probes.read_text("utf-8"))[:1]), "utf-8")
    out, options = tmp_path / "tuned", ("--steps", "3", "--minutes", "0.1", "--max-perplexity", "100")
    shown = run(
        "tune", model_directory, "--facts", probes, "--exclude", excluded, "--corpus", corpus, "--out", out, *options
    )
    assert shown.exit_code == 0, shown.output
    preset = load_preset(out / "preset.yaml")
    assert str(preset.critical_layers[0]) in shown.output
    assert (out / "tradeoff.svg").is_file()
    record = json.loads((out / "tuning.json").read_text("utf-8"))
    assert {checked["facts"] for checked in record["checked"]} == {4}
    report = tmp_path / "r.json"
    edited = run(
        "edit", model_directory, "--preset", out / "preset.yaml", "--facts", excluded, "--corpus", corpus,
        "--out", tmp_path / "p.safetensors", "--report", report,
    )  # fmt: skip
    assert edited.exit_code == 0, edited.output
    settings = json.loads(report.read_text("utf-8"))["settings"]
    assert settings["critical_layers"] == preset.critical_layers
    assert settings["solver"]["weight"] == preset.methods["memit-blue"]["solver.weight"]


def test_too_few_probes_are_refused_before_the_model_is_loaded(run: Run, probes: Path, tmp_path: Path) -> None:
    shown = run("tune", "no-such-model", "--facts", probes, "--limit", "3", "--out", tmp_path / "tuned")
    assert shown.exit_code == 2
    assert "--facts: facts: 3 of 3 have a true object" in shown.stderr
    assert not (tmp_path / "tuned").exists()


def test_a_preset_for_another_model_is_refused(run: Run, model_directory: Path, probes: Path, tmp_path: Path) -> None:
    preset = tmp_path / "other.yaml"
    preset.write_text(
        "model: other\nmatch: {model_type: llama, num_hidden_layers: 30, hidden_size: 576}\n"
        "critical_layers: [1, 2]\nsource: nowhere\nmethods: {memit: {}}\n",
        "utf-8",
    )
    shown = run(
        "edit", model_directory, "--preset", preset, "--facts", probes, "--out", tmp_path / "p.safetensors"
    )  # fmt: skip
    assert shown.exit_code == 2
    assert "--preset: preset 'other' is for another model" in shown.stderr
