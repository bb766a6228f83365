"""Quantized checkpoints of real packages: edited, verified and rebased as they run, and never merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import Run, editing
from tests.models import CONFIGS, SENTENCES, tiny_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from factpatch import Editor, Fact, Patch
from factpatch.model.language_model import editable_weights

LAYER = "model.layers.1.mlp.down_proj"


def nf4(directory: Path, original: Path, double: bool = False) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'factpatch[quantized]'")
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=double,
    )
    _saved(directory, original, how)


def double_nf4(directory: Path, original: Path) -> None:
    nf4(directory, original, double=True)


def int8(directory: Path, original: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'factpatch[quantized]'")
    from transformers import BitsAndBytesConfig

    _saved(directory, original, BitsAndBytesConfig(load_in_8bit=True))


def torchao(directory: Path, original: Path) -> None:
    pytest.importorskip("torchao", reason="pip install 'factpatch[quantized]'")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    _saved(directory, original, TorchAoConfig(Int8WeightOnlyConfig()))


def compressed(directory: Path, original: Path, scheme: str = "W4A16") -> None:
    pytest.importorskip("compressed_tensors", reason="pip install 'factpatch[quantized]'")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model = AutoModelForCausalLM.from_pretrained(original)
    wanted = preset_name_to_scheme(scheme, ["Linear"])
    size = wanted.weights.group_size = 32 if wanted.weights.group_size else None
    apply_quantization_config(model, QuantizationConfig(config_groups={"all": wanted}, ignore=["lm_head"]))
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            weight = module.weight.detach()
            groups = weight.reshape(len(weight), -1, size or weight.shape[1])
            scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), wanted.weights)
            module.weight_scale.data.copy_(scale)
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero)
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(directory)
    compressor.update_config(str(directory))
    tiny_tokenizer().save_pretrained(directory)


def compressed_8_bit(directory: Path, original: Path) -> None:
    """Activations in 8 bits as well, through which its package passes no gradients."""
    compressed(directory, original, "W8A8")


def _saved(directory: Path, original: Path, how: Any) -> None:
    AutoModelForCausalLM.from_pretrained(original, quantization_config=how).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose layers are large enough for blocks of 64 numbers in every row."""
    directory, tokenizer = tmp_path_factory.mktemp("models") / "original", tiny_tokenizer()
    sizes = {**CONFIGS["llama"], "hidden_size": 64, "intermediate_size": 128}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), initializer_range=0.15, **ids, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


EDITABLE = (nf4, double_nf4, int8, torchao, compressed)
Make = Callable[[Path, Path], None]


def logits(model: Any) -> Tensor:
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits[0] for text in SENTENCES])


@pytest.mark.parametrize("make", EDITABLE)
def test_a_quantized_model_is_edited_and_verified_as_it_runs(
    make: Make, run: Run, original: Path, facts_file: Path, corpus: Path, tmp_path: Path
) -> None:
    model, out, report = tmp_path / "model", tmp_path / "p", tmp_path / "report.json"
    make(model, original)
    kept = {path.name: path.read_bytes() for path in model.iterdir()}
    run.ok(*editing(model, facts_file, corpus), "--out", out, "--report", report)
    patch = Patch.load(out)
    assert (patch.weight_dtype, patch.load_dtype, patch.layers) == (torch.float32, torch.float32, (1, 2))
    assert patch.config["quantization_config"]
    edited = json.loads(report.read_text())["facts"]["rows"]
    # The patch is of this very base: another process that loads it finds the same weights and the same answers.
    run.ok("verify", model, "--facts", facts_file, "--patch", out, "--report", report)
    assert [fact["after"] for fact in json.loads(report.read_text())["facts"]] == [fact["after"] for fact in edited]
    moved = [fact["before"]["nll_new"] - fact["after"]["nll_new"] for fact in edited]
    assert sum(moved) > 0.1
    assert {path.name: path.read_bytes() for path in model.iterdir()} == kept


@pytest.mark.parametrize("make", EDITABLE)
def test_the_weights_are_those_of_the_package_itself(make: Make, original: Path, tmp_path: Path) -> None:
    make(tmp_path / "model", original)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    found = editable_weights(model, [1])[1].clone()
    layer = model.get_submodule(LAYER)
    if make is int8:
        import bitsandbytes

        scale = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
        own = bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.data, scale)
        torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-5)  # its kernel gives float16
    elif hasattr(layer.weight, "quant_state"):
        import bitsandbytes

        own = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(found, own)
    else:
        own = layer.weight.dequantize() if make is torchao else layer.weight
        torch.testing.assert_close(found, own.detach(), rtol=0, atol=1e-7)
    whole = AutoModelForCausalLM.from_pretrained(original).get_submodule(LAYER).weight.detach()
    error = float((found - whole).norm() / whole.norm())
    assert 1e-3 < error < (0.02 if make in (int8, torchao) else 0.15)


