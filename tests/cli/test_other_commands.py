"""The commands beside `edit` and `demo`: apply, undo, verify, show, second-moment, methods, models, all help."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.cli.conftest import FACTS, Run, editing, interrupt
from tests.models import save_tiny, tiny_tokenizer
from transformers import AutoModelForCausalLM

import factpatch
from factpatch.methods import METHODS
from factpatch.patch.file import describe
from factpatch.patch.patch import Patch, total_shifts
from factpatch.strategies import NullSpace, Ridge

COMMANDS = (
    "demo",
    "edit",
    "verify",
    "capability",
    "drift",
    "apply",
    "undo",
    "log",
    "show",
    "compose",
    "rebase",
    "lora",
    "second-moment",
    "anchor",
    "methods",
    "models",
    "presets",
)


def same_weights(first: Path, second: Path) -> bool:
    one, other = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (first, second))
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_applied_and_undone_with_base_a_model_is_bit_identical(
    run: Run, patch: Path, model_directory: Path, tmp_path: Path
) -> None:
    edited, restored = tmp_path / "edited", tmp_path / "restored"
    result = run.ok("apply", model_directory, patch, "--out", edited)
    assert not same_weights(model_directory, edited)
    result = run.ok("undo", edited, patch, "--out", restored, "--base", model_directory)
    assert "bit-identical" in result.output
    assert same_weights(model_directory, restored)
    assert (restored / "tokenizer.json").is_file()


def test_undone_without_base_a_model_is_restored_to_rounding(
    run: Run, patch: Path, model_directory: Path, tmp_path: Path
) -> None:
    edited, restored = tmp_path / "edited", tmp_path / "restored"
    run.ok("apply", model_directory, patch, "--out", edited)
    result = run.ok("undo", edited, patch, "--out", restored)
    assert ("to rounding" in result.output) is not same_weights(model_directory, restored)
    base, found = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (model_directory, restored))
    assert all(torch.allclose(tensor, found[name], rtol=0, atol=1e-5) for name, tensor in base.items())


def test_a_patch_for_other_weights_is_refused(run: Run, patch: Path, model_directory: Path, tmp_path: Path) -> None:
    edited, again = tmp_path / "edited", tmp_path / "again"
    run.ok("apply", model_directory, patch, "--out", edited)
    run.refused("already holds this patch", "apply", edited, patch, "--out", again, code=1)
    run.refused("does not hold this patch", "undo", model_directory, patch, "--out", again, code=1)
    assert not again.exists()


@pytest.mark.parametrize("command", ["apply", "undo"])
def test_a_damaged_patch_is_refused_before_the_model_is_loaded(
    run: Run, patch: Path, tmp_path: Path, command: str
) -> None:
    content = bytearray(patch.read_bytes())
    for damaged in (bytes(content[:-10]), bytes(content[:-1]) + bytes([content[-1] ^ 1]), b"no patch"):
        patch.write_bytes(damaged)
        run.refused(f"PATCH: {patch}", command, "no-such-model", patch, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["apply", "undo"])
def test_the_place_of_a_model_is_checked_first(run: Run, patch: Path, tmp_path: Path, command: str) -> None:
    for out in (tmp_path / "no" / "folder", patch, tmp_path):
        run.refused(f"--out {out}", command, "no-such-model", patch, "--out", out)


def test_verify_shows_what_a_patch_changes_and_leaves_the_model(
    run: Run, patch: Path, model_directory: Path, facts_file: Path, tmp_path: Path
) -> None:
    report = tmp_path / "r.json"
    result = run.ok("verify", model_directory, "--facts", facts_file, "--patch", patch, "--report", report)
    assert "it says now" in result.output
    assert "The Eiffel Tower is in Rome" in result.output
    found = json.loads(report.read_text())
    assert [row["id"] for row in found["facts"]] == ["tower", "darrieux-again"]
    assert all(row["before"]["nll_new"] != row["after"]["nll_new"] for row in found["facts"])
    assert found["patch"] == str(patch)


def test_verify_asks_beside_the_facts_on_demand(
    run: Run, patch: Path, model_directory: Path, facts_file: Path, tmp_path: Path
) -> None:
    report = tmp_path / "r.json"
    ask = ("verify", model_directory, "--facts", facts_file, "--patch", patch, "--report", report)
    assert "reversed nll" not in run.ok(*ask).output
    output = run.ok(*ask, "--probes").output
    assert "reversed nll" in output
    assert "negated contained" in output
    found = json.loads(report.read_text())
    assert found["summary"]["reversed_nll"]["before"] != found["summary"]["reversed_nll"]["after"]
    assert found["facts"][0]["after"]["probes"]["negated"]["prompt"] == "The Eiffel Tower is not in"


def test_verify_does_not_ask_what_a_patch_was_trained_on(
    run: Run, model_directory: Path, corpus: Path, tmp_path: Path
) -> None:
    written = "Where is the Eiffel Tower?"
    edited = {**FACTS[1], "questions": [written]}
    (tmp_path / "edited.json").write_text(json.dumps([edited]), "utf-8")
    (tmp_path / "asked.json").write_text(json.dumps([{**FACTS[0], "questions": [written]}, edited]), "utf-8")
    patch, report = tmp_path / "p.safetensors", tmp_path / "r.json"
    own = ("--set", "target.contexts=prompt,own_question")
    run.ok(*editing(model_directory, tmp_path / "edited.json", corpus), *own, "--out", patch, "--no-verify")
    ask = ("verify", model_directory, "--facts", tmp_path / "asked.json", "--report", report)
    run.ok(*ask)
    forms = [[one["form"] for one in row["after"]["answers"]] for row in json.loads(report.read_text())["facts"]]
    assert forms == [["prompt", "question"], ["prompt", "question"]]
    assert "1 fact has no question" in run.ok(*ask, "--patch", patch).output
    forms = [[one["form"] for one in row["after"]["answers"]] for row in json.loads(report.read_text())["facts"]]
    assert forms == [["prompt", "question"], ["prompt"]]
    applied = run.ok("apply", model_directory, patch, "--out", tmp_path / "model", "--rebase")
    assert "1 fact has no question" in applied.output


def test_verify_without_a_patch_asks_once(run: Run, model_directory: Path, facts_file: Path) -> None:
    result = run.ok("verify", model_directory, "--facts", facts_file, "--limit", 2)
    assert "it said" not in result.output
    assert "->" not in result.output


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--patch", "nowhere"], "--patch: nowhere: no such file"),
        (["--report", "nowhere/r.json"], "--report nowhere/r.json"),
        (["--facts", "nowhere.json"], "--facts: nowhere.json: no such file"),
        (["--device", "gpu"], "--device"),
        (["--dtype", "float"], "--dtype"),
    ],
)
def test_verify_names_a_bad_argument(run: Run, facts_file: Path, extra: list[str], message: str) -> None:
    run.refused(message, "verify", "no-such-model", "--facts", facts_file, *extra)


def test_show_says_what_is_in_a_patch_and_that_it_is_intact(run: Run, patch: Path, tmp_path: Path) -> None:
    result = run.ok("show", patch)
    intact = f"{describe(patch).sha256} (fits the file's content)"
    for expected in ("memit-blue", "Ridge(weight=", "steps=5", "Batch 2 of 2", "Danielle Darrieux is Italian", intact):
        assert expected in result.output
    run.refused("no such file", "show", tmp_path / "nowhere")


@pytest.mark.parametrize("place", [300, -1, -1000])
def test_show_and_apply_say_that_a_file_was_altered(
    run: Run, patch: Path, model_directory: Path, tmp_path: Path, place: int
) -> None:
    content = bytearray(patch.read_bytes())
    content[place] ^= 1
    patch.write_bytes(content)
    for command in (
        ("show", patch),
        ("apply", model_directory, patch, "--out", tmp_path / "m"),
        ("lora", patch, "--out", tmp_path / "l"),
    ):
        run.refused("altered", *command)
    assert [path.name for path in tmp_path.iterdir() if path != patch and path.name != "cache"] == []


ESCAPE = "\x1b]0;title\x07\x1b[31m\x9b2J\u202e\u2066"


@pytest.mark.parametrize("field", ["facts", "method", "settings", "origin", "model_type", "versions"])
def test_nothing_that_steers_the_terminal_gets_there_from_a_patch(
    run: Run, patch: Path, model_directory: Path, tmp_path: Path, field: str
) -> None:
    pytest.importorskip("peft")
    whole = Patch.load(patch)
    changed: dict[str, Any] = {
        "facts": {
            "batches": [
                replace(
                    batch, facts=tuple(replace(f, subject=f.subject + ESCAPE, id=ESCAPE + "i") for f in batch.facts)
                )
                for batch in whole.batches
            ]
        },
        "method": {"method": "memit" + ESCAPE},
        "settings": {"settings": {**whole.settings, "x" + ESCAPE: {"class": ESCAPE, "y" + ESCAPE: ESCAPE}}},
        "origin": {"config": {**whole.config, "_name_or_path": "org/" + ESCAPE}},
        "model_type": {"config": {**whole.config, "model_type": ESCAPE}},
        "versions": {"versions": {"torch" + ESCAPE: ESCAPE}},
    }
    replace(whole, **changed[field]).save(patch)
    for command in (
        ("show", patch),
        ("apply", model_directory, patch, "--out", tmp_path / "m"),
        ("lora", patch, "--out", tmp_path / "l"),
        ("lora", patch, "--out", tmp_path / "l2", "--base-model-name", "x" + ESCAPE),
    ):
        result = run(*command)
        steering = {hex(ord(c)) for c in result.output if not c.isprintable() and c not in "\n\t"}
        assert not steering, command
        assert (result.exit_code == 0) == (field != "model_type" or command[0] == "show"), result.output


def test_a_patch_is_rebased_onto_a_tuned_model_as_the_message_says(
    run: Run, patch: Path, model_directory: Path, tmp_path: Path
) -> None:
    tuned = AutoModelForCausalLM.from_pretrained(model_directory)
    with torch.no_grad():
        for layer in tuned.model.layers:
            layer.mlp.down_proj.weight.mul_(1.0001)
    tuned.save_pretrained(tmp_path / "tuned")
    tiny_tokenizer().save_pretrained(tmp_path / "tuned")
    new = tmp_path / "new.safetensors"
    advice = "factpatch rebase MODEL PATCH --out NEW"
    run.refused(advice, "apply", tmp_path / "tuned", patch, "--out", tmp_path / "edited", code=1)
    result = run.ok("rebase", tmp_path / "tuned", patch, "--out", new)
    assert "are not those that were edited: verify the facts there" in result.output
    run.ok("apply", tmp_path / "tuned", new, "--out", tmp_path / "edited")
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    before, after = tuned.model.layers[2].mlp.down_proj.weight, edited.model.layers[2].mlp.down_proj.weight
    shift = total_shifts(Patch.load(patch).batches)[2].matrix()
    torch.testing.assert_close((after - before).double(), shift, rtol=1e-3, atol=1e-6)
    run.ok("undo", tmp_path / "edited", new, "--base", tmp_path / "tuned", "--out", tmp_path / "back")
    same = run.ok("rebase", model_directory, patch, "--out", tmp_path / "same.safetensors")
    assert "are those that were edited" in same.output
    run.refused("is one of the patches", "rebase", tmp_path / "tuned", new, "--out", new)
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    for command in (("rebase", tmp_path / "tuned", patch), ("compose", patch)):
        run.refused("a file that is not a factpatch patch", *command, "--out", precious)
    assert precious.read_text() == "precious"


def test_second_moment_shows_the_spectrum_and_fills_the_cache(
    run: Run, model_directory: Path, corpus: Path, tmp_path: Path
) -> None:
    arguments = ("second-moment", model_directory, "--layers", "1,2", "--corpus", corpus, "--tokens", 300)
    result = run.ok(*arguments, "--threshold", 1000)
    rows = re.findall(r"^\s*([12])\s+300\s.*64 of 64", result.output, re.MULTILINE)
    assert rows == ["1", "2"]
    assert str(tmp_path / "cache" / "second_moment") in result.output
    assert len(list((tmp_path / "cache" / "second_moment").iterdir())) == 2
    assert f"below {NullSpace().threshold:g}" in " ".join(run(*arguments).output.split())


def test_options_that_would_do_nothing_are_refused(run: Run, patch: Path, corpus: Path, tmp_path: Path) -> None:
    for option in ("--to", "--fact"):
        message = f"{option}: takes back"
        run.refused(message, "undo", tmp_path / "session", option, 1, "--device", "cpu")
        run.refused(message, "undo", tmp_path / "session", option, 1, "--dtype", "float32")
    run.refused("--seed 3: is that of the map", "drift", "tiny", "--patch", patch, "--seed", 3)
    for command in ("tune", "reproduce"):
        assert "shared-expert" not in run.ok(command, "--help").output
    edit = ("edit", "tiny", "--facts", corpus, "--out", tmp_path / "p", "--no-verify")
    run.refused("--perplexity-tokens: without verification no perplexity", *edit, "--perplexity-tokens", 100)
    run.refused("--perplexity-text: without verification no perplexity", *edit, "--perplexity-text", corpus)


def test_second_moment_shows_each_expert_and_reads_the_shared_one_where_asked(
    run: Run, corpus: Path, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "mixture", "qwen2_moe")
    arguments = ("second-moment", tmp_path / "mixture", "--layers", "1,2", "--corpus", corpus, "--tokens", 300)
    shown = re.findall(r"^\s*([12]), expert (\d)\s+(\d+) ", run.ok(*arguments).output, re.MULTILINE)
    assert {(layer, expert) for layer, expert, _ in shown} == {(layer, str(n)) for layer in "12" for n in range(4)}
    assert sum(int(count) for layer, _, count in shown if layer == "1") % 300 == 0
    shared = run.ok(*arguments, "--shared-expert").output
    assert re.findall(r"^\s*([12])\s+300 ", shared, re.MULTILINE) == ["1", "2"]


def test_second_moment_says_that_it_goes_on_where_it_was_interrupted(
    run: Run, model_directory: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factpatch.statistics.second_moment.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("factpatch.statistics.second_moment.TOKEN_BUDGET", 200)
    arguments = ("second-moment", model_directory, "--layers", "1,2", "--corpus", corpus, "--tokens", 700)
    with monkeypatch.context() as patched:
        interrupt(patched, "factpatch.statistics.second_moment.padded", calls=2)
        result = run(*arguments)
    assert result.exit_code == 130
    read = re.findall(r"so far is kept, after (\d+) tokens", result.stderr)
    assert len(read) == 2
    result = run.ok(*arguments)
    assert f"resuming the second moment where it was interrupted, after {read[-1]} tokens" in result.stderr
    assert len(list((tmp_path / "cache" / "second_moment").iterdir())) == 2


def test_a_short_corpus_is_warned_about(run: Run, model_directory: Path, corpus: Path) -> None:
    result = run.ok("second-moment", model_directory, "--layers", 1, "--corpus", corpus, "--tokens", 10**6)
    assert "warning: the corpus ended" in result.stderr


def test_second_moment_assumes_layers_with_a_warning(run: Run, model_directory: Path, corpus: Path) -> None:
    result = run.ok("second-moment", model_directory, "--corpus", corpus, "--tokens", 640)
    assert "warning: there is no preset for" in result.stderr
    assert "critical_layers=[0, 1, 2, 3], scaled from its 4, 5, 6, 7, 8 of 30" in result.stderr


def test_second_moment_reads_what_an_edit_with_the_preset_needs(
    run: Run, model_directory: Path, corpus: Path, tmp_path: Path
) -> None:
    config = json.loads((model_directory / "config.json").read_text("utf-8"))
    fields = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size")
    preset = tmp_path / "preset.yaml"
    record = {"model": "tiny", "match": {name: config[name] for name in fields}, "critical_layers": [1, 3]}
    preset.write_text(yaml.safe_dump({**record, "source": "here", "corpus_tokens": 350, "methods": {}}), "utf-8")
    result = run.ok("second-moment", model_directory, "--corpus", corpus, "--preset", preset)
    assert re.findall(r"^\s*(\d)\s+(\d+)\s", result.output, re.MULTILINE) == [("1", "350"), ("3", "350")]


def test_second_moment_takes_the_shipped_text_only_where_it_is_good_enough(run: Run, model_directory: Path) -> None:
    result = run("second-moment", model_directory, "--layers", "1")
    assert result.exit_code == 2
    assert "--corpus" in result.output
    assert "needs a text" in result.output


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--layers", "7"], "--layers"),
        (["--tokens", "0"], "--tokens"),
        (["--threshold", "0"], "--threshold"),
        (["--corpus", "nowhere"], "--corpus"),
        (["--device", "gpu"], "--device"),
        (["--dtype", "half"], "--dtype"),
    ],
)
def test_second_moment_names_a_bad_argument(
    run: Run, model_directory: Path, corpus: Path, extra: list[str], message: str
) -> None:
    run.refused(message, "second-moment", model_directory, "--layers", "1", "--corpus", corpus, *extra)


def test_an_anchor_is_measured_once_and_printed_as_the_setting_that_an_edit_takes(
    run: Run, model_directory: Path, corpus: Path, facts_file: Path, tmp_path: Path
) -> None:
    model = (model_directory, "--facts", facts_file, "--corpus", corpus, "--layers", "1,2", "--set", "target.steps=3")
    method = ("--method", "alphaedit-nas-blue", "--set", "solver.threshold=100")
    result = run.ok("anchor", *model, *method)
    (found,) = re.findall(
        r"Measured on 3 facts\. To edit with it: --set target\.anchor=(1:[\d.]+,2:[\d.]+)", result.output
    )
    kept = sorted((tmp_path / "cache" / "reference_values").iterdir())
    assert len(kept) == 2
    assert found in run.ok("anchor", *model, *method).output
    other = run.ok("anchor", *model, *method, "--limit", 1).output
    assert "Measured on 1 facts" in other
    assert found not in other
    patch = tmp_path / "p.safetensors"
    run.ok(
        "edit", *model, *method, "--set", f"target.anchor={found}", "--out", patch, "--repeats", "last", "--no-verify"
    )
    recorded = Patch.load(patch).settings["target"]["anchor"]
    assert ",".join(f"{layer}:{norm:g}" for layer, norm in recorded) == found
    assert len(list((tmp_path / "cache" / "reference_values").iterdir())) == 4  # the edit measured nothing
    run.refused("--method memit: it has no anchor", "anchor", *model, "--method", "memit")


def test_methods_lists_every_method_and_setting(run: Run) -> None:
    result = run.ok("methods")
    for name in (*METHODS, "Boundary", "NullSpace", "2502.03748"):
        assert name in result.output
    assert "solver.weight" not in result.output
    output = run("methods", "--settings").output
    for name in ("target.steps", "solver.weight", "solver.threshold", str(Ridge().weight), "Largest number of loss"):
        assert name in output


def test_models_lists_models_and_families(run: Run) -> None:
    result = run.ok("models")
    for name in (
        "smollm2-135m",
        "gpt_neox",
        "gemma2",
        "mixtral",
        "hidden_size_per_layer_input",
        "llava",
        "model.text_model",
    ):
        assert name in result.output


def test_presets_lists_models_with_their_layers_and_variants(run: Run) -> None:
    result = run.ok("presets")
    for name in ("SmolLM2-135M", "Llama-3-8B-Instruct", "13, 14, 15, 16, 17", "large-batch-counterfact"):
        assert name in result.output


def test_presets_shows_the_settings_of_a_model_with_their_source(run: Run) -> None:
    result = run.ok("presets", "gpt-j-6b")
    shown = " ".join(result.output.split())
    for text in (
        "source arXiv:2502.03748",
        "target.learning_rate=0.5",
        "alphaedit-blue solver.threshold=0.02, solver.l2=95",
        "pmet-blue equal-settings solver.weight=15000",
        "solver.weight=4500",
    ):
        assert text in shown


def test_a_preset_that_does_not_exist_is_refused_with_a_suggestion(run: Run) -> None:
    run.refused("NAME: no preset 'gpt-j-7b'. Did you mean 'gpt-j-6b'?", "presets", "gpt-j-7b")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_command(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"factpatch {command}" in result.output or f"{command} [OPTIONS]" in result.output
    assert command in run("--help").output


def test_an_unknown_command_is_refused_with_a_suggestion(run: Run) -> None:
    run.refused("edit", "edti")


def test_the_version_is_printed(run: Run) -> None:
    assert factpatch.__version__ in run("--version").output


@pytest.mark.parametrize("place", ["config.json", "notes"])
def test_no_output_lands_in_the_model_it_was_made_from(
    place: str, run: Run, model_directory: Path, facts_file: Path
) -> None:
    before = sorted(path.name for path in model_directory.iterdir())
    inside = model_directory / place
    run.refused("lies in the model's directory", "verify", model_directory, "--facts", facts_file, "--report", inside)
    assert sorted(path.name for path in model_directory.iterdir()) == before
