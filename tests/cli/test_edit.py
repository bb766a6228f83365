"""`factpatch edit`: the patch, the report, batches with an update, and bad input that leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import FACTS, Run, editing, interrupt
from transformers import AutoModelForCausalLM

from factpatch.patch.patch import Patch

KEYS = {
    "model", "method", "seed", "plain", "efficacy", "generalization", "specificity", "score", "strict_efficacy",
    "token_efficacy", "prompt_exact", "question_contained", "perplexity_before", "perplexity_after", "seconds", "steps",
    "settings", "facts", "superseded", "similar", "unlearned", "versions", "patch",
}  # fmt: skip
STAGES = {
    "load", "second_moment", "contexts", "values", "keys", "solve", "write", "verify_before", "verify_after",
    "perplexity", "total",
}  # fmt: skip


@dataclass(frozen=True)
class Edited:
    """A finished edit: its patch, its report, the model that it saved, and what it printed."""

    patch: Path
    report: dict[str, Any]
    model: Path
    screen: str


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory, model_directory: Path, corpus: Path) -> Edited:
    folder = tmp_path_factory.mktemp("edited")
    facts, out, report, saved = (folder / name for name in ("facts.json", "p.safetensors", "r.json", "model"))
    facts.write_text(json.dumps(FACTS), encoding="utf-8")
    options = ("--out", out, "--report", report, "--save-model", saved, "--seed", 3)
    result = Run(folder / "cache").ok(*editing(model_directory, facts, corpus), *options)
    return Edited(out, json.loads(report.read_text()), saved, result.output)


def test_an_edit_writes_a_patch_a_report_and_a_model_that_agree(edited: Edited, model_directory: Path) -> None:
    patch, found = Patch.load(edited.patch), edited.report
    assert [[fact.id for fact in batch.facts] for batch in patch.batches] == [["darrieux", "tower"], ["darrieux-again"]]
    assert patch.seed == 3
    assert found.keys() >= KEYS
    assert found["seconds"].keys() >= STAGES
    stages = sum(took for stage, took in found["seconds"].items() if stage != "total")
    assert 0 < stages <= found["seconds"]["total"]
    for name in ("efficacy", "prompt_contained"):
        assert found[name].keys() == {"before", "after"}
        assert all(0 <= number <= 100 for number in found[name].values())
    assert found["perplexity_before"] > 0
    assert found["perplexity_after"] > 0
    assert found["model"] == str(model_directory)
    assert found["settings"]["target"]["steps"] == 5
    assert found["settings"]["critical_layers"] == [1, 2]
    assert found["settings"]["batch_size"] == 2
    assert found["settings"]["precision"] == patch.settings["precision"] == "float32"
    assert found["patch"]["bytes"] == edited.patch.stat().st_size
    for layer in ("1", "2"):
        steps = found["steps"][layer]
        assert steps["evaluations"]["per_fact"] == [5, 5, 5]
        assert steps["updates"]["mean"] == 4

    base = AutoModelForCausalLM.from_pretrained(model_directory)
    patch.apply(base)
    saved = AutoModelForCausalLM.from_pretrained(edited.model).state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in base.state_dict().items())


def test_an_update_in_a_later_batch_is_what_counts(edited: Edited) -> None:
    assert [row["id"] for row in edited.report["facts"]["rows"]] == ["tower", "darrieux-again"]
    assert edited.report["facts"]["number"] == 3
    assert edited.report["facts"]["batches"] == [2, 1]
    assert [fact["id"] for fact in edited.report["superseded"]] == ["darrieux"]
    assert "Replaced by a later fact" in edited.screen


@pytest.mark.parametrize(("repeats", "answer"), [("first", "Finnish"), ("last", "Italian")])
def test_repeated_questions_can_be_dropped_and_are_counted(
    run: Run, edit_arguments: list[object], facts_file: Path, tmp_path: Path, repeats: str, answer: str
) -> None:
    facts_file.write_text(json.dumps([*FACTS, FACTS[1]]))
    out = tmp_path / "p.safetensors"
    all_at_once = (*edit_arguments, "--batch-size", 10, "--out", out, "--no-verify")
    refused = run.refused("--facts: ", *all_at_once)
    for pair in (
        "record 1 (id 'darrieux') and record 3 (id 'darrieux-again') conflict: they answer",
        "record 2 (id 'tower') and record 4 (id 'tower') are duplicates: both answer",
        "--repeats first or --repeats last",
    ):
        assert pair in refused
    assert not out.exists()
    done = run.ok(*all_at_once, "--repeats", repeats)
    assert f"1 exact duplicate and 1 conflicting answer dropped, as the {repeats} answer" in " ".join(
        done.output.split()
    )
    (batch,) = Patch.load(out).batches
    assert {fact.subject: fact.target_new for fact in batch.facts} == {
        "Danielle Darrieux": answer,
        "Eiffel Tower": "Rome",
    }


def test_the_screen_shows_facts_metrics_unlearned_facts_and_the_patch(
    run: Run, edit_arguments: list[object], tmp_path: Path
) -> None:
    out, report = tmp_path / "p.safetensors", tmp_path / "r.json"
    # A single evaluation makes no update, so that nothing is said.
    result = run.ok(*edit_arguments, "--out", out, "--report", report, "--set", "target.steps=1")
    unlearned = json.loads(report.read_text())["unlearned"]
    for fact in unlearned:
        assert f"{fact['id']}: {fact['prompt']}" in result.output
    assert bool(unlearned) == ("Not said" in result.output)
    for expected in ("The Eiffel Tower is in Rome", "efficacy", "perplexity", str(out)):
        assert expected in result.output


def test_the_screen_lists_facts_that_probably_ask_the_same(
    run: Run, edit_arguments: list[object], facts_file: Path, tmp_path: Path
) -> None:
    alike = {**FACTS[0], "id": "alike", "prompt": "The native tongue of {} is", "target_new": "English"}
    facts_file.write_text(json.dumps([*FACTS, alike]))
    report = tmp_path / "r.json"
    result = run.ok(*edit_arguments, "--out", tmp_path / "p", "--report", report, "--no-verify")
    assert "Probably the same question in other words: 1 pair" in result.output
    pair = "The mother tongue of Danielle Darrieux is Italian / The native tongue of Danielle Darrieux is English"
    assert pair in result.output
    assert [[fact["id"] for fact in pair] for pair in json.loads(report.read_text())["similar"]] == [
        ["darrieux-again", "alike"]
    ]


def test_without_verification_the_patch_is_the_same(
    run: Run, edited: Edited, edit_arguments: list[object], tmp_path: Path
) -> None:
    out, report = tmp_path / "p.safetensors", tmp_path / "r.json"
    run.ok(*edit_arguments, "--out", out, "--no-verify", "--report", report, "--seed", 3)
    assert out.read_bytes() == edited.patch.read_bytes()
    found = json.loads(report.read_text())
    assert found["efficacy"] == {"before": None, "after": None}
    assert found["perplexity_before"] is None
    assert len(found["facts"]["rows"]) == 2


def test_options_are_in_the_patch_in_the_report_and_shown(
    run: Run, edit_arguments: list[object], tmp_path: Path
) -> None:
    out, report = tmp_path / "p.safetensors", tmp_path / "r.json"
    options = ("--no-remember-keys", "--precision", "fast", "--variant", "equal-settings")
    run.ok(*edit_arguments, *options, "--out", out, "--report", report, "--no-verify")
    preset = {"model": "SmolLM2-135M", "variant": "equal-settings", "assumed": True}
    for settings in (Patch.load(out).settings, json.loads(report.read_text())["settings"]):
        assert settings["remember_keys"] is False
        assert settings["precision"] == "fast"
        assert settings["solver"]["weight"] == 500
        assert settings["preset"] == preset
    assert "precision    fast" in run("show", out).output


BAD_OPTIONS: dict[str, tuple[list[str], str]] = {
    "method": (["--method", "memit-bleu"], "Did you mean 'memit-blue'"),
    "layer": (["--layers", "1,9"], "--layers: [1, 9]: layer 9 does not exist"),
    "layers in disorder": (["--layers", "2,1"], "--layers"),
    "layers in words": (["--layers", "first"], "--layers: 'first': write numbers"),
    "device": (["--device", "cuda:77"], "--device: 'cuda:77'"),
    "dtype": (["--dtype", "float8"], "--dtype: 'float8'"),
    "precision": (["--precision", "quick"], "--precision: 'quick': no such precision. Known: auto, exact"),
    "setting": (["--set", "target.step=3"], "Did you mean 'steps'"),
    "assignment": (["--set", "target.steps"], "--set: setting 'target.steps': write it as"),
    "limit": (["--limit", "0"], "--limit"),
    "batch size": (["--batch-size", "none"], "--batch-size"),
    "conflict in a batch": (["--batch-size", "3"], "record 1 (id 'darrieux') and record 3"),
    "corpus": (["--corpus", "nowhere.txt"], "--corpus: 'nowhere.txt'"),
    "perplexity text": (["--perplexity-text", "nowhere.txt"], "--perplexity-text: nowhere.txt"),
    "report in no folder": (["--report", "nowhere/r.json"], "--report nowhere/r.json"),
    "report in the patch": (["--report", "p.safetensors"], "--out"),
    "model in no folder": (["--save-model", "nowhere/model"], "--save-model nowhere/model"),
    "unknown option": (["--methods", "memit"], "--methods"),
}


@pytest.mark.parametrize(("extra", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_bad_option_is_named_and_nothing_is_written(
    run: Run,
    edit_arguments: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extra: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run.refused(message, *edit_arguments, "--out", "p.safetensors", *extra)
    assert {path.name for path in tmp_path.iterdir()} <= {"facts.json"}


@pytest.mark.parametrize("option", ["--out", "--report"])
def test_an_output_in_the_directory_of_the_new_model_is_refused_before_the_edit(
    run: Run, edit_arguments: list[object], tmp_path: Path, option: str
) -> None:
    (tmp_path / "new").mkdir()
    other = ["--out", tmp_path / "p.safetensors"] if option == "--report" else []
    given = [*edit_arguments, *other, "--save-model", tmp_path / "new", option, tmp_path / "new" / "x"]
    run.refused("lies in the model's directory", *given)
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("option", ["--out", "--report"])
def test_an_output_never_lands_in_the_model_or_on_an_input(
    run: Run, edit_arguments: list[object], model_directory: Path, corpus: Path, tmp_path: Path, option: str
) -> None:
    other = ["--out", tmp_path / "p.safetensors"] if option == "--report" else []
    for place in (model_directory / "model.safetensors", model_directory / "new.json", corpus):
        before = place.read_bytes() if place.exists() else None
        run.refused(option, *edit_arguments, *other, option, place)
        assert (place.read_bytes() if place.exists() else None) == before


def test_bad_facts_are_named_and_nothing_is_written(
    run: Run, edit_arguments: list[object], facts_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.safetensors"
    facts_file.write_text(json.dumps([{**FACTS[1], "prompt": "The tower is in"}]))
    run.refused(f"--facts: {facts_file}: record 1: prompt=", *edit_arguments, "--out", out)
    facts_file.unlink()
    run.refused(f"--facts: {facts_file}: no such file", *edit_arguments, "--out", out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["empty", "without weights", "gptq", "bitsandbytes", "awq"])
def test_a_model_that_cannot_be_edited_is_named(
    run: Run,
    edit_arguments: list[object],
    model_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    broken, out = tmp_path / "broken", tmp_path / "p"
    left_out = {"empty": "*", "without weights": "*.safetensors"}.get(what, "")
    shutil.copytree(model_directory, broken, ignore=shutil.ignore_patterns(left_out))
    if not left_out:
        config = json.loads((broken / "config.json").read_text())
        config["quantization_config"] = {"quant_method": what, "bits": 4, "load_in_4bit": True}
        (broken / "config.json").write_text(json.dumps(config))
    edit_arguments[1] = broken
    # Where the package is installed, the weights, which are not quantized, load and then cannot run.
    said = f"model='{broken}' cannot be loaded" if left_out else "Edit the model that it was made from"
    assert str(broken) in run.refused(said, *edit_arguments, "--out", out, code=1)


def test_a_model_without_a_preset_takes_layers_and_settings_over_with_a_warning(
    run: Run, edit_arguments: list[object], tmp_path: Path
) -> None:
    at = edit_arguments.index("--layers")
    del edit_arguments[at : at + 2]
    result = run.ok(*edit_arguments, "--out", tmp_path / "p", "--no-verify")
    warning = next(line for line in result.stderr.splitlines() if line.startswith("warning: there is no preset"))
    assert "assumed from that of SmolLM2-135M" in warning
    assert "critical_layers=[0, 1, 2, 3]" in warning
    assert "target.steps" not in warning  # it is given
    assert "solver" not in warning
    assert "solver settings derived from the keys of" in result.stderr
    assert Patch.load(tmp_path / "p").layers == (0, 3)


def test_an_unknown_variant_is_refused_with_a_suggestion(
    run: Run, edit_arguments: list[object], tmp_path: Path
) -> None:
    given = [*edit_arguments, "--variant", "equal-setings", "--out", tmp_path / "p"]
    run.refused("--variant: 'equal-setings': SmolLM2-135M has no such variant. Did you mean", *given)


def test_a_directory_in_use_is_not_written_to(run: Run, edit_arguments: list[object], tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "keep").write_text("mine")
    given = [*edit_arguments, "--out", tmp_path / "p", "--save-model", used]
    run.refused(f"--save-model {used}: the directory is not empty", *given)
    assert [path.name for path in used.iterdir()] == ["keep"]


def test_a_disk_that_is_full_leaves_no_patch(
    run: Run, edit_arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    # The first edit fills the cache, which is on that disk too.
    run.ok(*edit_arguments, "--out", tmp_path / "first", "--no-verify")
    monkeypatch.setattr("factpatch.support.files.os.replace", full)
    out = tmp_path / "p.safetensors"
    assert str(out) in run.refused("the disk is full", *edit_arguments, "--out", out, "--no-verify", code=1)
    assert not out.exists()


def test_a_failure_in_the_edit_writes_nothing(
    run: Run, edit_arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr("factpatch.editor.optimize_values", fail)
    out, report, saved = tmp_path / "p", tmp_path / "r.json", tmp_path / "model"
    given = [*edit_arguments, "--out", out, "--report", report, "--save-model", saved]
    run.refused("error: the loss is not finite", *given, code=1)
    assert not any(path.exists() for path in (out, report, saved))


def test_an_interruption_ends_with_130(
    run: Run, edit_arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, "factpatch.editor.optimize_values")
    result = run(*edit_arguments, "--out", tmp_path / "p", "--no-verify")
    assert result.exit_code == 130
    assert "interrupted" in result.output


def test_debug_lets_the_traceback_through(run: Run, edit_arguments: list[object], tmp_path: Path) -> None:
    result = run("--debug", *edit_arguments, "--out", tmp_path / "p", "--method", "none")
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize("content", ["a letter", "[]", "\0" * 100])
def test_a_file_that_is_no_patch_is_not_replaced_by_one(
    run: Run, edit_arguments: list[object], tmp_path: Path, content: str
) -> None:
    out = tmp_path / "precious"
    out.write_text(content)
    run.refused(f"--out {out}: there is a file that is not a factpatch patch", *edit_arguments, "--out", out)
    assert out.read_text() == content


def test_a_patch_or_an_empty_file_is_replaced(run: Run, edit_arguments: list[object], tmp_path: Path) -> None:
    out = tmp_path / "p"
    out.touch()
    run.ok(*edit_arguments, "--out", out, "--no-verify")
    first = out.read_bytes()
    run.ok(*edit_arguments, "--out", out, "--no-verify", "--set", "target.steps=2")
    assert out.read_bytes() != first
