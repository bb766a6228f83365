"""`factpatch tune` and `--preset` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Run

from factpatch.presets.preset import load_preset


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
        for number in range(15)
    ]
    path.write_text(json.dumps(records), "utf-8")
    return path


def test_a_preset_is_found_and_an_edit_takes_it(
    run: Run, model_directory: Path, probes: Path, corpus: Path, tmp_path: Path
) -> None:
    mine = json.loads(probes.read_text("utf-8"))[:3]
    mine[0]["subject"] = mine[0]["subject"].upper()
    excluded = tmp_path / "mine.json"
    excluded.write_text(json.dumps(mine), "utf-8")
    out, options = tmp_path / "tuned", ("--layers", "1,2", "--steps", "3", "--max-perplexity", "100")
    shown = run(
        "tune", model_directory, "--facts", probes, "--exclude", excluded, "--corpus", corpus, "--out", out, *options
    )
    assert shown.exit_code == 0, shown.output
    preset = load_preset(out / "preset.yaml")
    assert preset.critical_layers == [1, 2]
    assert "6 of 6 candidates were tried" in shown.output
    assert (out / "tradeoff.svg").is_file()
    record = json.loads((out / "tuning.json").read_text("utf-8"))
    assert f"layers 1, 2; {record['corpus_tokens']} tokens for the statistics" in shown.output
    # Of all fifteen, five would be held out, and the last trials would be of ten.
    assert {checked["facts"] for checked in record["checked"]} == {4}
    assert record["facts"] == 8
    assert record["about"]["facts"]["count"] == 12
    report = tmp_path / "r.json"
    edited = run(
        "edit", model_directory, "--preset", out / "preset.yaml", "--facts", excluded, "--corpus", corpus,
        "--out", tmp_path / "p.safetensors", "--report", report,
    )  # fmt: skip
    assert edited.exit_code == 0, edited.output
    settings = json.loads(report.read_text("utf-8"))["settings"]
    assert settings["critical_layers"] == preset.critical_layers
    assert settings["solver"]["weight"] == preset.methods["memit-blue"]["solver.weight"]


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--facts", "PROBES", "--limit", "3"], ["--facts: 3 of 3 have a true object"]),
        (
            ["--facts", "PROBES", "--exclude", "PROBES"],
            ["--facts, --exclude: 0 of 15 have a true object", "are not excluded (15 are)"],
        ),
        (["--skip", "30"], ["--skip 30 leaves none of them"]),
    ],
)
def test_too_few_probes_are_refused_before_the_model_is_loaded(
    run: Run, probes: Path, tmp_path: Path, options: list[str], messages: list[str]
) -> None:
    given = [probes if option == "PROBES" else option for option in options]
    shown = run("tune", "no-such-model", *given, "--out", tmp_path / "tuned")
    assert shown.exit_code == 2
    assert all(message in shown.stderr for message in messages)
    assert not (tmp_path / "tuned").exists()


def test_without_facts_those_of_the_package_are_the_probes(
    run: Run, model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run("tune", model_directory)
    assert "the probes are 24 facts that the package ships. Numbers from so few are coarse" in shown.stderr
    # The text that the package ships is not meant for this model.
    assert shown.exit_code == 1
    assert "corpus=None: " in shown.stderr
    (tmp_path / f"tuned-{model_directory.name}").mkdir()
    (tmp_path / f"tuned-{model_directory.name}" / "preset.yaml").write_text("mine", "utf-8")
    shown = run("tune", model_directory)
    assert shown.exit_code == 2
    assert "--out: tuned-tiny: is not empty and not the directory of a search" in shown.stderr


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