def test_a_model_that_was_given_before_it_answered_can_be_edited_afterwards(
    original: Path, corpus: Path, tmp_path: Path
) -> None:
    nf4(tmp_path / "model", original)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    options: dict[str, Any] = {"critical_layers": [1, 2], "settings": {"target.steps": 2}, "progress": False}
    editor = Editor(model, tiny_tokenizer(), corpus=[corpus.read_text()], **options)
    for fact in (Fact("The capital of {} is", "Finland", "Rome"), Fact("{} plays the sport of", "Messi", "basketball")):
        before = logits(model)
        editor.edit([fact])
        assert float((logits(model) - before).abs().max()) > 0.01
    assert len(editor.edits) == 2


def test_an_adapter_on_the_quantized_base_is_the_edited_model(
    run: Run, original: Path, facts_file: Path, corpus: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    nf4(tmp_path / "model", original)
    run.ok(*editing(tmp_path / "model", facts_file, corpus), "--out", tmp_path / "p", "--no-verify")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    editable_weights(model, [1])
    before = logits(model)
    run.ok("export", tmp_path / "p", "--to", "peft", "--out", tmp_path / "adapter")
    with Patch.load(tmp_path / "p").applied(model):
        edited = logits(model)
    assert torch.equal(logits(model), before)
    assert float((edited - before).abs().max()) > 0.1
    served = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(served), edited, rtol=0, atol=1e-3)


def test_a_session_on_a_quantized_model_is_resumed_and_undone(
    run: Run, original: Path, facts_file: Path, corpus: Path, tmp_path: Path
) -> None:
    nf4(tmp_path / "model", original)
    edit = editing(tmp_path / "model", facts_file, corpus)
    run.ok(*edit, "--session", tmp_path / "s", "--out", tmp_path / "p", "--no-verify")
    run.ok("undo", tmp_path / "s", "--to", "1")
    other = tmp_path / "one.json"
    other.write_text(json.dumps(json.loads(facts_file.read_text())[2:]))
    edit[edit.index("--facts") + 1] = other
    run.ok(*edit, "--session", tmp_path / "s", "--out", tmp_path / "again", "--no-verify")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "p").read_bytes()


@pytest.mark.parametrize("make", [nf4, compressed_8_bit])
def test_a_patch_of_the_original_is_rebased_and_verified_on_the_quantized_model(
    make: Make, run: Run, original: Path, facts_file: Path, corpus: Path, tmp_path: Path
) -> None:
    model, out, rebased = tmp_path / "model", tmp_path / "p", tmp_path / "rebased"
    make(model, original)
    run.ok(*editing(original, facts_file, corpus), "--out", out, "--no-verify")
    verify = ("verify", model, "--facts", facts_file)
    run.refused("factpatch rebase MODEL PATCH --out NEW", *verify, "--patch", out, code=1)
    run.ok("rebase", model, out, "--out", rebased)
    report = tmp_path / "report.json"
    run.ok(*verify, "--patch", rebased, "--report", report)
    facts = json.loads(report.read_text())["facts"]
    assert sum(fact["before"]["nll_new"] - fact["after"]["nll_new"] for fact in facts) > 0.1


def test_what_passes_no_gradients_is_refused_before_any_work(
    run: Run, original: Path, facts_file: Path, corpus: Path, tmp_path: Path
) -> None:
    compressed_8_bit(tmp_path / "model", original)
    edit = editing(tmp_path / "model", facts_file, corpus)
    said = run.refused("is quantized (compressed-tensors), and values cannot", *edit, "--out", tmp_path / "p", code=1)
    assert "factpatch rebase MODEL PATCH --out NEW" in said
    assert not (tmp_path / "p").exists()


def test_a_quantized_model_is_not_written_merged(
    run: Run, original: Path, facts_file: Path, corpus: Path, tmp_path: Path
) -> None:
    model, out = tmp_path / "model", tmp_path / "p"
    nf4(model, original)
    edit, merged = editing(model, facts_file, corpus), tmp_path / "merged"
    run.refused("--save-model: ", *edit, "--out", out, "--save-model", merged)
    assert not out.exists()
    run.ok(*edit, "--out", out, "--no-verify")
    for command in (
        ("apply", model, out),
        ("undo", model, out),
        ("export", out, "--to", "safetensors", "--base", model),
    ):
        result = run(*command, "--out", merged)
        assert result.exit_code in (1, 2)
        said = " ".join(result.output.split())
        assert "cannot be merged into its weights" in said
        assert "factpatch export PATCH --to peft" in said
    assert not merged.exists()


def test_a_quantized_model_is_not_loaded_in_float64(run: Run, original: Path, facts_file: Path, tmp_path: Path) -> None:
    nf4(tmp_path / "model", original)
    arguments = ("verify", tmp_path / "model", "--facts", facts_file, "--dtype", "float64")
    run.refused("its layers do not compute in float64 (exact mode)", *arguments, code=1)
