"""`factpatch export`: what each format holds, the commands that are printed, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from tests.cli.conftest import Run, editing, interrupt
from tests.ggufs import write_gguf
from tests.models import save_tiny, tiny_model
from transformers import AutoModelForCausalLM

from factpatch.model.architectures import alike
from factpatch.model.gguf import open_gguf
from factpatch.model.loading import load_language_model
from factpatch.patch.patch import Patch

NAMES = {layer: f"blk.{layer}.ffn_down.weight" for layer in (1, 2)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The model that `patch` was made on, as a GGUF file."""
    return write_gguf(tmp_path / "base.gguf", tiny_model("llama"), "F32")


def words(result: Any, engine: str) -> list[str]:
    """The first command of an engine as a shell takes it."""
    (line,) = (line for line in result.stdout.splitlines() if line.strip().startswith(f"{engine}:"))
    return shlex.split(line.split(":", 1)[1])


def added(path: Path) -> dict[str, torch.Tensor]:
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in GGUFReader(path).tensors}
    return {name: tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"] for name in NAMES.values()}


# --- the four formats


def test_peft_is_what_lora_writes(run: Run, patch: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    result = run.ok("export", patch, "--to", "peft", "--out", tmp_path / "one")
    run.ok("lora", patch, "--out", tmp_path / "other")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    rank = json.loads((tmp_path / "one" / "adapter_config.json").read_text())["r"]
    assert f"rank {rank})" in result.stdout
    assert words(result, "vLLM")[-5:] == [
        "--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"edited={tmp_path / 'one'}",
    ]  # fmt: skip
    assert "this one has 2 of 4. Export it with --every-layer" in result.stdout


def test_a_peft_adapter_of_a_gguf_model_leaves_its_base_open(run: Run, patch: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    whole = Patch.load(patch)
    for index, (origin, base) in enumerate((("some.gguf", "BASE"), ("someone/base", "someone/base"))):
        replace(whole, config={**whole.config, "_name_or_path": origin}).save(patch)
        result = run.ok("export", patch, "--to", "peft", "--out", tmp_path / str(index))
        assert words(result, "vLLM")[:3] == ["vllm", "serve", base]
        assert ("does not name its base model" in result.stdout) is (base == "BASE")


def test_with_every_layer_a_peft_adapter_is_one_that_tgi_takes(run: Run, patch: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    result = run.ok("export", patch, "--to", "peft", "--out", tmp_path / "lora", "--every-layer")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {name.split(".")[4] for name in tensors} == {"0", "1", "2", "3"}
    assert words(result, "TGI")[-2:] == ["--lora-adapters", f"edited={tmp_path / 'lora'}"]


def test_gguf_lora_holds_the_shift_and_names_the_base_as_a_placeholder(run: Run, patch: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora.gguf"
    result = run.ok("export", patch, "--to", "gguf-lora", "--out", out)
    shifts = {layer: sum(batch.shifts[layer].matrix() for batch in Patch.load(patch).batches) for layer in NAMES}
    for layer, name in NAMES.items():
        torch.testing.assert_close(added(out)[name].double(), shifts[layer], rtol=1e-4, atol=1e-6)
    assert words(result, "llama.cpp") == ["llama-server", "-m", "BASE.gguf", "--lora", str(out)]
    assert words(result, "Ollama") == ["ollama", "create", "edited", "-f", str(tmp_path / "lora.Modelfile")]
    assert "ollama run edited" in result.stdout
    assert "BASE.gguf stands for the model that the patch was made on" in result.stdout
    assert (tmp_path / "lora.Modelfile").read_text() == "FROM BASE.gguf\nADAPTER ./lora.gguf\n"


def test_gguf_lora_checks_a_base_that_is_given_and_names_it(run: Run, patch: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora.gguf"
    result = run.ok("export", patch, "--to", "gguf-lora", "--out", out, "--base", base)
    assert words(result, "llama.cpp") == ["llama-server", "-m", str(base), "--lora", str(out)]
    assert (tmp_path / "lora.Modelfile").read_text() == f"FROM {base}\nADAPTER ./lora.gguf\n"
    assert "BASE.gguf" not in result.stdout


def test_the_base_of_an_ollama_model_is_its_name(
    run: Run, patch: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "ollama"
    blob = models / "blobs" / f"sha256-{'ab' * 32}"
    manifest = models / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "1b"
    for folder in (blob.parent, manifest.parent):
        folder.mkdir(parents=True)
    shutil.copy(base, blob)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'ab' * 32}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    monkeypatch.setenv("OLLAMA_MODELS", str(models))
    result = run.ok("export", patch, "--to", "gguf-lora", "--out", tmp_path / "one.gguf", "--base", "tiny:1b")
    assert (tmp_path / "one.Modelfile").read_text() == "FROM tiny:1b\nADAPTER ./one.gguf\n"
    assert words(result, "llama.cpp")[2] == str(blob)
    # A patch that was made on it knows its name.
    whole = Patch.load(patch)
    replace(whole, config={**whole.config, "_name_or_path": "tiny:1b"}).save(patch)
    run.ok("export", patch, "--to", "gguf-lora", "--out", tmp_path / "other.gguf")
    assert (tmp_path / "other.Modelfile").read_text() == "FROM tiny:1b\nADAPTER ./other.gguf\n"


@pytest.mark.parametrize("cut", [("--rank", 1), ("--energy", 0.5)])
def test_what_is_cut_is_said_by_layer(run: Run, rect: Path, tmp_path: Path, cut: tuple[str, object]) -> None:
    result = run.ok("export", rect, "--to", "gguf-lora", "--out", tmp_path / "lora.gguf", *cut)
    factors = Patch.load(rect).factors(**{cut[0].removeprefix("--"): cut[1]})
    for layer, rank in factors.ranks.items():
        assert f"layer {layer}: rank {rank} of 32, relative error {100 * factors.error(layer):.2g} %" in result.stderr
    assert f"relative error at most {100 * factors.largest_error():.2g} %)" in result.stdout


def test_gguf_is_the_base_with_the_edit_in_it(run: Run, patch: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged.gguf"
    result = run.ok("export", patch, "--to", "gguf", "--out", out, "--base", base)
    edited = tiny_model("llama")
    Patch.load(patch).apply(edited)
    found = load_language_model(out).model.state_dict()
    for name, weight in edited.state_dict().items():
        assert torch.equal(found[name], weight), name
    assert "blk.1.ffn_down.weight: f32 -> f32, rounding changes the shift by 0 %" in result.stdout
    assert words(result, "llama.cpp") == ["llama-server", "-m", str(out)]
    assert (tmp_path / "merged.Modelfile").read_text() == "FROM ./merged.gguf\n"
    half = tmp_path / "half.gguf"
    result = run.ok("export", patch, "--to", "gguf", "--out", half, "--base", base, "--tensor-type", "f16")
    assert "blk.1.ffn_down.weight: f32 -> f16" in result.stdout
    types = {tensor.name: tensor.tensor_type.name for tensor in open_gguf(half).reader.tensors}
    assert {name for name, kind in types.items() if kind == "F16"} == set(NAMES.values())


def test_another_quantization_needs_rebase(run: Run, patch: Path, tmp_path: Path) -> None:
    other = write_gguf(tmp_path / "other.gguf", tiny_model("llama"), "Q8_0")
    for to in ("gguf", "gguf-lora"):
        arguments = ("export", patch, "--to", to, "--out", tmp_path / f"{to}.gguf", "--base", other)
        said = run.refused("are not those that the patch was made for", *arguments)
        assert "--base:" in said
        assert "If it is another quantization of that model, add --rebase" in said
        assert sorted(path.name for path in tmp_path.glob(f"{to}.*")) == []
        result = run.ok(*arguments, "--rebase")
        assert re.search(r"\d+ of \d+ facts? said", result.stdout), result.stdout
    assert (tmp_path / "gguf.gguf").exists()
    assert (tmp_path / "gguf-lora.Modelfile").exists()


def test_safetensors_is_what_apply_writes(run: Run, patch: Path, model_directory: Path, tmp_path: Path) -> None:
    arguments = ("--to", "safetensors", "--base", model_directory)
    result = run.ok("export", patch, *arguments, "--out", tmp_path / "one")
    run.ok("apply", model_directory, patch, "--out", tmp_path / "other")
    for path in (tmp_path / "other").iterdir():
        assert (tmp_path / "one" / path.name).read_bytes() == path.read_bytes()
    assert words(result, "vLLM") == ["vllm", "serve", str(tmp_path / "one")]
    changed = tmp_path / "changed.safetensors"
    result = run.ok("export", patch, *arguments, "--out", changed, "--only-changed")
    assert "model.load_state_dict(safetensors.torch.load_file(" in result.stdout
    model = AutoModelForCausalLM.from_pretrained(model_directory)
    found = model.load_state_dict(load_file(changed), strict=False)
    assert found.unexpected_keys == []
    edited = load_file(tmp_path / "one" / "model.safetensors")
    for name, weight in edited.items():
        assert torch.equal(model.state_dict()[name], weight)


def test_safetensors_of_other_weights_needs_rebase(run: Run, patch: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "tuned", tmp_path / "edited"
    save_tiny(other, "llama", seed=1)
    arguments = ("export", patch, "--to", "safetensors", "--out", out, "--base", other)
    run.refused("are not those that the patch was made for", *arguments, code=1)
    assert not out.exists()
    run.ok(*arguments, "--rebase")
    shift = sum(batch.shifts[1].matrix() for batch in Patch.load(patch).batches)
    name = "model.layers.1.mlp.down_proj.weight"
    expected = tiny_model("llama", seed=1).state_dict()[name].double() + shift
    torch.testing.assert_close(load_file(out / "model.safetensors")[name].double(), expected, rtol=1e-5, atol=1e-6)


# --- what is refused


def test_options_of_other_formats_are_refused(run: Run, patch: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases: dict[str, tuple[object, ...]] = {
        "--rank 3: is for --to peft or gguf-lora, and this is --to gguf;": ("gguf", "--base", base, "--rank", 3),
        "--energy 0.9: is for --to peft or": ("safetensors", "--base", base, "--energy", 0.9),
        "--base base: is for --to gguf-lora or gguf or safetensors, and this is --to peft": ("peft", "--base", "base"),
        "--tensor-type f32: is for --to gguf, and this is --to gguf-lora": ("gguf-lora", "--tensor-type", "f32"),
        "--only-changed: is for --to safetensors": ("gguf", "--base", base, "--only-changed"),
        "--base-model-name a/b: is for --to peft": ("gguf-lora", "--base-model-name", "a/b"),
        "--every-layer: is for --to peft": ("gguf-lora", "--every-layer"),
        "--base: --to gguf writes a whole model; give the unedited one": ("gguf",),
        "--base: --to safetensors writes a whole model": ("safetensors",),
        "--rebase: applies to the model of --base": ("gguf-lora", "--rebase"),
        "--rank 2, --energy 0.5: give one of them": ("peft", "--rank", 2, "--energy", 0.5),
        "--energy: energy=1.5: must be a share above 0": ("gguf-lora", "--energy", 1.5),
        "--base-model-name: is blank": ("peft", "--base-model-name", " "),
        "'onnx' is not one of": ("onnx",),
    }
    for message, arguments in cases.items():
        run.refused(message, "export", patch, "--out", out, "--to", *arguments)
    assert not out.exists()


def test_outputs_that_exist_are_kept(run: Run, patch: Path, base: Path, tmp_path: Path) -> None:
    out, beside = tmp_path / "lora.gguf", tmp_path / "lora.Modelfile"
    for path in (out, beside):
        path.write_text("precious")
        run.refused(f"--out {path}: there is such a file already", "export", patch, "--to", "gguf-lora", "--out", out)
        assert path.read_text() == "precious"
        path.unlink()
    run.refused("there is such a file already", "export", patch, "--to", "gguf", "--base", base, "--out", base)
    run.refused("the directory is not empty", "export", patch, "--to", "peft", "--out", tmp_path)
    run.refused("does not exist; make it first", "export", patch, "--to", "gguf-lora", "--out", tmp_path / "no" / "a")


def test_a_base_that_is_none_or_another_is_refused(run: Run, patch: Path, base: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(base.read_bytes()[:-5000])
    qwen = write_gguf(tmp_path / "qwen.gguf", tiny_model("qwen2"))
    cases = {
        "no GGUF file, no directory with one, and no model that Ollama has here": tmp_path / "nowhere.gguf",
        "cannot be read": cut,
        "its architecture is 'qwen2', and the patch was made for 'llama'": qwen,
    }
    for message, other in cases.items():
        for to in ("gguf", "gguf-lora"):
            out = tmp_path / f"{to}-out.gguf"
            run.refused(message, "export", patch, "--to", to, "--out", out, "--base", other, "--rebase")
            assert not list(tmp_path.glob("*-out.*"))


def test_a_family_that_llama_cpp_lacks_is_refused(run: Run, patch: Path, base: Path, tmp_path: Path) -> None:
    whole = Patch.load(patch)
    replace(whole, config=tiny_model("gptj").config.to_dict()).save(patch)
    out = tmp_path / "out.gguf"
    for to in ("gguf-lora", "gguf"):
        said = run.refused(
            "--to: model_type='gptj': llama.cpp and Ollama cannot run such models",
            "export", patch, "--to", to, "--out", out, *(("--base", base) if to == "gguf" else ()),
        )  # fmt: skip
        assert "--to peft" in said
    assert not list(tmp_path.glob("out.*"))


def test_a_session_is_exported_once_it_is_finished(
    run: Run, model_directory: Path, facts_file: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, out = tmp_path / "session", tmp_path / "lora.gguf"
    edit = [*editing(model_directory, facts_file, corpus), "--no-verify", "--session", session]
    with monkeypatch.context() as patched:
        interrupt(patched, "factpatch.editor.optimize_values", calls=2)
        run.refused("1 of 2 batches kept", *edit, code=130)
    export = ("export", session, "--to", "gguf-lora", "--out", out)
    said = run.refused("PATCH:", *export)
    assert f"factpatch edit --resume {session}" in said
    run.refused("PATCH:", "lora", session, "--out", tmp_path / "lora")
    assert not list(tmp_path.glob("lora*"))
    run.ok("edit", "--resume", session, "--no-verify")
    run.ok(*export)
    assert len(added(out)) == 2
    run.refused("session's directory", *export[:-1], session / "lora.gguf")


def test_a_failed_write_takes_the_modelfile_with_it(
    run: Run, patch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf import GGUFWriter

    def fail(self: GGUFWriter, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GGUFWriter, "write_tensors_to_file", fail)
    run.refused("disk is full", "export", patch, "--to", "gguf-lora", "--out", tmp_path / "lora.gguf", code=1)
    assert not list(tmp_path.glob("lora*"))
    assert not list(tmp_path.glob(".factpatch*"))


def test_apply_to_other_weights_asks_about_the_facts(run: Run, patch: Path, tmp_path: Path) -> None:
    other = write_gguf(tmp_path / "other.gguf", tiny_model("llama"), "Q8_0")
    arguments = ("apply", other, patch, "--out", tmp_path / "edited")
    run.refused("are not those that the patch was made for", *arguments, code=1)
    assert not (tmp_path / "edited").exists()
    result = run.ok(*arguments, "--rebase")
    assert re.search(r"\d+ of \d+ facts? said", result.stdout), result.stdout
    edited = load_file(tmp_path / "edited" / "model.safetensors")
    loaded, model = Patch.load(patch), load_language_model(str(other)).model
    loaded.rebase(model).apply(model)
    assert all(torch.equal(edited[name], weight) for name, weight in model.state_dict().items() if name in edited)


def test_a_file_that_only_has_the_name_of_the_base_is_not_taken_for_it(
    run: Run, patch: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Patch.load(patch)
    named = tmp_path / "named.safetensors"
    replace(record, config={**record.config, "_name_or_path": "base.gguf"}).save(named)
    for folder, taken in ((base.parent, True), (tmp_path / "elsewhere", False)):
        folder.mkdir(exist_ok=True)
        if not taken:
            write_gguf(folder / "base.gguf", tiny_model("llama", seed=5))
        monkeypatch.chdir(folder)
        result = run.ok("export", named, "--to", "gguf-lora", "--out", folder / "facts.gguf")
        assert ("BASE.gguf" in result.stdout) != taken
        assert ("BASE.gguf" in (folder / "facts.Modelfile").read_text()) != taken


def test_an_output_with_the_name_of_its_modelfile_is_refused(run: Run, patch: Path, tmp_path: Path) -> None:
    arguments = ("export", patch, "--to", "gguf-lora", "--out", tmp_path / "x.Modelfile")
    run.refused("is the name of the Modelfile for Ollama", *arguments)
    assert not list(tmp_path.glob("x*"))


def test_zeros_for_every_layer_are_refused_where_layers_differ(run: Run, patch: Path, tmp_path: Path) -> None:
    whole = Patch.load(patch)
    assert alike(whole.config, 4)
    mixture = {**whole.config, "experts_of": {"1": 4, "2": 4, "3": 4}}  # the first layer has none
    assert not alike(mixture, 4)
    assert alike({**mixture, "experts_of": {str(layer): 4 for layer in range(4)}}, 4)
    assert not alike({**whole.config, "edited_at": {"0": "mlp.down_proj", "1": "mlp.experts"}}, 4)
    replace(whole, config=mixture).save(patch)
    arguments = ("export", patch, "--to", "peft", "--out", tmp_path / "lora", "--every-layer")
    run.refused("--every-layer: some layers of this model have experts and others none", *arguments)
