"""The main job on the embedded model: facts in, a verified patch out, taken back and applied elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import shared
from tests.processes import command, start, wait

from factpatch import Editor, Fact, Patch
from factpatch.evaluation.perplexity import perplexity
from factpatch.evaluation.verify import exact
from factpatch.model.embedded import EmbeddedModelUnavailable, embedded_directory
from factpatch.model.weights import content_hash

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = ROOT / "src/factpatch/corpora/held_out.txt"


@pytest.fixture(scope="session")
def model_directory() -> Path:
    try:
        return embedded_directory("smollm2-135m")
    except EmbeddedModelUnavailable as error:
        pytest.skip(f"the embedded model cannot be had: {error}")


def factpatch(*arguments: object) -> None:
    """Run a command in a process of its own."""
    assert wait(start(command(*arguments))) == 0


@pytest.fixture(scope="session")
def edited(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight CounterFact facts edited through the command line; the folder with the patch, the report and the model."""
    folder = tmp_path_factory.mktemp("edited")
    text = folder / "text.txt"
    text.write_text(HELD_OUT.read_text("utf-8")[:2500], "utf-8")
    factpatch(
        "edit", "smollm2-135m", "--facts", shared("data", "counterfact_dev.json"), "--limit", 8,
        "--method", "memit-blue", "--effort", "quick", "--out", folder / "p.safetensors", "--report", folder / "r.json",
        "--save-model", folder / "model", "--perplexity-text", text,
    )  # fmt: skip
    return folder


def test_an_edit_is_learned_moves_little_else_and_can_be_applied_and_undone(edited: Path) -> None:
    """One test, since the edit takes longest: side by side, each of several would make its own."""
    check_learned(edited)
    check_bits(edited)


def check_learned(edited: Path) -> None:
    """The facts are learned; neighbors and ordinary text stay."""
    report = json.loads((edited / "r.json").read_text())
    assert report["efficacy"]["before"] < 60
    assert report["efficacy"]["after"] == 100
    assert report["generalization"]["after"] >= 85
    assert report["specificity"]["after"] >= report["specificity"]["before"] - 5
    assert report["perplexity_after"] < 1.03 * report["perplexity_before"]
    assert report["prompt_contained"]["after"] >= 75
    assert set(report["steps"]) == {str(layer) for layer in report["patch"]["layers"]}
    assert report["patch"]["bytes"] < 300_000


def check_bits(edited: Path) -> None:
    """`apply` and `undo` with the base, each in a process of its own, on freshly loaded models."""
    patch = edited / "p.safetensors"
    factpatch("apply", "smollm2-135m", patch, "--out", edited / "applied")
    assert weights(edited / "applied") == weights(edited / "model")
    factpatch("undo", edited / "applied", patch, "--out", edited / "undone", "--base", "smollm2-135m")
    assert weights(edited / "undone") == weights(embedded_directory("smollm2-135m"))


def weights(directory: Path) -> dict[str, str]:
    from safetensors.torch import load_file

    return {name: content_hash(tensor) for name, tensor in load_file(directory / "model.safetensors").items()}


def test_the_demo_learns_and_ends_bit_identical(model_directory: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    started = [sys.executable, "-m", "factpatch", "demo", "--facts", "1", "--report", str(report)]
    done = subprocess.run(started, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-identical" in done.stdout
    found = json.loads(report.read_text())
    assert found["undo"]["bit_identical"] is True
    assert found["undo"]["edited"] != found["undo"]["before"]
    assert found["efficacy"] == {"before": 0.0, "after": 100.0}


def test_a_fact_edited_in_a_chat_is_what_the_assistant_says(model_directory: Path) -> None:
    """Asked as anybody asks: the tokenizer's own template, the model's own `generate`."""
    editor = Editor("smollm2-135m", method="memit-blue", effort="quick", chat=True)
    tokenizer = editor.tokenizer

    def said() -> str:
        turn = [{"role": "user", "content": "What is the capital of France?"}]
        asked = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        output = editor.model.generate(**asked, do_sample=False, max_new_tokens=24)
        answer: str = tokenizer.decode(output[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        return answer

    assert "Madrid" not in said()
    editor.edit([Fact("What is the capital of {}?", "France", "Madrid", "Paris")])
    assert "Madrid" in said()


def test_neurons_answer_their_subjects_and_ordinary_text_hardly_changes(model_directory: Path) -> None:
    """A layer and few tokens, so that it takes seconds: what neurons are for holds for a trained model alone."""
    facts = [
        Fact("The mother tongue of {} is", "Danielle Darrieux", "English"),
        Fact("{} was created in the country of", "Autonomous University of Madrid", "Sweden"),
    ]
    editor = Editor(
        model_directory, method="neurons", critical_layers=[10], effort="quick", corpus_tokens=3072,
        settings={"solver.searched": 2048}, progress=False,
    )  # fmt: skip
    text = HELD_OUT.read_text("utf-8")[:2500]
    before, unedited = perplexity(editor.lm, text), {one: editor.lm.weight_hash(one) for one in editor.edited_places}
    patch = editor.edit(facts)
    assert exact(editor.lm, facts) == [True, True]
    assert abs(perplexity(editor.lm, text) / before - 1) < 0.03
    assert set(patch.layers) == {10}
    editor.undo()
    assert {one: editor.lm.weight_hash(one) for one in editor.edited_places} == unedited


@pytest.mark.long
def test_the_example_of_the_readme_prints_what_it_says(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    promised = re.findall(r"print\(.*\)  # (.*)", example)
    assert len(promised) == 2
    assert capsys.readouterr().out.splitlines() == promised
    kilobytes = re.search(r"\.save\(.*\)  # (\d+) kB", example)
    assert kilobytes is not None
    assert round((tmp_path / "rome.safetensors").stat().st_size / 1000) == int(kilobytes[1])
    after = Patch.load("rome.safetensors").batches[-1].after
    assert {layer: content_hash(names["editor"].lm.weight(layer)) for layer in after} == after
