"""The commands that make something else of a patch: `lora` and `compose`; and the card that `apply` writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.cli.conftest import Run
from transformers import AutoModelForCausalLM

from factpatch.patch.patch import Patch, total_shifts

# --- lora


def test_lora_writes_what_peft_loads(run: Run, patch: Path, model_directory: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    result = run.ok("lora", patch, "--out", tmp_path / "lora")
    one, two = (
        torch.linalg.svdvals(shift.up @ shift.down) for shift in total_shifts(Patch.load(patch).batches).values()
    )
    # The third fact is about the first one's subject, whose key is the same in layer 1 but for rounding: as far as that
    # shows in float32, it counts.
    assert one[2] < 1e-6 * one[0]
    assert two[2] > 1e-4 * two[0]
    rank = int((one > torch.finfo(torch.float32).eps * one[0]).sum())
    for expected in (
        f"Layer 1: rank {rank}\n",
        "Layer 2: rank 3",
        "kB; rank 3)",
        "peft.PeftModel.from_pretrained(model, ",
    ):
        assert expected in result.output
    model, edited = (AutoModelForCausalLM.from_pretrained(model_directory) for _ in range(2))
    Patch.load(patch).apply(edited)
    adapted = peft.PeftModel.from_pretrained(model, str(tmp_path / "lora"))
    tokens = torch.arange(2, 30)[None]
    with torch.inference_mode():
        torch.testing.assert_close(adapted(tokens).logits, edited(tokens).logits, rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None  # a directory of this machine is nobody else's business
    assert "The adapter does not name its base model" in result.output
    assert "--base-model-name NAME" in result.output


@pytest.mark.parametrize("origin", ["someone/base", "", "/models/tiny"])
def test_an_adapter_names_its_model_by_the_hub_or_as_it_was_told(
    run: Run, patch: Path, model_directory: Path, tmp_path: Path, origin: str
) -> None:
    peft = pytest.importorskip("peft")
    whole = Patch.load(patch)
    replace(whole, config={**whole.config, "_name_or_path": origin}).save(patch)

    def named(*options: object) -> tuple[object, str]:
        out = tmp_path / f"lora{len(list(tmp_path.glob('lora*')))}"
        output = run.ok("lora", patch, "--out", out, *options).output
        return json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"], output

    name, output = named()
    assert name == ("someone/base" if origin == "someone/base" else None)
    assert ("does not name its base model" in output) == (name is None)
    name, output = named("--base-model-name", model_directory)
    assert name == str(model_directory)
    assert "does not name" not in output
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "lora1"))
    assert type(loaded.get_base_model()).__name__ == "LlamaForCausalLM"
    whole.to_lora(tmp_path / "lora2", base_model_name="x/y")
    assert json.loads((tmp_path / "lora2" / "adapter_config.json").read_text())["base_model_name_or_path"] == "x/y"
    run.refused("--base-model-name: is blank", "lora", patch, "--out", tmp_path / "l", "--base-model-name", " ")
    with pytest.raises(ValueError, match="base_model_name=' ': must not be blank"):
        whole.to_lora(tmp_path / "l", base_model_name=" ")
    assert not (tmp_path / "l").exists()


def test_lora_without_a_low_rank_asks_for_one_and_tells_the_error(run: Run, rect: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run.refused("--rank: rank=None: the patch is not of low rank", "lora", rect, "--out", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    result = run.ok("lora", rect, "--out", tmp_path / "lora", "--rank", 4)
    assert "layer 1: rank 4 of 32, relative error" in result.stderr
    assert "Layer 2: rank 4" in result.stdout
    assert len(load_file(tmp_path / "lora" / "adapter_model.safetensors")) == 4


def test_lora_names_a_bad_argument(run: Run, patch: Path, tmp_path: Path) -> None:
    cases: dict[str, list[object]] = {
        f"PATCH: {tmp_path / 'nowhere'}: no such file": [tmp_path / "nowhere", "--out", tmp_path / "lora"],
        f"--out {tmp_path}: the directory is not empty": [patch, "--out", tmp_path],
        "--rank": [patch, "--out", tmp_path / "lora", "--rank", 0],
    }
    for message, arguments in cases.items():
        run.refused(message, "lora", *arguments)
    assert not (tmp_path / "lora").exists()


# --- compose


def test_composed_a_patch_does_the_same_and_is_undone_with_its_base(
    run: Run, patch: Path, model_directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sum.safetensors"
    result = run.ok("compose", patch, "--out", out)
    for expected in ("Layer 1: rank 3", "1 patch, 2 facts in layers 1, 2", "only with --base"):
        assert expected in result.output
    both, composed = (AutoModelForCausalLM.from_pretrained(model_directory) for _ in range(2))
    Patch.load(patch).apply(both)
    Patch.load(out).apply(composed)
    for name, tensor in both.state_dict().items():
        torch.testing.assert_close(composed.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    run.ok("apply", model_directory, out, "--out", tmp_path / "edited")
    run.refused("give base", "undo", tmp_path / "edited", out, "--out", tmp_path / "restored", code=1)
    result = run("undo", tmp_path / "edited", out, "--out", tmp_path / "restored", "--base", model_directory)
    assert "bit-identical" in result.output


def test_independent_patches_compose_unless_they_edit_the_same_fact(
    run: Run, patch: Path, edit_arguments: list[object], facts_file: Path, tmp_path: Path
) -> None:
    facts = json.loads(facts_file.read_text())
    facts_file.write_text(json.dumps([{**fact, "subject": fact["subject"] + " II"} for fact in facts[:2]]))
    other, out = tmp_path / "other.safetensors", tmp_path / "sum.safetensors"
    run.ok(*edit_arguments, "--out", other, "--no-verify", "--method", "alphaedit")
    result = run.ok("compose", patch, other, "--out", out)
    assert "2 patches, 4 facts in layers 1, 2" in result.output
    assert Patch.load(out).method == "memit-blue + alphaedit"
    run.refused("PATCH: patches[1] edits", "compose", other, other, "--out", tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("option", [("--rank", 2), ("--energy", 0.9)])
def test_compose_shrinks_and_says_what_is_lost(
    run: Run, rect: Path, tmp_path: Path, option: tuple[str, object]
) -> None:
    out = tmp_path / "small.safetensors"
    result = run.ok("compose", rect, "--out", out, *option)
    shrunk = Patch.load(out)
    for layer, kept in shrunk.settings["shrunk"]["layers"].items():
        assert f"Layer {layer}: rank {kept['rank']}, relative error {100 * kept['error']:.2g} %" in result.output
    if option[0] == "--rank":
        assert shrunk.num_bytes < Patch.load(rect).num_bytes
    shown = run.ok("show", out)
    assert "shrunk" in shown.output


def test_compose_rebases_only_when_asked_and_warns_of_other_weights(
    run: Run, patch: Path, model_directory: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    result = run.ok("compose", patch, "--out", out, "--rebase", model_directory)
    assert "are those that were edited" in result.output
    assert Patch.load(out).sealed
    tuned = AutoModelForCausalLM.from_pretrained(model_directory)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.001)
    run("apply", model_directory, patch, "--out", tmp_path / "tuned")  # for the tokenizer
    tuned.save_pretrained(tmp_path / "tuned")
    assert run("apply", tmp_path / "tuned", patch, "--out", tmp_path / "edited").exit_code == 1
    result = run.ok("compose", patch, "--out", other, "--rebase", tmp_path / "tuned")
    assert "are not those that were edited: verify the facts" in result.output
    assert Patch.load(other).config["_name_or_path"] == str(tmp_path / "tuned")
    result = run.ok("apply", tmp_path / "tuned", other, "--out", tmp_path / "edited")


def test_compose_names_a_bad_argument(run: Run, patch: Path, tmp_path: Path) -> None:
    out = tmp_path / "sum.safetensors"
    cases: dict[str, list[object]] = {
        f"PATCH: {tmp_path / 'nowhere'}: no such file": [patch, tmp_path / "nowhere", "--out", out],
        "--out": [patch, "--out", tmp_path / "no" / "folder"],
        f"--out {patch}: is one of the patches": [patch, "--out", patch],
        "--rank 2, --energy 0.5: give one of them": [patch, "--out", out, "--rank", 2, "--energy", 0.5],
        "--energy 1.5: must be a share above 0": [patch, "--out", out, "--energy", 1.5],
        "--dtype float32: applies to the model of --rebase": [patch, "--out", out, "--dtype", "float32"],
        "--dtype": [patch, "--out", out, "--dtype", "half", "--rebase", "no-such-model"],
    }
    whole = patch.read_bytes()
    for message, arguments in cases.items():
        run.refused(message, "compose", *arguments)
    assert not out.exists()
    assert patch.read_bytes() == whole


# --- the model card


def test_apply_and_edit_write_a_card_and_undo_writes_none(
    run: Run, edit_arguments: list[object], model_directory: Path, tmp_path: Path
) -> None:
    patch = tmp_path / "p.safetensors"
    saved = ("--save-model", tmp_path / "saved")
    run.ok(*edit_arguments, "--out", patch, "--no-verify", *saved)
    run.ok("apply", model_directory, patch, "--out", tmp_path / "applied")
    cards = [(tmp_path / name / "README.md").read_text("utf-8") for name in ("saved", "applied")]
    assert cards[0] == cards[1]
    assert "The mother tongue of Danielle Darrieux is | Italian | French |" in cards[0]
    assert str(model_directory) not in cards[0]
    restored = tmp_path / "restored"
    run.ok("undo", tmp_path / "applied", patch, "--out", restored, "--base", model_directory)
    assert not (restored / "README.md").exists()
