"""What earlier versions wrote is still read: patches, sessions, runs and analyses made before 0.2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import invoke
from tests.models import tiny_model, tiny_tokenizer

from factpatch import Patch, Session
from factpatch.journal import Journal
from factpatch.model.language_model import LanguageModel
from factpatch.model.weights import content_hash
from factpatch.patch.file import PatchFileError, describe

OLD = Path(__file__).parent / "formats" / "before_0.2"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of what an earlier version wrote, with the model that it was written for beside it."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    model = tiny_model("llama")
    written = json.loads((folder / "session" / "session.json").read_text("utf-8"))
    weights = LanguageModel(model, tiny_tokenizer()).weights([1])
    if content_hash(weights[1]) != written["weights"]["1"]:
        pytest.skip("this PyTorch makes other random weights than the one that the old files were made with")
    model.save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    for file in folder.rglob("*.json"):
        text = file.read_text("utf-8")
        file.write_text(text.replace("/models/", f"{folder}/"), "utf-8")
    return folder


def test_an_old_patch_is_read_applied_and_refused_if_altered(old: Path) -> None:
    found = describe(old / "patch.safetensors")
    assert found.format == 2
    patch, model = Patch.load(old / "patch.safetensors"), tiny_model("llama")
    patch.apply(model)
    held = LanguageModel(model, tiny_tokenizer()).weights(patch.layers)
    assert {layer: content_hash(weight) for layer, weight in held.items()} == patch.states()[-1]
    patch.save(old / "new.safetensors")
    assert describe(old / "new.safetensors").format == 3
    assert Patch.load(old / "new.safetensors").states() == patch.states()
    content = bytearray((old / "patch.safetensors").read_bytes())
    content[-1] ^= 1
    (old / "patch.safetensors").write_bytes(content)
    with pytest.raises(PatchFileError, match="was altered"):
        Patch.load(old / "patch.safetensors")


def test_an_old_session_is_shown_continued_and_undone(old: Path) -> None:
    directory = old / "session"
    journal = Journal(directory)
    assert len(journal.finished) == 3
    assert journal.recipe.critical_layers == (1, 2)
    assert journal.recipe.settings["solver.weight"] == "5"
    assert journal.recipe.seed == 3
    before = [patch.states()[-1] for patch in Session(directory).patches()]
    more = old / "more.json"
    more.write_text(json.dumps([{"prompt": "{} is in", "subject": "Vienna", "target_new": "Rome"}]), "utf-8")
    options = ["--layers", "1,2", "--set", "target.steps=3", "--set", "target.learning_rate=0.3", "--set",
               "solver.weight=5", "--corpus", old / "corpus.txt", "--corpus-tokens", 150, "--seed", 3]  # fmt: skip
    done = invoke(old / "cache", "edit", old / "tiny", "--facts", more, "--session", directory, "--no-verify", *options)
    assert done.exit_code == 0, done.output
    assert [patch.states()[-1] for patch in Session(directory).patches()][:3] == before
    assert len(Journal(directory).finished) == 4
    assert invoke(old / "cache", "undo", directory, "--to", 2).exit_code == 0
    out = old / "patch-of-two.safetensors"
    resumed = invoke(old / "cache", "edit", "--resume", directory, "--out", out, "--no-verify")
    assert resumed.exit_code == 0, resumed.output
    assert Patch.load(out).states()[-1] == before[1]


def test_an_old_run_is_read_and_reported(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra `runs`")
    from factpatch.lab.runs.results import read_results

    results = read_results(old / "run")
    assert results.labels == ["memit"]
    assert not results.missing
    monkeypatch.chdir(old)
    done = invoke(old / "cache", "report", old / "run", "--out", old / "report.html")
    assert done.exit_code == 0, done.output


def test_an_old_analysis_is_found_again(old: Path) -> None:
    pytest.importorskip("jinja2", reason="needs the extra `runs`")
    arguments: list[Any] = [
        "analyze", "steps", "--model", old / "tiny", "--facts", old / "facts.json", "--limit", 2, "--text-facts", 0,
        "--out", old / "analysis", "--layers", "1,2", "--set", "target.steps=3", "--set", "target.enough_steps=0",
        "--set", "target.contexts=prompt,prefixes", "--set", "target.stride=0", "--set", "target.shortest=false",
        "--set", "solver.weight=5", "--corpus", old / "corpus.txt", "--corpus-tokens", 150,
    ]  # fmt: skip
    record = json.loads((old / "analysis" / "analysis.json").read_text("utf-8"))
    record["about"]["model"] = str(old / "tiny")
    (old / "analysis" / "analysis.json").write_text(json.dumps(record), "utf-8")
    before = (old / "analysis" / "steps.json").read_bytes()
    done = invoke(old / "cache", *arguments)
    assert done.exit_code == 0, done.output
    assert (old / "analysis" / "steps.json").read_bytes() == before
