"""What a command prints when the machine is too small, a text is no text, or a model is broken."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.cli.conftest import Run
from typer.testing import CliRunner

from factpatch.cli.main import _Handler, app
from factpatch.model import loading


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "error: memory does not suffice. Free some, raise the limit (ulimit -v)"),
        (MemoryError("Unable to allocate 3 GiB"), "--batch-size): Unable to allocate 3 GiB."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "error: memory does not suffice"),
        (RuntimeError("can't start new thread"), "error: no thread can be started: memory does not suffice"),
        (OSError(12, "Cannot allocate memory"), "error: memory does not suffice"),
        (RecursionError("maximum recursion depth exceeded"), "error: something that was read is nested too deeply"),
        (RuntimeError("anything else"), "error: anything else"),
        (KeyError("subject"), "error: KeyError: 'subject' (factpatch --debug shows where)"),
    ],
    ids=repr,
)
def test_what_the_machine_lacks_is_said_with_what_to_do(
    run: Run, model_directory: Path, facts_file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def failing(*given: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(loading, "load_language_model", failing)
    run.refused(said, "verify", model_directory, "--facts", facts_file, code=1)


@pytest.mark.parametrize("option", ["--corpus", "--perplexity-text"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe" * 100, "is no text in UTF-8"),
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs"),
        (None, "is a folder"),
    ],
)
def test_a_text_that_is_none_is_refused_with_its_option_and_file(
    run: Run, edit_arguments: list[object], tmp_path: Path, option: str, content: bytes | None, said: str
) -> None:
    path = tmp_path / "text.txt"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    output = run.refused(said, *edit_arguments, option, path, "--out", tmp_path / "p")
    assert f"error: {option}" in output
    assert "text.txt" in output
    assert not (tmp_path / "p").exists()


def test_a_broken_model_is_refused_by_every_command_that_loads_one(
    run: Run, model_directory: Path, edit_arguments: list[object], facts_file: Path, tmp_path: Path
) -> None:
    patch, out = tmp_path / "p", tmp_path / "out"
    run.ok(*edit_arguments, "--out", patch, "--no-verify")
    broken = shutil.copytree(model_directory, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    commands: list[list[object]] = [
        ["edit", broken, *edit_arguments[2:], "--out", out],
        ["verify", broken, "--facts", facts_file],
        ["apply", broken, patch, "--out", out],
        ["undo", broken, patch, "--base", model_directory, "--out", out],
        ["compose", patch, "--rebase", broken, "--out", out],
        ["second-moment", broken, "--corpus", facts_file],
        ["locate", broken, "--facts", facts_file, "--out", out],
    ]
    name = "model.layers.1.mlp.down_proj.weight"
    prefixed = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    absent = {other: tensor for other, tensor in state.items() if other != name}
    nan = {**state, name: state[name] * float("nan")}
    for changed, said in (
        (prefixed, "contain '_orig_mod.'"), (absent, f"lacks 1 of the model's 39 weights ({name})"),
        (nan, f"{name} holds NaN"),
    ):  # fmt: skip
        save_file(changed, broken / "model.safetensors", {"format": "pt"})
        for command in commands:
            run.refused(said, *command, code=1)
            assert not out.exists()


def test_a_model_that_brings_code_is_refused_whatever_stands_on_the_input(
    model_directory: Path, facts_file: Path, tmp_path: Path
) -> None:
    strange = shutil.copytree(model_directory, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (strange / "config.json").write_text(json.dumps(config))
    (strange / "own.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).write_text('')\n")
    done = CliRunner().invoke(app, ["verify", str(strange), "--facts", str(facts_file)], input="y\n" * 20)
    assert done.exit_code == 1
    assert "needs Python code of its own (auto_map" in done.output
    assert "[y/N]" not in done.output
    assert not (tmp_path / "ran").exists()


def test_what_another_library_repeats_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    handler = _Handler()
    for name in ("bitsandbytes.autograd", "factpatch.recipe"):
        for _ in range(3):
            handler.emit(logging.LogRecord(name, logging.WARNING, "", 0, f"from {name}", (), None))
    said = capsys.readouterr().err
    assert said.count("from bitsandbytes.autograd") == 1
    assert said.count("from factpatch.recipe") == 3
